"""Runs the rules of pairs and sequences on Spark."""

import contextlib
import itertools
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from sail_jax.config import Config
from sail_jax.config.logs import EngineConfig
from sail_jax.errors import SailError
from sail_jax.logs.addresses import Address
from sail_jax.logs.engine import BATCH_ROWS, Engine
from sail_jax.logs.outputs import Output

try:
    import pyspark
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException
    from pyspark.sql import DataFrame, SparkSession

    from sail_jax.logs.spark_files import SparkFiles, reason_of
    from sail_jax.logs.spark_logs import SparkLogs
    from sail_jax.logs.spark_output import SparkOutput
except ImportError as error:
    raise SailError("The engine 'spark' needs PySpark: pip install 'sail_jax[spark]', and Java 17.") from error


class _Spark(Engine):
    """Spark, and its scratch folder, which all its machines have to see.

    Args:
        connection: of Ibis.
        session: of Spark.
        scratch: an empty folder of this machine.
        shared: the address of the scratch folder, where that is not a folder of this machine.
    """

    name, version = "spark", pyspark.__version__

    def __init__(self, connection: Any, session: SparkSession, scratch: Path, shared: Address | None):
        super().__init__(connection, scratch)
        self._session, self._files, self._shared = session, SparkFiles(session), shared
        self._sorted = itertools.count()

    def read(self, path: Path) -> ir.Table:
        if self._shared is None:
            return self._open(f"{_address(path)}/*.parquet" if path.is_dir() else _address(path))
        there = self._at(str(path.relative_to(self._scratch)))
        self._files.copy_in(path, there)
        return self._open(there)

    def batches(self, table: ir.Table) -> Iterator[pa.Table]:
        # Spark would collect the rows on the driver: its sorted parts, read in the order of their names, are a stream.
        folder = f"sorted-{next(self._sorted)}.parquet"
        self._rows(table).write.parquet(self._at(folder))
        for entry in self._files.entries(self._at(folder)):
            if entry.name.endswith(".parquet"):
                yield from self._batches_of(f"{folder}/{entry.name}")

    def logs_at(self, config: Config, setting: str, address: Address) -> SparkLogs:
        return SparkLogs(self._session, self._files, config, self._keep_rows)

    def output(self, where: Path | Address, here: Path) -> Output:
        if isinstance(where, Address):
            return SparkOutput(where, self._files, self._rows, here)
        return super().output(where, here)

    def close(self) -> None:
        """Removes the shared scratch folder."""
        if self._shared is not None:
            self._files.remove(self._shared)

    def _batches_of(self, name: str) -> Iterator[pa.Table]:
        """Streams a part in the scratch folder, of which this machine has one at a time."""
        here = self._scratch / name
        if self._shared is not None:
            here = self._scratch / "sorted-part.parquet"
            self._files.copy_out(self._at(name), here)
        with pq.ParquetFile(here) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                yield pa.Table.from_batches([batch])

    def _write(self, table: ir.Table, name: str) -> ir.Table:
        return self._keep_rows(self._rows(table), name)

    def _keep_rows(self, rows: DataFrame, name: str) -> ir.Table:
        rows.write.parquet(self._at(name))
        return self._open(self._at(name))

    def _rows(self, table: ir.Table) -> DataFrame:
        return self._session.sql(self._connection.compile(table))

    def _open(self, address: str) -> ir.Table:
        return self._connection.read_parquet(address)

    def _at(self, name: str) -> str:
        """Returns the address of a file or folder in the scratch folder."""
        return f"{self._shared}/{name}" if self._shared is not None else _address(self._scratch / name)


def _address(path: Path) -> str:
    """Returns the address of a path of this machine: without a scheme, a cluster would look in its own file system."""
    return f"file://{path.absolute()}"


@contextlib.contextmanager
def open_spark(settings: EngineConfig, scratch: Path) -> Iterator[Engine]:
    """Yields Spark as an engine; arguments and errors as of `open_engine`."""
    shared = Address(f"{settings.scratch.rstrip('/')}/sail_jax-{uuid.uuid4().hex}") if settings.scratch else None
    if settings.spark_master.startswith("local"):  # else python3, whichever that is
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master(settings.spark_master).appName("sail_jax")
    # Sessions keep their time zone and their line of progress to themselves.
    defaults = {"spark.ui.showConsoleProgress": "false", "spark.sql.session.timeZone": "UTC"}
    # Rows of logs go to Python, where polars is quick with many at once and Spark has a process for each core.
    defaults |= {"spark.sql.execution.arrow.maxRecordsPerBatch": str(BATCH_ROWS)}
    defaults |= {"spark.executorEnv.POLARS_MAX_THREADS": "1"}
    for key, value in (defaults | settings.spark_options).items():
        builder = builder.config(key, value)
    try:
        session = builder.getOrCreate()
        session.sparkContext.setLogLevel("ERROR")
        connection = ibis.pyspark.connect(session)
    except (PySparkException, Py4JError, OSError, RuntimeError) as error:
        raise SailError(
            f"Spark does not start at config.logs.engine.spark_master={settings.spark_master!r} ({reason_of(error)}). "
            "It needs Java 17 (JAVA_HOME) and a master that answers; see config.logs.engine.spark_options."
        ) from error
    engine = _Spark(connection, session, scratch, shared)
    try:
        yield engine
    except (PySparkException, Py4JError, ConnectionError) as error:
        raise SailError(
            f"Spark stopped: {reason_of(error)}. Finished tables are kept; run the command again."
        ) from error
    finally:
        with contextlib.suppress(Py4JError, OSError, SailError):
            engine.close()
        with contextlib.suppress(Py4JError, OSError):
            session.stop()
