"""Opens an engine by its name: DuckDB inside of the process, or Spark."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sail_jax.config.logs import EngineConfig
from sail_jax.errors import SailError
from sail_jax.logs.addresses import Address
from sail_jax.logs.duckdb_engine import open_duckdb
from sail_jax.logs.engine import Engine
from sail_jax.logs.outputs import Output
from sail_jax.logs.scratch import scratch_folder

ENGINES = ("duckdb", "spark")


class Build(NamedTuple):
    """What a build works with: an engine, where it writes, and an empty folder for its files."""

    engine: Engine
    output: Output
    scratch: Path


@contextlib.contextmanager
def open_build(name: str, settings: EngineConfig, output: Path | Address, scratch: str) -> Iterator[Build]:
    """Yields an engine that writes to a folder or an address, and closes it.

    Args:
        name: one of `ENGINES`.
        settings: `config.logs.engine`; rows between the rules lie in the output where it names no other place.
        output: a folder, which is made, or an address.
        scratch: name of the scratch folder within that folder.

    Raises:
        SailError: as by `open_engine`; or the engine does not write to an address.
    """
    with contextlib.ExitStack() as held:
        if isinstance(output, Address):
            folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="sail-jax-")))
            settings = dataclasses.replace(settings, scratch=settings.scratch or str(output))
        else:
            folder = output
            folder.mkdir(parents=True, exist_ok=True)
        files = held.enter_context(scratch_folder(folder / scratch))
        engine = held.enter_context(open_engine(name, settings, files))
        yield Build(engine, engine.output(output, folder), files)


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
