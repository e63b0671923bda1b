"""Parquet tables sorted by split, written as a stream and read at random without loading them.

A split is a range of rows; the ranges are in the file's metadata. Files that another program wrote have none: there,
the statistics of each row group say of which split its rows are. Subclasses define the rows: `tables.PairTable` and
`sequence_tables.SequenceTable`.
"""

import contextlib
import difflib
import functools
import json
import operator
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sail_jax.data.parquet_files import (
    footer_digest,
    missing_column,
    parquet_parts,
    readable,
    require_column,
    statistics_of,
)
from sail_jax.errors import SailError
from sail_jax.files import partial_file

Row = TypeVar("Row", bound=tuple)

SPLIT_FIELD = pa.field("split", pa.dictionary(pa.int32(), pa.string()), nullable=False)
# How often a row is drawn, in proportion; a table may have it.
WEIGHT_FIELD = pa.field("weight", pa.float32())
SPLITS_KEY = b"sail_jax.splits"
ROW_GROUP = 4096
# Row groups that a table keeps for reading at random: as many as are this large in the file, and never fewer than 32,
# unless these are larger than 1 GB.
_CACHED_BYTES, _CACHED_GROUPS, _MOST_BYTES = 64 << 20, 32, 1 << 30
# What a row takes in memory at least, however well the file packs it.
_ROW_BYTES = 32
_OPEN_FILES = 64


class RowGroups(NamedTuple):
    """The row groups of a split, in the order of its rows: 24 bytes for each.

    Attributes:
        part: [G] int32 the file of each.
        group: [G] int32 its number in the file.
        first: [G] int64 the first of its rows that is of the split.
        ends: [G] int64 the number of rows of the split up to its end.
    """

    part: np.ndarray
    group: np.ndarray
    first: np.ndarray
    ends: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """[G] int64 rows of the split."""
        return np.diff(self.ends, prepend=0)


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

    Row groups are cached, so that tables of some million rows are read once. What else is in memory is 24 bytes for
    each row group. The table may be pickled (a worker process reopens the files) and used by several threads.

    Args:
        path: a Parquet file, or a folder of parts, which are read in the order of their names.
        split: the split; an empty string for all rows.

    Attributes:
        groups: the row groups of the split.
        cached: how many row groups are kept.

    Raises:
        SailError: the path or the split does not exist, a column is missing or of another type, or a part has other
            columns than the first one.
    """

    schema: ClassVar[pa.Schema]  # its last field is `SPLIT_FIELD`
    may_lack: ClassVar[tuple[str, ...]] = ()  # columns that are null in a table without them
    what: ClassVar[str]  # the kind of table, for messages
    made_by: ClassVar[str]  # what makes such tables, for the message that one is missing
    writer: ClassVar[str]  # the function that writes such a table, for messages
    make_row: ClassVar[Callable[..., tuple]]  # cells in the order of the schema -> Row

    def __init__(self, path: str | pathlib.Path, split: str):
        self.path, self.split = pathlib.Path(path), split
        self._names = self.schema.names[:-1]
        self._parts = self._part_paths()
        found, splits, largest, columns = [], set(), 1, None
        for part, file in enumerate(self._parts):
            with readable(file):
                metadata = pq.read_metadata(file)
                columns = self._check_columns(file, metadata.schema.to_arrow_schema(), columns)
                of_splits = _groups_by_split(file, metadata, split, self.writer)
            splits |= set(of_splits)
            for group, first, rows in of_splits.get(split, ()):
                found.append((part, group, first, rows))
                largest = max(largest, metadata.row_group(group).total_byte_size, rows * _ROW_BYTES)
        if split and split not in splits:
            raise SailError(f"{self.path} has no split {split!r}; it has {', '.join(sorted(splits))}.")
        self._present = frozenset(columns)
        parts, groups, first, sizes = np.array(found, np.int64).reshape(-1, 4).T
        self.groups = RowGroups(parts.astype(np.int32), groups.astype(np.int32), first.copy(), np.cumsum(sizes))
        self._lock = threading.Lock()
        self._file = functools.lru_cache(_OPEN_FILES)(self._open_file)
        least = max(1, min(_CACHED_GROUPS, _MOST_BYTES // largest))
        self.cached = max(least, _CACHED_BYTES // largest)
        self._columns = functools.lru_cache(self.cached)(self._read_group)

    @classmethod
    def open(cls, path: str | pathlib.Path, split: str = "train") -> "RowGroupTable[Row]":
        """Opens one split of the table at `path`."""
        return cls(path, split)

    def __reduce__(self):
        return type(self), (self.path, self.split)

    def __len__(self) -> int:
        return int(self.groups.ends[-1]) if len(self.groups.ends) else 0

    def __getitem__(self, i: int) -> Row:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} is outside of split {self.split!r} of {self.path} with its {len(self)} rows")
        ends = self.groups.ends
        number = int(ends.searchsorted(i, "right"))
        row = i - (int(ends[number - 1]) if number else 0)
        return self.make_row(*(column[row].as_py() for column in self._columns(number)))

    def column(self, number: int, name: str) -> pa.Array:
        """Reads a column of the rows of a row group; `number` counts those of the split."""
        (column,) = self._read_group(number, (name,))
        return column

    def statistics(self, name: str) -> Iterator[pq.Statistics | None]:
        """Yields the statistics of a column in each row group of the split, from the metadata of the files."""
        for part in np.unique(self.groups.part):
            with readable(self._parts[part]):
                found = statistics_of(pq.read_metadata(self._parts[part]), name)
            for group in self.groups.group[self.groups.part == part]:
                yield found[group]

    def part_of(self, number: int) -> pathlib.Path:
        """The file of a row group of the split."""
        return self._parts[self.groups.part[number]]

    def has(self, column: str) -> bool:
        """Whether the files have a column."""
        return column in self._present

    def digest(self) -> str:
        """A hash that tells tables with other rows apart; see `footer_digest`."""
        return footer_digest(self._parts)

    def iter_batches(self) -> Iterator[list[Row]]:
        """Yields all rows in order, in lists of at most 4,096."""
        for columns in self.iter_columns(self._names):
            yield [self.make_row(*cells) for cells in zip(*(column.to_pylist() for column in columns), strict=True)]

    def iter_columns(self, names: Sequence[str]) -> Iterator[list[pa.Array]]:
        """Yields some columns of all rows, of at most 4,096 rows at a time; only these columns are read."""
        for number, rows in enumerate(self.groups.sizes.tolist()):
            columns = self._read_group(number, names)
            for first in range(0, rows, ROW_GROUP):
                yield [column.slice(first, ROW_GROUP) for column in columns]

    def _open_file(self, part: int) -> pq.ParquetFile:
        return pq.ParquetFile(self._parts[part], memory_map=True)

    def _read_group(self, number: int, names: Sequence[str] = ()) -> list[pa.Array]:
        """Some columns of the rows of the split in one of its row groups; those of the schema by default."""
        names, path, groups = list(names) or self._names, self.part_of(number), self.groups
        with readable(path):
            with self._lock:  # a ParquetFile is not safe for several threads
                table = self._file(int(groups.part[number])).read_row_group(
                    int(groups.group[number]),
                    columns=[name for name in names if name in self._present],
                    use_threads=False,
                )
            table.validate(full=True)
        rows = table.slice(int(groups.first[number]), int(groups.sizes[number]))
        for name in names:
            if not self._field(name).nullable and _has_gaps(table.column(name)):
                raise SailError(f"{path} has rows without {name}; fill it in, or leave them out.")
        return [self._filled(rows, self._field(name)) for name in names]

    def _field(self, name: str) -> pa.Field:
        return WEIGHT_FIELD if name == WEIGHT_FIELD.name else self.schema.field(name)

    def _filled(self, rows: pa.Table, field: pa.Field) -> pa.Array:
        """A column; nulls where the files lack it, or have only nulls in it."""
        if field.name not in self._present or pa.types.is_null(rows.schema.field(field.name).type):
            return pa.nulls(len(rows), field.type)
        return rows.column(field.name).combine_chunks()

    def _part_paths(self) -> list[pathlib.Path]:
        path = self.path
        parts = parquet_parts(path)
        if not parts:
            near = difflib.get_close_matches(path.stem, [p.stem for p in path.parent.glob("*.parquet")], n=3)
            hint = f" Did you mean {' or '.join(f'{stem}.parquet' for stem in near)}?" if near else ""
            raise SailError(f"There is no {self.what} {path}.{hint} {self.made_by}")
        return parts

    def _check_columns(
        self, file: pathlib.Path, columns: pa.Schema, first: dict[str, pa.DataType] | None
    ) -> dict[str, pa.DataType]:
        """Checks the columns of a part, and returns those of the first one; `first` is None for the first one itself.

        Raises:
            SailError: a column is missing or of another type, or the part has not the columns of the first one.
        """
        lacking = {*self.may_lack, WEIGHT_FIELD.name} - set(columns.names)
        fields = [field for field in (*list(self.schema)[:-1], WEIGHT_FIELD) if field.name not in lacking]
        for field in fields:
            require_column(str(file), columns, field)
        if self.split and SPLIT_FIELD.name not in columns.names:
            raise SailError(missing_column(str(file), SPLIT_FIELD.name, columns.names))
        found = {field.name: columns.field(field.name).type for field in fields}
        for name in [*found, *(first or ())]:
            one, other = (first or found).get(name), found.get(name)
            if one != other and not any(of is not None and pa.types.is_null(of) for of in (one, other)):
                raise SailError(
                    f"{file}: the column {name!r} is {other or 'missing'}, and {one or 'missing'} in {self._parts[0]}. "
                    "Write all parts with the same columns."
                )
        return first or found


def _groups_by_split(
    file: pathlib.Path, metadata: pq.FileMetaData, split: str, writer: str
) -> dict[str, list[tuple[int, int, int]]]:
    """The splits of a file, each with its row groups, the first of its rows there, and their number.

    For the split "", that is all rows.

    Raises:
        SailError: the metadata is damaged, or does not say which rows are of which split.
    """
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    ranges = (metadata.metadata or {}).get(SPLITS_KEY)
    if not split:
        return {"": [(group, 0, rows) for group, rows in enumerate(sizes)]}
    if ranges is None:
        return _by_statistics(file, metadata, sizes, writer)
    try:
        read = {name: (operator.index(begin), operator.index(end)) for name, (begin, end) in _ranges(ranges)}
    except (ValueError, TypeError, AttributeError) as error:
        raise SailError(f"{file} has damaged metadata of its splits ({error}); write it again.") from error
    starts = np.cumsum([0, *sizes]).tolist()
    overlaps = {
        name: [
            (group, max(begin - start, 0), min(start + rows, end) - max(start, begin))
            for group, (start, rows) in enumerate(zip(starts, sizes, strict=False))
        ]
        for name, (begin, end) in read.items()
    }
    return {name: [group for group in groups if group[2] > 0] for name, groups in overlaps.items()}


def _by_statistics(
    file: pathlib.Path, metadata: pq.FileMetaData, sizes: list[int], writer: str
) -> dict[str, list[tuple[int, int, int]]]:
    found: dict[str, list[tuple[int, int, int]]] = {}
    for group, of_group in enumerate(statistics_of(metadata, SPLIT_FIELD.name)):
        if of_group is None or not of_group.has_min_max or of_group.min != of_group.max:
            raise SailError(
                f"{file} does not say which of its rows are of which split: its row group {group} has several, or no "
                f"statistics of the column 'split'. Sort it by split, write it with {writer}, or use all its rows with "
                "an empty split."
            )
        found.setdefault(str(of_group.min), []).append((group, 0, sizes[group]))
    return found


def splits_of(path: pathlib.Path) -> set[str]:
    """The splits of a table, a file or a folder of parts, as far as metadata or statistics tell them."""
    found = set()
    for part in parquet_parts(path) or [path]:  # a missing one is told by the reader
        with readable(part):
            metadata = pq.read_metadata(part)
            if SPLITS_KEY in (metadata.metadata or {}):
                found |= {split for split, _ in _ranges(metadata.metadata[SPLITS_KEY])}
            else:
                known = [of for of in statistics_of(metadata, SPLIT_FIELD.name) if of is not None and of.has_min_max]
                found |= {str(of.min) for of in known if of.min == of.max}
    return found


def _ranges(metadata: bytes) -> Iterable[tuple[str, Any]]:
    return json.loads(metadata or b"{}").items()


def _has_gaps(column: pa.ChunkedArray) -> bool:
    """Returns whether a column has nulls, or lists of it have."""
    inner = pc.list_flatten(column) if pa.types.is_nested(column.type) else column
    return bool(column.null_count or inner.null_count)
