"""A bounded sample of the rows of a table: its first ones, and some of its end."""

import csv
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from sail_jax.data.ingest.cells import is_empty
from sail_jax.data.ingest.sources import SEPARATORS, head_of, separator_of

ROWS = 1000
_BYTES = 64 << 20  # of media in cells, after which no more rows are read
_TAIL = 1 << 16  # characters of the end of a file


class Sample(NamedTuple):
    """Rows of a table.

    Attributes:
        columns: all its columns.
        rows: its first rows.
        tail: some of its last rows, where there are more.
        complete: whether `rows` are all of them.
    """

    columns: tuple[str, ...]
    rows: list[Mapping[str, Any]]
    tail: list[Mapping[str, Any]]
    complete: bool

    def values(self, column: str) -> list[Any]:
        """Returns the cells of a column in the first rows, without empty ones."""
        return [row[column] for row in self.rows if not is_empty(row.get(column))]

    def all_values(self, column: str) -> list[Any]:
        """Returns the cells of a column in all rows of the sample, without empty ones."""
        return self.values(column) + [row[column] for row in self.tail if not is_empty(row.get(column))]


def sample_table(file: Path) -> Sample:
    """Reads a sample of a CSV, TSV, JSONL or Parquet file.

    Raises:
        SailError: the file cannot be read; the message names it.
    """
    columns, cells = head_of(file)
    rows, size = [], 0
    for row in itertools.islice(cells, ROWS):
        rows.append(row)
        size += sum(map(_bytes_of, row.values()))
        if size > _BYTES:
            break
    complete = next(cells, None) is None
    tail = [] if complete else list(itertools.islice(_tail(file, columns), ROWS))
    return Sample(tuple(columns), rows, tail, complete)


def _bytes_of(cell: Any) -> int:
    if isinstance(cell, Mapping):
        return sum(map(_bytes_of, cell.values()))
    return len(cell) if isinstance(cell, bytes) else 0


def _holds_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_nested(kind)


def _tail(file: Path, columns: list[str]) -> Iterator[Mapping[str, Any]]:
    """Yields rows from the end of a file; a row that the cut went through is left out."""
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        with pq.ParquetFile(file) as table:
            # The bytes of media are of no use here.
            plain = [field.name for field in table.schema_arrow if not _holds_bytes(field.type)]
            last = max(0, table.num_row_groups - 1)
            batches = table.iter_batches(ROWS, row_groups=[last], columns=plain)
            yield from next(batches).to_pylist()
        return
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - _TAIL))
        lines = stream.read().decode("utf-8", errors="ignore").splitlines()[1:]
    if suffix not in SEPARATORS:
        for line in lines:
            try:
                cells = json.loads(line)
            except ValueError:
                continue
            if isinstance(cells, dict):
                yield cells
        return
    try:
        for cells in csv.reader(lines, delimiter=separator_of(file)):
            if len(cells) == len(columns):
                yield dict(zip(columns, cells, strict=True))
    except csv.Error:
        return
