"""Streams the rows of a user's tables: CSV, TSV, JSONL and Parquet files, and prepared TFDS data sets."""

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
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds

from sail_jax.data.media import encode_audio
from sail_jax.data.parquet_files import missing_column
from sail_jax.errors import BadRecordError, SailError

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
TABLE_SUFFIXES = (*_SEPARATORS, ".jsonl", ".parquet")
# Number of lines of a JSONL file that define its columns.
_JSONL_HEAD = 1000
_PARQUET_BATCH = 256
_TFDS_SPEC = re.compile(r"(?P<name>[^\[\]]+)\[(?P<split>.+)\]")
# Transcripts may exceed the csv module's limit of 128 KiB.
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


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
        read: read(start) streams the rows from index `start` on.
        files: the files of the table in order; empty for a TFDS data set.
    """

    name: str
    columns: tuple[str, ...]
    rows: int
    fingerprint: str
    read: Callable[[int], Iterator[Row]]
    files: tuple[pathlib.Path, ...] = ()

    def require(self, wanted: Mapping[str, str]) -> None:
        """Checks that the columns named by settings exist.

        Args:
            wanted: setting -> column; an empty column is not checked.

        Raises:
            SailError: a column is missing.
        """
        for setting, column in wanted.items():
            if column and column not in self.columns:
                raise SailError(f"{missing_column(self.name, column, self.columns)} Change {setting}.")


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
    files = [path] if path.is_file() else sorted(p for p in path.glob("*") if p.suffix in TABLE_SUFFIXES)
    if not files:
        present = [p.name for p in path.parent.glob("*")]
        near = difflib.get_close_matches(path.name, present, n=3)
        hint = (
            f" Did you mean {' or '.join(near)}?" if near else f" The folder holds: {', '.join(sorted(present)[:20])}."
        )
        raise SailError(f"There is no table {path}.{hint} Change {setting}.")
    suffixes = {file.suffix for file in files}
    if len(suffixes) > 1 or not suffixes <= set(TABLE_SUFFIXES):
        raise SailError(f"{path} is {' and '.join(sorted(suffixes))}; write it as one of {', '.join(TABLE_SUFFIXES)}.")
    suffix = files[0].suffix
    if header and suffix not in _SEPARATORS:
        raise SailError(f"{path} has its own column names. Empty the header in the settings.")
    columns, reader = {
        ".csv": (_csv_columns, _csv_rows),
        ".tsv": (_csv_columns, _csv_rows),
        ".jsonl": (_jsonl_columns, _jsonl_rows),
        ".parquet": (_parquet_columns, _parquet_rows),
    }[suffix]
    if header:
        columns, reader = (lambda _: header), functools.partial(_csv_rows, header=header)
    digests, counts = zip(*map(_measure, files), strict=True)
    lines_above = len(files) if suffix in _SEPARATORS and not header else 0

    def read(start: int) -> Iterator[Row]:
        for file in files:
            name = str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)
            for number, (cells, problem) in enumerate(reader(file), 1):
                if start:
                    start -= 1
                else:
                    yield Row(name, number, cells, problem)

    return RowSource(
        name, tuple(columns(files[0])), max(0, sum(counts) - lines_above), " ".join(digests), read, tuple(files)
    )


def _measure(file: pathlib.Path) -> tuple[str, int]:
    """(digest, number of rows or lines) of a file."""
    digest, lines = hashlib.blake2b(digest_size=16), 0
    if file.suffix == ".parquet":
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
    except pa.ArrowException as error:
        raise SailError(f"{file} is damaged, or not a Parquet file ({error}). Write it again.") from error


def _csv_columns(file: pathlib.Path) -> list[str]:
    with _readable(file), file.open(newline="", encoding="utf-8-sig") as stream:
        return next(csv.reader(stream, delimiter=_SEPARATORS[file.suffix]), [])


def _csv_rows(file: pathlib.Path, header: Sequence[str] = ()) -> Iterator[tuple[dict, BadRecordError | None]]:
    with _readable(file), file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream, delimiter=_SEPARATORS[file.suffix])
        header = header or next(reader, [])
        for cells in reader:
            if len(cells) == len(header):
                yield dict(zip(header, cells, strict=True)), None
            elif cells:
                problem = f"the row has {len(cells)} cells, the header has {len(header)}"
                yield (
                    {},
                    BadRecordError(problem, remedy="Put cells that hold separators or line breaks in double quotes"),
                )


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
    return pq.read_schema(file).names


def _parquet_rows(file: pathlib.Path) -> Iterator[tuple[dict, None]]:
    with _readable(file), pq.ParquetFile(file) as table:
        for batch in table.iter_batches(_PARQUET_BATCH):
            for cells in batch.to_pylist():
                yield cells, None


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
    try:
        info = tfds.builder(match["name"], data_dir=folder).info
        skip = {
            name: tfds.decode.SkipDecoding()
            for name, feature in info.features.items()
            if isinstance(feature, tfds.features.Image)
        }
        data = tfds.data_source(
            match["name"], split=match["split"], data_dir=folder, decoders=skip or None, download=False
        )
    except (ValueError, AssertionError, NotImplementedError) as error:
        present = sorted(p.name for p in folder.glob("*") if p.is_dir())
        reason = str(error).splitlines()[0]
        raise SailError(
            f"The TFDS data set {spec!r} cannot be read from {folder} ({reason}); the folder holds: "
            f"{', '.join(present)}. Prepare it there with file_format='array_record', or change "
            "config.ingest.source.tfds."
        ) from error

    def read(start: int) -> Iterator[Row]:
        for i in range(start, len(data)):
            cells = {name: _feature_cell(info.features[name], value) for name, value in data[i].items()}
            yield Row(spec, i + 1, cells)

    lengths = {name: split.shard_lengths for name, split in info.splits.items()}
    digest = f"{info.full_name} {lengths} {info.dataset_size}"
    return RowSource(spec, tuple(info.features), len(data), digest, read)


def _feature_cell(feature: Any, value: Any) -> Any:
    if hasattr(feature, "int2str"):
        return feature.int2str(int(value))
    if isinstance(value, np.ndarray) and getattr(feature, "sample_rate", None):
        return encode_audio(value, feature.sample_rate)
    return value
