"""Runs the rules of pairs and sequences on DuckDB, inside of the process; it spills to disk."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import duckdb
import ibis
import ibis.expr.types as ir
import pyarrow as pa

from sail_jax.config.logs import EngineConfig
from sail_jax.errors import SailError
from sail_jax.logs.engine import BATCH_ROWS, Engine, first_line


class _DuckDB(Engine):
    name = "duckdb"

    def batches(self, table: ir.Table) -> Iterator[pa.Table]:
        for batch in self._connection.con.sql(self._connection.compile(table)).to_arrow_reader(BATCH_ROWS):
            yield pa.Table.from_batches([batch])

    def _write(self, table: ir.Table, name: str) -> ir.Table:
        table.to_parquet(self._scratch / name, compression="lz4")
        return self.read(self._scratch / name)


@contextlib.contextmanager
def open_duckdb(settings: EngineConfig, scratch: Path) -> Iterator[Engine]:
    """Yields DuckDB as an engine; arguments and errors as of `open_engine`."""
    options = {"temp_directory": str(scratch / "spill"), "preserve_insertion_order": False}
    options |= {"threads": settings.threads} if settings.threads else {}
    options |= {"memory_limit": settings.memory_limit} if settings.memory_limit else {}
    try:
        connection = ibis.duckdb.connect(**options)
    except duckdb.Error as error:
        raise SailError(f"DuckDB does not start: {first_line(error)} Change config.logs.engine.") from error
    engine = _DuckDB(connection, scratch)
    engine.version = duckdb.__version__
    try:
        yield engine
    except duckdb.OutOfMemoryException as error:
        raise SailError(
            f"DuckDB needs more than config.logs.engine.memory_limit={settings.memory_limit!r}, or more disk than "
            f"{scratch} has ({first_line(error)}). Raise the limit, lower config.logs.engine.threads, or free disk."
        ) from error
    except duckdb.Error as error:
        raise SailError(
            f"DuckDB stopped: {first_line(error)} Finished tables are kept; run the command again."
        ) from error
    finally:
        connection.disconnect()
