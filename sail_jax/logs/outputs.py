"""Where a build of pairs or sequences writes tables and notes: a folder here, or an address."""

import abc
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ibis.expr.types as ir
import pyarrow as pa

from sail_jax import buckets
from sail_jax.data.sequence_tables import write_sequences
from sail_jax.data.tables import write_pair_columns
from sail_jax.errors import SailError
from sail_jax.files import commit_bytes

SPLITS = ("train", "test")


class Output(abc.ABC):
    """Tables and notes of a build, by their names."""

    @abc.abstractmethod
    def has_table(self, name: str) -> bool:
        """Returns whether a table is there; one in work is not."""

    @abc.abstractmethod
    def write_pairs(self, name: str, rows: ir.Table, order: Sequence[str], schema: pa.Schema) -> int:
        """Writes a pair table, each split by itself; it appears under its name when it is complete.

        Args:
            name: the name of the table.
            rows: its rows, with a column `split`; columns of the schema that they lack are null.
            order: the columns that order the rows of a split.
            schema: the columns of the table.

        Returns:
            The number of rows.
        """

    @abc.abstractmethod
    def write_sequences(self, name: str, rows: ir.Table) -> None:
        """Writes a sequence table as `write_pairs` does; its rows are in order."""

    @abc.abstractmethod
    def local_part(self, name: str) -> Path | None:
        """Returns a file or folder of this machine with rows of a table; None without a table.

        Of a table at an address they are the first rows of each split.
        """

    @abc.abstractmethod
    def read(self, name: str) -> bytes | None:
        """Returns the content of a small file; None if there is none."""

    @abc.abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Writes a small file, which is never seen half-written."""

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Removes a small file, if there is one."""

    def read_json(self, name: str) -> Any:
        """Returns the content of a JSON file; None if there is none that can be read."""
        try:
            return json.loads(self.read(name) or b"null")
        except ValueError:
            return None

    def write_json(self, name: str, values: Any, *, indent: int | None = 2) -> None:
        """Writes a JSON file."""
        self.write(name, (json.dumps(values, indent=indent) + "\n").encode())


class FolderOutput(Output):
    """A folder of this machine, or of a bucket's mirror, into which the rows are streamed.

    Args:
        path: the folder.
        batches: streams a table of the engine.
    """

    def __init__(self, path: Path, batches: Callable[[ir.Table], Iterator[pa.Table]]) -> None:
        self._path, self._batches = path, batches

    def has_table(self, name: str) -> bool:
        """Returns whether the file of a table is there.

        Raises:
            SailError: a folder is in its place, as Spark writes tables to addresses.
        """
        if self._table(name).is_dir():
            raise SailError(
                f"{self._table(name)} is a folder of parts, as Spark writes it: remove it, or name another --output."
            )
        return self._table(name).is_file()

    def write_pairs(self, name: str, rows: ir.Table, order: Sequence[str], schema: pa.Schema) -> int:
        """Streams a pair table into a file."""
        splits = {split: rows.filter(rows.split == split).order_by(*order) for split in SPLITS}
        batches = {split: self._batches(of_split) for split, of_split in splits.items()}
        return sum(write_pair_columns(self._table(name), batches, schema).values())

    def write_sequences(self, name: str, rows: ir.Table) -> None:
        """Streams a sequence table into a file."""
        write_sequences(self._table(name), self._batches(rows))

    def local_part(self, name: str) -> Path | None:
        """Returns the file of a table, or the folder that Spark wrote."""
        return self._table(name) if self._table(name).exists() else None

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file."""
        buckets.fetch(self._path / name)
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Writes a file."""
        commit_bytes(self._path / name, content)

    def remove(self, name: str) -> None:
        """Removes a file."""
        buckets.remove(self._path / name)

    def _table(self, name: str) -> Path:
        return self._path / f"{name}.parquet"
