"""Pair tables: Parquet files of references to items, read at random without loading them.

Rows are sorted by split, so that a split is a range of rows; the ranges stand in the file's metadata.
"""

import bisect
import contextlib
import difflib
import functools
import hashlib
import json
import os
import pathlib
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sail_jax.data.store import commit, item_key
from sail_jax.errors import SailError

# The tables' folder within the folder that `ingest` writes.
FOLDER = "tables"

SCHEMA = pa.schema(
    [
        pa.field("query_id", pa.string()),
        pa.field("query_text", pa.string()),
        pa.field("target_id", pa.string(), nullable=False),
        pa.field("score", pa.float32()),
        pa.field("split", pa.dictionary(pa.int32(), pa.string()), nullable=False),
    ]
)
_PAIR_COLUMNS = ["query_id", "query_text", "target_id", "score"]
_SPLITS_KEY = b"sail_jax.splits"
ROW_GROUP = 4096
_CACHED_GROUPS = 32
_OPEN_FILES = 64


class Pair(NamedTuple):
    """One row: a query, which is an item or a free text, and a target item.

    Attributes:
        query_id: id of the query item, or None.
        query_text: text of a free-text query, or None.
        target_id: id of the target item.
        score: graded similarity, or None.
    """

    query_id: str | None
    query_text: str | None
    target_id: str
    score: float | None = None


def is_held_out(item_id: str, seed: int, share: float) -> bool:
    """Whether an item belongs to the held-out share of the items.

    The draw is a hash of seed and id: it depends neither on the other items nor on their order, and an item that is
    held out at one share is held out at every larger one.
    """
    return item_key(f"{seed}:{item_id}") < share * 2.0**64


def write_pairs(path: str | pathlib.Path, rows: Iterable[tuple[Pair, str]]) -> dict[str, int]:
    """Streams (pair, split) rows into a pair table, sorted by split and otherwise in their order.

    Rows are spooled to one file per split next to `path`; the table appears under its name when it is complete.

    Returns:
        The number of rows of each split.
    """
    path = pathlib.Path(path)
    spool = path.with_name(f"{path.name}.spool")
    shutil.rmtree(spool, ignore_errors=True)
    spool.mkdir(parents=True)
    counts = _spool_splits(spool, rows)
    splits, stop = {}, 0
    for split in sorted(counts):
        splits[split] = (stop, stop + counts[split])
        stop += counts[split]
    schema = SCHEMA.with_metadata({_SPLITS_KEY: json.dumps(splits)})
    partial = path.with_name(f"{path.name}.partial")
    with pq.ParquetWriter(partial, schema) as writer:
        for split in splits:
            with pq.ParquetFile(_spool_path(spool, split, counts)) as file:
                for group in range(file.num_row_groups):
                    writer.write_table(file.read_row_group(group))
    shutil.rmtree(spool)
    commit(partial, path)
    return {split: counts[split] for split in splits}


def write_pair_columns(path: str | pathlib.Path, splits: Mapping[str, Iterable[pa.Table]]) -> dict[str, int]:
    """Streams columns into a pair table, split by split in the order of their names, without looking at single rows.

    Args:
        path: the table; it appears under its name when it is complete.
        splits: split -> tables with the columns of `SCHEMA` but the split; columns left out are null.

    Returns:
        The number of rows of each split that has any.
    """
    path = pathlib.Path(path)
    partial = path.with_name(f"{path.name}.partial")
    ranges, stop = {}, 0
    with pq.ParquetWriter(partial, SCHEMA) as writer:
        for split in sorted(splits):
            start = stop
            for table in splits[split]:
                if len(table):
                    writer.write_table(_as_pairs(table, split), row_group_size=ROW_GROUP)
                    stop += len(table)
            if stop > start:
                ranges[split] = (start, stop)
        writer.add_key_value_metadata({_SPLITS_KEY: json.dumps(ranges)})
    commit(partial, path)
    return {split: last - first for split, (first, last) in ranges.items()}


def _as_pairs(table: pa.Table, split: str) -> pa.Table:
    columns = [
        table.column(name).cast(SCHEMA.field(name).type)
        if name in table.column_names
        else pa.nulls(len(table), SCHEMA.field(name).type)
        for name in _PAIR_COLUMNS
    ]
    columns.append(pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(table), np.int32)), pa.array([split])))
    return pa.table(columns, schema=SCHEMA)


def _spool_splits(spool: pathlib.Path, rows: Iterable[tuple[Pair, str]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    waiting: dict[str, list[Pair]] = {}
    writers: dict[str, pq.ParquetWriter] = {}
    with contextlib.ExitStack() as stack:

        def flush(split: str) -> None:
            columns = [
                pa.array(column, field.type)
                for column, field in zip(zip(*waiting[split], strict=True), list(SCHEMA)[:-1], strict=True)
            ]
            columns.append(pa.DictionaryArray.from_arrays(pa.array([0] * len(waiting[split]), pa.int32()), [split]))
            writers[split].write_table(pa.table(columns, schema=SCHEMA))
            waiting[split] = []

        for pair, split in rows:
            if split not in writers:
                counts[split], waiting[split] = 0, []
                writers[split] = stack.enter_context(pq.ParquetWriter(_spool_path(spool, split, counts), SCHEMA))
            counts[split] += 1
            waiting[split].append(pair)
            if len(waiting[split]) == ROW_GROUP:
                flush(split)
        for split, pairs in waiting.items():
            if pairs:
                flush(split)
    return counts


def _spool_path(spool: pathlib.Path, split: str, order: dict[str, int]) -> pathlib.Path:
    # A number, as the name of a split may hold characters that a file name may not.
    return spool / f"{list(order).index(split)}.parquet"


class PairTable:
    """The rows of one split of a pair table, opened for reading.

    A few row groups are cached. The table may be pickled (a worker process reopens the files) and used by several
    threads.

    Args:
        path: a Parquet file, or a folder of parts that are read in the order of their names.
        split: the split; the empty string stands for all rows.

    Raises:
        SailError: the path does not exist, a column is missing, or there is no such split.
    """

    def __init__(self, path: str | pathlib.Path, split: str):
        self.path, self.split = pathlib.Path(path), split
        self._parts = _part_paths(self.path)
        self._groups: list[tuple[int, int, int]] = []  # part, row group of the part, first row of the split within it
        sizes, splits = [], set()
        for part, file in enumerate(self._parts):
            metadata = pq.read_metadata(file)
            ranges = _split_ranges(file, metadata, split)
            splits |= set(ranges)
            begin, end = (0, metadata.num_rows) if not split else ranges.get(split, (0, 0))
            first = 0
            for group in range(metadata.num_row_groups):
                last = first + metadata.row_group(group).num_rows
                if max(first, begin) < min(last, end):
                    self._groups.append((part, group, max(first, begin) - first))
                    sizes.append(min(last, end) - max(first, begin))
                first = last
        if split and split not in splits:
            raise SailError(f"{self.path} has no split {split!r}; it has {', '.join(sorted(splits))}.")
        self._ends = np.cumsum(sizes, dtype=np.int64).tolist()
        self._lock = threading.Lock()
        self._file = functools.lru_cache(_OPEN_FILES)(self._open_file)
        self._columns = functools.lru_cache(_CACHED_GROUPS)(self._read_group)

    @classmethod
    def open(cls, path: str | pathlib.Path, split: str = "train") -> "PairTable":
        """Opens one split of the table at `path`."""
        return cls(path, split)

    def __reduce__(self):
        return PairTable, (self.path, self.split)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, i: int) -> Pair:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} is outside of split {self.split!r} of {self.path} with its {len(self)} rows")
        number = bisect.bisect_right(self._ends, i)
        row = self._groups[number][2] + i - (self._ends[number - 1] if number else 0)
        return Pair(*(column[row].as_py() for column in self._columns(number)))

    def digest(self) -> str:
        """A hash of the footers of the files, which hold sizes and statistics of all columns: it tells tables apart."""
        digest = hashlib.blake2b(digest_size=16)
        for part in self._parts:
            with part.open("rb") as file:
                file.seek(-8, os.SEEK_END)
                length = int.from_bytes(file.read(4), "little")
                file.seek(-8 - length, os.SEEK_END)
                digest.update(file.read(length))
        return digest.hexdigest()

    def iter_batches(self) -> Iterator[list[Pair]]:
        """All rows in order, in lists of at most 4,096."""
        for number, (_, _, first) in enumerate(self._groups):
            rows = self._ends[number] - (self._ends[number - 1] if number else 0)
            columns = [column.slice(first, rows).to_pylist() for column in self._read_group(number)]
            yield [Pair(*cells) for cells in zip(*columns, strict=True)]

    def _open_file(self, part: int) -> pq.ParquetFile:
        return pq.ParquetFile(self._parts[part], memory_map=True)

    def _read_group(self, number: int) -> list[pa.Array]:
        part, group, _ = self._groups[number]
        with self._lock:  # a ParquetFile has one reader's state
            table = self._file(part).read_row_group(group, columns=_PAIR_COLUMNS, use_threads=False)
        return [table.column(name).combine_chunks() for name in _PAIR_COLUMNS]


def splits_of(path: pathlib.Path) -> set[str]:
    """The splits that a file of a pair table says it has."""
    return set(json.loads((pq.read_metadata(path).metadata or {}).get(_SPLITS_KEY, b"{}")))


def _part_paths(path: pathlib.Path) -> list[pathlib.Path]:
    parts = sorted(path.glob("*.parquet")) if path.is_dir() else [path] * path.is_file()
    if not parts:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.parquet")], n=3)
        raise SailError(f"There is no pair table {path}." + (f" Did you mean {' or '.join(near)}?" if near else ""))
    return parts


def _split_ranges(file: pathlib.Path, metadata: pq.FileMetaData, split: str) -> dict[str, tuple[int, int]]:
    columns = metadata.schema.to_arrow_schema().names
    for name in SCHEMA.names:
        if name not in columns:
            raise SailError(missing_column(str(file), name, columns))
    ranges = (metadata.metadata or {}).get(_SPLITS_KEY)
    if ranges is None and split:
        raise SailError(
            f"{file} does not say which rows belong to which split. Write it with sail_jax.data.tables.write_pairs, "
            "or use all its rows with an empty split."
        )
    return json.loads(ranges or "{}")


def missing_column(file: str, name: str, columns: Iterable[str]) -> str:
    """The message for a column that a file lacks, with the columns it has and the nearest of them."""
    columns = list(columns)
    near = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
    nearest = f" Did you mean {near[0]!r}?" if near else ""
    return f"{file} has no column {name!r}; it has {', '.join(map(repr, columns))}.{nearest}"
