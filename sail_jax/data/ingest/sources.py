"""Streams the rows of a user's tables: CSV, TSV, JSONL and Parquet files, and prepared TFDS data sets."""

import collections
import contextlib
import csv
import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds

from sail_jax.data.media.sound import encode_audio
from sail_jax.data.parquet_files import missing_column
from sail_jax.errors import BadRecordError, SailError
from sail_jax.files import PassedOver

SEPARATORS = {".csv": ",", ".tsv": "\t"}
# What else may separate the cells of a CSV; and how each is called.
_OTHER_SEPARATORS = (";", "\t", "|")
_CALLED = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# Characters of the longest record of a CSV: a quote that is never closed would make one of the rest of the file.
_LONGEST_RECORD = 1 << 24
TABLE_SUFFIXES = (*SEPARATORS, ".jsonl", ".parquet")
# Number of lines of a JSONL file that define its columns.
_JSONL_HEAD = 1000
_PARQUET_BATCH = 256
_TFDS_SPEC = re.compile(r"(?P<name>[^\[\]]+)\[(?P<split>.+)\]")
# Transcripts may exceed the csv module's limit of 128 KiB.
csv.field_size_limit(_LONGEST_RECORD)


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        file: the file, for messages.
        number: its number in the file, from 1, without the header.
        cells: column -> value: text, numbers, bytes, arrays, lists of them, or None.
        problem: the error of an unreadable row, which has no cells.
    """

    file: str
    number: int
    cells: Mapping[str, Any]
    problem: BadRecordError | None = None


@dataclasses.dataclass(frozen=True)
class RowSource:
    """A table of source rows, opened for streaming.

    Attributes:
        name: the file, folder or data set, for messages.
        columns: its columns.
        rows: number of rows; for text files an estimate from the number of lines.
        fingerprint: a digest that changes when the source does.
        read: read(start) streams the rows from index `start` on; with names of columns, only those of Parquet files.
        files: the files of the table in order; empty for a TFDS data set.
        columns_of: the columns of each file, where they differ from those of the first.
        passed_over: what else a folder of tables holds; empty for nothing.
        assumed: what its separators were taken for; empty if it has none.
    """

    name: str
    columns: tuple[str, ...]
    rows: int
    fingerprint: str
    read: Callable[..., Iterator[Row]]
    files: tuple[pathlib.Path, ...] = ()
    columns_of: Mapping[pathlib.Path, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    passed_over: str = ""
    assumed: str = ""

    def require(self, wanted: Mapping[str, str]) -> "RowSource":
        """Returns the source with the columns named by settings alone, after a check that all files have them.

        Args:
            wanted: setting -> column; an empty column is not checked.

        Raises:
            SailError: a column is missing.
        """
        for setting, column in wanted.items():
            for file, columns in ({self.name: self.columns} | self.columns_of).items():
                if column and column not in columns and not self._comes_late(column):
                    raise SailError(f"{missing_column(str(file), column, columns)} Change {setting}.")
        names = frozenset(filter(None, wanted.values()))
        return dataclasses.replace(self, read=functools.partial(self.read, wanted=names))

    def _comes_late(self, column: str) -> bool:
        """Returns whether a line of a JSONL file has a column that its first lines lack."""
        if not self.files or _suffix(self.files[0]) != ".jsonl":
            return False
        return any(column in row.cells for row in self.read(0))


def open_table(folder: pathlib.Path, name: str, setting: str, header: Sequence[str] = ()) -> RowSource:
    """Opens a CSV, TSV, JSONL or Parquet file, or a folder of files of one of these formats.

    Args:
        folder: the source folder.
        name: the file or folder, relative to the source folder.
        setting: the setting that holds the path, for messages.
        header: the column names of a CSV or TSV file without a header.

    Raises:
        SailError: the path is missing, or its format is unknown.
    """
    path = folder / name
    files = [path] if path.is_file() else sorted(p for p in path.glob("*") if _suffix(p) in TABLE_SUFFIXES)
    if not files:
        present = [p.name for p in path.parent.glob("*")]
        near = difflib.get_close_matches(path.name, present, n=3)
        hint = (
            f" Did you mean {' or '.join(near)}?" if near else f" The folder holds: {', '.join(sorted(present)[:20])}."
        )
        raise SailError(f"There is no table {path}.{hint} Change {setting}.")
    suffixes = set(map(_suffix, files))
    if len(suffixes) > 1 or not suffixes <= set(TABLE_SUFFIXES):
        raise SailError(f"{path} is {' and '.join(sorted(suffixes))}; write it as one of {', '.join(TABLE_SUFFIXES)}.")
    suffix = _suffix(files[0])
    if header and suffix not in SEPARATORS:
        raise SailError(f"{path} has its own column names. Empty the header in the settings.")
    columns, reader = _readers(suffix)
    if header:
        columns, reader = (lambda _: header), functools.partial(_csv_rows, header=header)
    digests, counts = zip(*map(_measure, files), strict=True)
    lines_above = len(files) if suffix in SEPARATORS and not header else 0

    def read(start: int, wanted: Collection[str] | None = None) -> Iterator[Row]:
        only = {"wanted": wanted} if suffix == ".parquet" else {}
        for file in files:
            name = str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)
            for number, (cells, problem) in enumerate(reader(file, **only), 1):
                if start:
                    start -= 1
                else:
                    yield Row(name, number, cells, problem)

    first, rows = tuple(columns(files[0])), max(0, sum(counts) - lines_above)
    others = {file: tuple(columns(file)) for file in files[1:]} if suffix != ".jsonl" else {}
    differ = {file: names for file, names in others.items() if set(names) != set(first)}
    said = passed_over(path, files), assumed_separators(name, files)
    return RowSource(name, first, rows, " ".join(digests), read, tuple(files), differ, *said)


def passed_over(path: pathlib.Path, files: Collection[pathlib.Path]) -> str:
    """Returns a line on what a folder of tables holds beside the files that are read; empty for nothing."""
    others, read = PassedOver(), frozenset(files)
    for entry in sorted(path.iterdir()) if path.is_dir() else ():
        if entry not in read:
            others.add(entry.name + "/" * entry.is_dir())
    return f"{path}: {others}" if str(others) else ""


def _readers(suffix: str) -> tuple[Callable, Callable]:
    """Returns the functions that read the columns and the rows of a file."""
    return {
        ".csv": (_csv_columns, _csv_rows),
        ".tsv": (_csv_columns, _csv_rows),
        ".jsonl": (_jsonl_columns, _jsonl_rows),
        ".parquet": (_parquet_columns, _parquet_rows),
    }[suffix]


def head_of(file: pathlib.Path) -> tuple[list[str], Iterator[Mapping[str, Any]]]:
    """Returns the columns of a table, and an iterator over those of its rows that can be read."""
    columns, reader = _readers(_suffix(file))
    return list(columns(file)), (cells for cells, problem in reader(file) if problem is None)


def _suffix(file: pathlib.Path) -> str:
    return file.suffix.lower()


def _measure(file: pathlib.Path) -> tuple[str, int]:
    """(digest, number of rows or lines) of a file."""
    digest, lines = hashlib.blake2b(digest_size=16), 0
    if _suffix(file) == ".parquet":
        # The footer has the sizes, offsets and statistics of all columns; the file may hold media, and is not read.
        with _readable(file), file.open("rb") as stream:
            lines = pq.read_metadata(file).num_rows
            stream.seek(-8, 2)
            stream.seek(-8 - int.from_bytes(stream.read(4), "little"), 2)
            digest.update(stream.read())
        return digest.hexdigest(), lines
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            lines += block.count(b"\n")
    return digest.hexdigest(), lines


@contextlib.contextmanager
def _readable(file: pathlib.Path) -> Iterator[None]:
    """Turns errors of a reader into messages that name the file."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise SailError(f"{file} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the reader
            raise
        reason = str(error).strip().partition("\n")[0]
        raise SailError(f"{file} is damaged, or not a Parquet file ({reason}). Write it again.") from error


def separator_of(file: pathlib.Path) -> str:
    """Returns what separates the cells of a CSV or TSV: by its first line, where its suffix tells wrong."""
    with _readable(file), file.open(newline="", encoding="utf-8-sig") as stream:
        return _separator_in(stream.readline(_LONGEST_RECORD), SEPARATORS[_suffix(file)])


def _separator_in(line: str, usual: str) -> str:
    counts = {separator: line.count(separator) for separator in _OTHER_SEPARATORS}
    most = max(counts, key=counts.get)
    return usual if usual in line or not counts[most] else most


def assumed_separators(name: str, files: Iterable[pathlib.Path]) -> str:
    """Returns a line on what is taken to separate the cells of a table; empty if it is no CSV or TSV."""
    texts = [file for file in files if _suffix(file) in SEPARATORS]
    counts = collections.Counter(_CALLED[separator_of(file)] for file in texts)
    of_all = f" of {len(texts):,} files)"
    said = [f"{called} ({count:,}{of_all}" if len(counts) > 1 else called for called, count in counts.items()]
    return f"{name}: cells are separated by {' and '.join(said)}." if said else ""


def first_bad_row(file: pathlib.Path) -> BadRecordError | None:
    """Returns the error of the first row of a text file that cannot be read; None if all can."""
    columns, reader = _readers(_suffix(file))
    columns(file)  # raises an error where the names of the columns are no row
    for number, (_, problem) in enumerate(reader(file), 1):
        if problem is not None:
            return problem.at(source=str(file), record=f"row {number}")
    return None


def is_even(file: pathlib.Path) -> bool:
    """Returns whether the rows of a CSV or TSV have as many cells; faster than `first_bad_row`."""
    with _readable(file), file.open(newline="", encoding="utf-8-sig") as stream:
        rows = csv.reader(stream, delimiter=separator_of(file), strict=True)
        try:
            return len(set(map(len, rows)) - {0}) <= 1
        except csv.Error:
            return False


def _csv_columns(file: pathlib.Path) -> list[str]:
    with _readable(file), file.open(newline="", encoding="utf-8-sig") as stream:
        return csv_header(str(file), stream)[1]


def csv_header(name: str, stream: TextIO) -> tuple[str, list[str]]:
    """Returns what separates the cells of a CSV or TSV, and its columns, by its first record.

    Args:
        name: of the file.
        stream: its text, or the beginning of that; can be read from its start again.

    Raises:
        SailError: the record is none, or has a column twice.
    """
    separator = _separator_in(stream.readline(_LONGEST_RECORD), SEPARATORS[pathlib.PurePath(name).suffix.lower()])
    stream.seek(0)
    header = next(_records(stream, separator), [])
    if isinstance(header, BadRecordError):
        raise SailError(f"{name}: {header}")
    repeated = [column for column, count in collections.Counter(header).items() if count > 1 and column]
    if repeated:
        raise SailError(f"{name} has the column {repeated[0]!r} more than once. Give each a name of its own.")
    return separator, header


def _csv_rows(file: pathlib.Path, header: Sequence[str] = ()) -> Iterator[tuple[dict, BadRecordError | None]]:
    with _readable(file), file.open(newline="", encoding="utf-8-sig") as stream:
        records = _records(stream, separator_of(file))
        names = header or next(records, [])
        for cells in records:
            if isinstance(cells, BadRecordError):
                yield {}, cells
            elif cells == names and not header:
                yield {}, BadRecordError("the row repeats the names of the columns", remedy="Remove it")
            elif len(cells) == len(names):
                yield dict(zip(names, cells, strict=True)), None
            elif cells:
                problem = f"the row has {len(cells)} cells, the header has {len(names)}"
                yield (
                    {},
                    BadRecordError(problem, remedy="Put cells that hold separators or line breaks in double quotes"),
                )


def _records(stream: TextIO, separator: str) -> Iterator[list[str] | BadRecordError]:
    """Yields the cells of each record; where a quote is not closed, an error, and then the lines that it swallowed."""
    lines = _Lines(stream)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        lines.begin_record()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            lines.put_back()
            reader = csv.reader(lines, delimiter=separator, strict=True)
            yield BadRecordError(
                f"the row is no CSV ({error})",
                remedy="Close the cells that begin with a double quote, and write one within such a cell twice",
            )
            continue
        if cells is None:
            return
        yield cells


class _Lines:
    """Iterates over the lines of a file, of which those of a record after its first can be put back."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._again = stream, collections.deque[str]()

    def begin_record(self) -> None:
        """Forgets the lines of the record before."""
        self._record, self._characters = [], 0

    def put_back(self) -> None:
        """Lets the lines of the record after its first come again."""
        self._again.extendleft(reversed(self._record[1:]))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if self._characters > _LONGEST_RECORD:
            raise csv.Error("a quote is not closed")
        line = self._again.popleft() if self._again else self._stream.readline()
        if not line:
            raise StopIteration
        self._record.append(line)
        self._characters += len(line)
        return line


def _jsonl_columns(file: pathlib.Path) -> list[str]:
    head = itertools.islice(_jsonl_rows(file), _JSONL_HEAD)
    return list(dict.fromkeys(itertools.chain.from_iterable(cells for cells, _ in head)))


def _jsonl_rows(file: pathlib.Path) -> Iterator[tuple[dict, BadRecordError | None]]:
    with _readable(file), file.open(encoding="utf-8-sig") as stream:
        for line in stream:
            if not line.strip():
                continue
            try:
                cells = json.loads(line)
            except ValueError as error:
                yield {}, BadRecordError(f"the line is not JSON ({error})", remedy="Write one JSON object per line")
                continue
            if isinstance(cells, dict):
                yield cells, None
            else:
                yield {}, BadRecordError("the line is not a JSON object", remedy="Write one JSON object per line")


def _parquet_columns(file: pathlib.Path) -> list[str]:
    with _readable(file):
        return pq.read_schema(file).names


def _parquet_rows(
    file: pathlib.Path, wanted: Collection[str] | None = None
) -> Iterator[tuple[dict, BadRecordError | None]]:
    with _readable(file), pq.ParquetFile(file) as table:
        # Others may hold media, or values that Python has no type for.
        columns = None if wanted is None else [name for name in table.schema_arrow.names if name in wanted]
        for batch in table.iter_batches(_PARQUET_BATCH, columns=columns):
            try:
                rows = batch.to_pylist()
            except (OverflowError, ValueError) as error:
                if isinstance(error, pa.ArrowException):  # of the file, not of a value
                    raise
                yield from map(_parquet_row, (batch.slice(row, 1) for row in range(len(batch))))
            else:
                yield from ((cells, None) for cells in rows)


def _parquet_row(row: pa.RecordBatch) -> tuple[dict, BadRecordError | None]:
    """Returns the cells of a row, or the error of a value that Python has no form for."""
    try:
        return row.to_pylist()[0], None
    except UnicodeDecodeError as error:
        return {}, BadRecordError(f"a text cannot be read ({error})", remedy="Write texts as UTF-8")
    except (OverflowError, ValueError) as error:
        return {}, BadRecordError(f"a value cannot be read ({error})", remedy="Write dates from the year 1 to 9999")


# ------------------------------------------------------------------------------------------------------------ TFDS


def open_tfds(folder: pathlib.Path, spec: str) -> RowSource:
    """Opens a prepared TFDS data set, without TensorFlow; its features are the columns.

    Encoded images are passed through, class labels become names, and sound gets the sample rate of its feature.

    Args:
        folder: the TFDS data folder, in which the set was prepared with file_format="array_record".
        spec: name and split, for example "my_set/config:1.0.0[train]".

    Raises:
        SailError: the specification is malformed, or the data set, version or split does not exist.
    """
    match = _TFDS_SPEC.fullmatch(spec)
    if not match:
        raise SailError(f"config.ingest.source.tfds is {spec!r}; write it as 'name/config:1.0.0[split]'.")
    with _prepared(folder, spec):
        info = tfds.builder(match["name"], data_dir=folder).info
    images = [name for name, feature in info.features.items() if isinstance(feature, tfds.features.Image)]
    encoded = dict.fromkeys(images, tfds.decode.SkipDecoding())
    with _prepared(folder, spec):
        data = tfds.data_source(
            match["name"], split=match["split"], data_dir=folder, decoders=encoded or None, download=False
        )

    def read(start: int, wanted: Collection[str] | None = None) -> Iterator[Row]:
        for i in range(start, len(data)):
            values = {name: value for name, value in data[i].items() if wanted is None or name in wanted}
            cells = {name: _feature_cell(info.features[name], value) for name, value in values.items()}
            yield Row(spec, i + 1, cells)

    lengths = {name: split.shard_lengths for name, split in info.splits.items()}
    digest = f"{info.full_name} {lengths} {info.dataset_size}"
    return RowSource(spec, tuple(info.features), len(data), digest, read)


@contextlib.contextmanager
def _prepared(folder: pathlib.Path, spec: str) -> Iterator[None]:
    """Turns what TFDS raises for a name, version, split or file format that is not there into an error of ours."""
    try:
        yield
    except (ValueError, AssertionError, NotImplementedError) as error:
        present = sorted(p.name for p in folder.glob("*") if p.is_dir())
        reason = str(error).splitlines()[0]
        raise SailError(
            f"The TFDS data set {spec!r} cannot be read from {folder} ({reason}); the folder holds: "
            f"{', '.join(present)}. Prepare it there with file_format='array_record', or change "
            "config.ingest.source.tfds."
        ) from error


def _feature_cell(feature: Any, value: Any) -> Any:
    if hasattr(feature, "int2str"):
        return feature.int2str(int(value))
    if isinstance(value, np.ndarray) and getattr(feature, "sample_rate", None):
        return encode_audio(value, feature.sample_rate)
    return value
