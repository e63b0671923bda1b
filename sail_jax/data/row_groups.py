"""Parquet tables sorted by split, written as a stream and read at random without loading them.

A split is a range of rows; the ranges are in the file's metadata. Subclasses define the rows: `tables.PairTable` and
`sequence_tables.SequenceTable`.
"""

import bisect
import contextlib
import difflib
import functools
import json
import operator
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sail_jax.data.parquet_files import footer_digest, missing_column, parquet_parts, readable, require_column
from sail_jax.errors import SailError
from sail_jax.files import partial_file

Row = TypeVar("Row", bound=tuple)

SPLIT_FIELD = pa.field("split", pa.dictionary(pa.int32(), pa.string()), nullable=False)
SPLITS_KEY = b"sail_jax.splits"
ROW_GROUP = 4096
# Row groups that a table keeps for reading at random: as many as are this large in the file, and never fewer than 32.
_CACHED_BYTES, _CACHED_GROUPS = 64 << 20, 32
_OPEN_FILES = 64


def write_by_split(
    path: str | pathlib.Path, schema: pa.Schema, chunks: Iterable[tuple[str, pa.Table]]
) -> dict[str, int]:
    """Streams rows into a table, sorted by split; within a split they keep their order.

    Rows are written to one spill file per split next to `path`; the table appears under its name when it is complete.
    One row group per split, and the current chunk, are in memory.

    Args:
        path: the file to write.
        schema: of the table; its last field is `SPLIT_FIELD`.
        chunks: (split, rows); the rows have the fields of the schema in order, without the last.

    Returns:
        The number of rows of each split.
    """
    path = pathlib.Path(path)
    spill = path.with_name(f"{path.name}.spool")
    shutil.rmtree(spill, ignore_errors=True)
    spill.mkdir(parents=True)
    try:
        counts = _spill_splits(spill, schema, chunks)
        splits, stop = {}, 0
        for split in sorted(counts):
            splits[split] = (stop, stop + counts[split])
            stop += counts[split]
        metadata = {SPLITS_KEY: json.dumps(splits)}
        with partial_file(path) as partial, pq.ParquetWriter(partial, schema.with_metadata(metadata)) as writer:
            for split in splits:
                with pq.ParquetFile(_spill_path(spill, split, counts)) as file:
                    for group in range(file.num_row_groups):
                        writer.write_table(file.read_row_group(group))
    finally:
        shutil.rmtree(spill, ignore_errors=True)
    return {split: counts[split] for split in splits}


def _spill_splits(spill: pathlib.Path, schema: pa.Schema, chunks: Iterable[tuple[str, pa.Table]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    waiting: dict[str, list[pa.Table]] = {}
    writers: dict[str, pq.ParquetWriter] = {}
    with contextlib.ExitStack() as stack:

        def write(split: str, rows: pa.Table) -> None:
            for start in range(0, len(rows), ROW_GROUP):
                group = rows.slice(start, ROW_GROUP)
                names = pa.DictionaryArray.from_arrays(pa.array([0] * len(group), pa.int32()), [split])
                writers[split].write_table(pa.table([*group.columns, names], schema=schema))

        for split, rows in chunks:
            if split not in writers:
                counts[split], waiting[split] = 0, []
                writers[split] = stack.enter_context(pq.ParquetWriter(_spill_path(spill, split, counts), schema))
            counts[split] += len(rows)
            waiting[split].append(rows)
            held = sum(map(len, waiting[split]))
            if held >= ROW_GROUP:
                together = pa.concat_tables(waiting[split])
                whole = held - held % ROW_GROUP
                write(split, together.slice(0, whole))
                waiting[split] = [together.slice(whole)]
        for split, tables in waiting.items():
            write(split, pa.concat_tables(tables))
    return counts


def _spill_path(spill: pathlib.Path, split: str, order: dict[str, int]) -> pathlib.Path:
    # A number, because the name of a split may hold characters that are not allowed in file names.
    return spill / f"{list(order).index(split)}.parquet"


class RowGroupTable(Generic[Row]):
    """The rows of one split of a table, opened for reading; the base of pair and sequence tables.

    Row groups are cached, so that tables of some million rows are read once. The table may be pickled (a worker process
    reopens the files) and used by several threads.

    Args:
        path: a Parquet file, or a folder of parts, which are read in the order of their names.
        split: the split; an empty string for all rows.

    Raises:
        SailError: the path or the split does not exist, or a column is missing or of another type.
    """

    schema: ClassVar[pa.Schema]  # its last field is `SPLIT_FIELD`
    what: ClassVar[str]  # the kind of table, for messages
    writer: ClassVar[str]  # the function that writes such a table, for messages
    make_row: ClassVar[Callable[..., tuple]]  # cells in the order of the schema -> Row

    def __init__(self, path: str | pathlib.Path, split: str):
        self.path, self.split = pathlib.Path(path), split
        self._names = self.schema.names[:-1]
        self._parts = self._part_paths()
        self._groups: list[tuple[int, int, int]] = []  # part, row group of the part, first row of the split within it
        sizes, splits, largest = [], set(), 1
        for part, file in enumerate(self._parts):
            with readable(file):
                metadata = pq.read_metadata(file)
                ranges = self._split_ranges(file, metadata)
            splits |= set(ranges)
            begin, end = (0, metadata.num_rows) if not split else ranges.get(split, (0, 0))
            first = 0
            for group in range(metadata.num_row_groups):
                last = first + metadata.row_group(group).num_rows
                largest = max(largest, metadata.row_group(group).total_byte_size)
                if max(first, begin) < min(last, end):
                    self._groups.append((part, group, max(first, begin) - first))
                    sizes.append(min(last, end) - max(first, begin))
                first = last
        if split and split not in splits:
            raise SailError(f"{self.path} has no split {split!r}; it has {', '.join(sorted(splits))}.")
        self._ends = np.cumsum(sizes, dtype=np.int64).tolist()
        self._lock = threading.Lock()
        self._file = functools.lru_cache(_OPEN_FILES)(self._open_file)
        self._columns = functools.lru_cache(max(_CACHED_GROUPS, _CACHED_BYTES // largest))(self._read_group)

    @classmethod
    def open(cls, path: str | pathlib.Path, split: str = "train") -> "RowGroupTable[Row]":
        """Opens one split of the table at `path`."""
        return cls(path, split)

    def __reduce__(self):
        return type(self), (self.path, self.split)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, i: int) -> Row:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} is outside of split {self.split!r} of {self.path} with its {len(self)} rows")
        number = bisect.bisect_right(self._ends, i)
        row = self._groups[number][2] + i - (self._ends[number - 1] if number else 0)
        return self.make_row(*(column[row].as_py() for column in self._columns(number)))

    def digest(self) -> str:
        """A hash that tells tables with other rows apart; see `footer_digest`."""
        return footer_digest(self._parts)

    def iter_batches(self) -> Iterator[list[Row]]:
        """Yields all rows in order, in lists of at most 4,096."""
        for columns in self.iter_columns(self._names):
            yield [self.make_row(*cells) for cells in zip(*(column.to_pylist() for column in columns), strict=True)]

    def iter_columns(self, names: Sequence[str]) -> Iterator[list[pa.Array]]:
        """Yields some columns of all rows, of at most 4,096 rows at a time; only these columns are read."""
        for number, (_, _, first) in enumerate(self._groups):
            rows = self._ends[number] - (self._ends[number - 1] if number else 0)
            yield [column.slice(first, rows) for column in self._read_group(number, names)]

    def _open_file(self, part: int) -> pq.ParquetFile:
        return pq.ParquetFile(self._parts[part], memory_map=True)

    def _read_group(self, number: int, names: Sequence[str] = ()) -> list[pa.Array]:
        part, group, _ = self._groups[number]
        names = list(names) or self._names
        path = self._parts[part]
        with readable(path):
            with self._lock:  # a ParquetFile is not safe for several threads
                table = self._file(part).read_row_group(group, columns=names, use_threads=False)
            table.validate(full=True)
        for name in names:
            if not self.schema.field(name).nullable and _has_gaps(table.column(name)):
                raise SailError(f"{path} has rows without {name}; fill it in, or leave them out.")
        return [table.column(name).combine_chunks() for name in names]

    def _part_paths(self) -> list[pathlib.Path]:
        path = self.path
        parts = parquet_parts(path)
        if not parts:
            near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.parquet")], n=3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise SailError(f"There is no {self.what} {path}.{hint}")
        return parts

    def _split_ranges(self, file: pathlib.Path, metadata: pq.FileMetaData) -> dict[str, tuple[int, int]]:
        columns = metadata.schema.to_arrow_schema()
        for field in list(self.schema)[:-1]:
            require_column(str(file), columns, field)
        if SPLIT_FIELD.name not in columns.names:
            raise SailError(missing_column(str(file), SPLIT_FIELD.name, columns.names))
        ranges = (metadata.metadata or {}).get(SPLITS_KEY)
        if ranges is None and self.split:
            raise SailError(
                f"{file} has no metadata that maps rows to splits. Write it with {self.writer}, or use all its rows "
                "with an empty split."
            )
        try:
            return {split: (operator.index(begin), operator.index(end)) for split, (begin, end) in _ranges(ranges)}
        except (ValueError, TypeError, AttributeError) as error:
            raise SailError(f"{file} has damaged metadata of its splits ({error}); write it again.") from error


def splits_of(path: pathlib.Path) -> set[str]:
    """The splits in the metadata of a table's file."""
    with readable(path):
        return {split for split, _ in _ranges((pq.read_schema(path).metadata or {}).get(SPLITS_KEY))}


def _ranges(metadata: bytes | None) -> Iterable[tuple[str, Any]]:
    return json.loads(metadata or b"{}").items()


def _has_gaps(column: pa.ChunkedArray) -> bool:
    """Returns whether a column has nulls, or lists of it have."""
    inner = pc.list_flatten(column) if pa.types.is_nested(column.type) else column
    return bool(column.null_count or inner.null_count)
