"""Opens an engine by its name: DuckDB inside of the process, or Spark."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sail_jax.config.logs import EngineConfig
from sail_jax.errors import SailError
from sail_jax.logs.duckdb_engine import open_duckdb
from sail_jax.logs.engine import Engine

ENGINES = ("duckdb", "spark")


@contextlib.contextmanager
def open_engine(name: str, settings: EngineConfig, scratch: Path) -> Iterator[Engine]:
    """Yields an engine, and closes it.

    Args:
        name: one of `ENGINES`.
        settings: `config.logs.engine`.
        scratch: an empty folder for its files.

    Raises:
        SailError: there is no such engine, it is not installed, it does not start, or it stops half-way.
    """
    if name not in ENGINES:
        raise SailError(f"There is no engine {name!r}. Use one of {', '.join(ENGINES)}.")
    if name == "duckdb":
        opened = open_duckdb(settings, scratch)
    else:
        from sail_jax.logs.spark_engine import open_spark  # noqa: PLC0415 PySpark is an extra

        opened = open_spark(settings, scratch)
    with opened as engine:
        yield engine


def sql_dialect(engine: str) -> str:
    """Returns the name by which `ibis.to_sql` knows an engine's SQL."""
    return "databricks" if engine == "spark" else engine  # Ibis writes Spark's own dialect in a session alone
