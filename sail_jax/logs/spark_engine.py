"""Runs the rules of pairs and sequences on Spark."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from sail_jax.config.logs import EngineConfig
from sail_jax.errors import SailError
from sail_jax.logs.engine import BATCH_ROWS, Engine, first_line

try:
    import pyspark
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession
except ImportError as error:
    raise SailError("The engine 'spark' needs PySpark: pip install 'sail_jax[spark]', and Java 17.") from error


class _Spark(Engine):
    name = "spark"

    def batches(self, table: ir.Table) -> Iterator[pa.Table]:
        # Spark would collect the rows on the driver: its sorted parts, read in the order of their names, are a stream.
        folder = self._scratch / f"sorted-{len(list(self._scratch.glob('sorted-*')))}.parquet"
        self._write(table, folder)
        for part in sorted(folder.glob("*.parquet")):
            with pq.ParquetFile(part) as file:
                for batch in file.iter_batches(BATCH_ROWS):
                    yield pa.Table.from_batches([batch])

    def _write(self, table: ir.Table, path: Path) -> None:
        table.to_parquet(path)


@contextlib.contextmanager
def open_spark(settings: EngineConfig, scratch: Path) -> Iterator[Engine]:
    """Yields Spark as an engine; arguments and errors as of `open_engine`."""
    builder = SparkSession.builder.master(settings.spark_master).appName("sail_jax")
    # Sessions keep their time zone and their line of progress to themselves.
    defaults = {"spark.ui.showConsoleProgress": "false", "spark.sql.session.timeZone": "UTC"}
    for key, value in (defaults | settings.spark_options).items():
        builder = builder.config(key, value)
    try:
        session = builder.getOrCreate()
        session.sparkContext.setLogLevel("ERROR")
        connection = ibis.pyspark.connect(session)
    except (PySparkException, Py4JError, OSError, RuntimeError) as error:
        raise SailError(
            f"Spark does not start at config.logs.engine.spark_master={settings.spark_master!r} ({first_line(error)}). "
            "It needs Java 17 (JAVA_HOME) and a master that answers; see config.logs.engine.spark_options."
        ) from error
    engine = _Spark(connection, scratch)
    engine.version = pyspark.__version__
    try:
        yield engine
    except (PySparkException, Py4JError, ConnectionError) as error:
        raise SailError(
            f"Spark stopped: {first_line(error)} Finished tables are kept; run the command again."
        ) from error
    finally:
        with contextlib.suppress(Py4JError, OSError):
            session.stop()
