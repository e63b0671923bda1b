"""What an engine that runs the rules of pairs and sequences does: read, keep and stream tables.

Rules are Ibis expressions, which every engine of Ibis reads. An engine reads and writes Parquet files of the build's
scratch folder, with Spark a folder that all its machines see, so that no table is in the memory of Python.
"""

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ibis.expr.types as ir
import pyarrow as pa

from sail_jax.config import Config
from sail_jax.errors import SailError
from sail_jax.logs.addresses import Address
from sail_jax.logs.outputs import FolderOutput, Output

if TYPE_CHECKING:
    from sail_jax.logs.spark_logs import SparkLogs

BATCH_ROWS = 65_536


class Engine(abc.ABC):
    """Reads, keeps and streams tables.

    Attributes:
        name: as on the command line.
        version: of the engine.
    """

    name: str
    version: str

    def __init__(self, connection: Any, scratch: Path):
        self._connection, self._scratch, self._kept = connection, scratch, dict[str, ir.Table]()

    def read(self, path: Path) -> ir.Table:
        """Returns the table in a Parquet file, or in a folder of its parts."""
        return self._connection.read_parquet(str(path / "*.parquet" if path.is_dir() else path))

    def keep(self, table: ir.Table, name: str) -> ir.Table:
        """Writes a table to the scratch folder and reads it from there; a second call only reads."""
        if name not in self._kept:
            self._kept[name] = self._write(table, f"{name}.parquet")
        return self._kept[name]

    def values(self, table: ir.Table) -> dict[str, Any]:
        """Returns the only row of a table; 0 for null, the sum of no rows."""
        (row,) = table.to_pyarrow().to_pylist()
        return {name: value or 0 for name, value in row.items()}

    @abc.abstractmethod
    def batches(self, table: ir.Table) -> Iterator[pa.Table]:
        """Streams a table in its order."""

    def logs_at(self, config: Config, setting: str, address: Address) -> "SparkLogs":
        """Returns the reader of logs at addresses.

        Args:
            config: the experiment.
            setting: the setting that leads to an address, for the message.
            address: the address.

        Raises:
            SailError: the engine reads none.
        """
        raise SailError(
            f"{setting} leads to {address}, which {self.name} does not read: use --engine spark, or copy it here."
        )

    def output(self, where: Path | Address, here: Path) -> Output:
        """Returns where a build writes.

        Args:
            where: a folder of this machine, or an address.
            here: a folder of this machine for what is copied.

        Raises:
            SailError: it is an address, and the engine writes to none.
        """
        if isinstance(where, Address):
            raise SailError(f"{where} is an address, to which {self.name} does not write: use --engine spark.")
        return FolderOutput(where, self.batches)

    @abc.abstractmethod
    def _write(self, table: ir.Table, name: str) -> ir.Table:
        """Writes a table, in no order, to the scratch folder, as a file or a folder of parts, and reads it there."""


def first_line(error: Exception) -> str:
    """Returns the first line of an engine's message, as a sentence."""
    return f"{str(error).strip().splitlines()[0].rstrip('.')}." if str(error).strip() else f"{type(error).__name__}."
