"""The logs of a build: files of this machine are read here, those at addresses by the engine."""

import contextlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import ibis.expr.types as ir

from sail_jax.config import Config
from sail_jax.data.store import ItemStore
from sail_jax.logs import reader
from sail_jax.logs.addresses import Address, inside, read_here
from sail_jax.logs.canonical import SCHEMAS, write_canonical, write_ids
from sail_jax.logs.engine import Engine
from sail_jax.logs.engines import open_engine


class LogSource:
    """Checks, counts and opens logs.

    Args:
        config: the experiment.
        source: the folder or the address to which the paths of `config.logs` are relative.
        engine: reads what is at addresses.

    Raises:
        SailError: by all methods, where a log or a column is missing, or cannot be used.
    """

    def __init__(self, config: Config, source: Path | Address, engine: Engine):
        self._config, self._source, self._engine = config, source, engine
        named = {
            name: inside(source, getattr(config.logs, name).path)
            for name in reader.LOGS
            if reader.has_log(config, name)
        }
        self._there = {name: where for name, where in named.items() if isinstance(where, Address)}
        if self._there:
            name, address = next(iter(self._there.items()))
            self._read = engine.logs_at(config, f"config.logs.{name}.path", address)

    def check(self, names: Collection[str], timed: Collection[str], beside: Collection[str] = ()) -> None:
        """Checks the rows of some logs, the times of some, and that settings beside them name what is there."""
        reader.check_present(self._config, self._source, [*names, *beside])
        reader.check_split(self._config)
        reader.check_rows(self._config, self._source, [name for name in names if name not in self._there])
        for name in names:
            if name in self._there:
                self._read.check_rows(name, self._there[name])
        reader.check_times(self._config, self._source, [name for name in timed if name not in self._there])
        for name in timed:
            if name in self._there:
                self._read.check_times(name, self._there[name])

    def cut(self) -> int:
        """Returns the last second of the train split; see `reader.cut_time`."""
        return reader.cut_of(self._config, self._span)

    def count_rows(self, name: str) -> int:
        """Counts the rows of a log, the unusable ones too."""
        if name in self._there:
            return self._read.facts(name, self._there[name])["rows"]
        return reader.count_rows(self._config, self._source, name)

    def open(
        self, logs: Mapping[str, Collection[str]], store: ItemStore | None, scratch: Path, show: Callable[[str], None]
    ) -> dict[str, ir.Table]:
        """Writes some columns of logs, and the ids of the store; returns them as tables of the engine.

        Args:
            logs: log -> its canonical columns that are read.
            store: the items, if they are restricted.
            scratch: the folder of this machine that is written to.
            show: is told what is in work.
        """
        tables = {}
        for name, columns in logs.items():
            show(f"reading {getattr(self._config.logs, name).path}")
            tables[name] = self._table(name, columns, scratch / f"log-{name}.parquet")
        if store is not None:
            write_ids(store.item_ids(), scratch / "store.parquet")
            tables["store"] = self._engine.read(scratch / "store.parquet")
        return tables

    def _table(self, name: str, columns: Collection[str], path: Path) -> ir.Table:
        if name in self._there:
            types = {column: SCHEMAS[name][column] for column in columns}
            return self._read.table(name, self._there[name], types)
        write_canonical(self._config, self._source, name, columns, path)
        return self._engine.read(path)

    def vectors(self, path: str) -> Path:
        """Returns where this machine reads the vectors that a setting names; errors as of `read_here`."""
        return read_here(inside(self._source, path))

    def versions(self) -> dict[str, list[int]]:
        """Returns the files at addresses with their sizes and times."""
        found: dict[str, list[int]] = {}
        for address in self._there.values():
            found |= self._read.versions(address)
        return found

    def passed_over(self) -> list[str]:
        """Returns a line for each folder of a log or of vectors, on what is not read of it, if anything is."""
        lines = [self._read.passed_over(address) for address in self._there.values()]
        return [*filter(None, lines), *reader.passed_over_beside(self._config, self._source)]

    def facts(self, names: Collection[str]) -> dict[str, dict[str, Any]]:
        """Returns, of those logs that are at addresses, how many rows they have, and how many lack what."""
        return {name: self._read.facts(name, self._there[name]) for name in names if name in self._there}

    def _span(self, name: str) -> tuple[int | None, int | None]:
        if name in self._there:
            facts = self._read.facts(name, self._there[name])
            return facts["earliest"], facts["latest"]
        return reader.time_span(self._config, self._source, name)


@contextlib.contextmanager
def open_source(config: Config, source: Path | Address, engine: str) -> Iterator[LogSource]:
    """Yields the logs with an engine that is needed for no more than to check them.

    Args:
        config: the experiment.
        source: as of `LogSource`.
        engine: the dialect whose SQL is asked for; only Spark reads what is at an address.
    """
    with tempfile.TemporaryDirectory() as folder:
        there = any(isinstance(inside(source, getattr(config.logs, name).path), Address) for name in reader.LOGS)
        name = "spark" if there and engine == "spark" else "duckdb"
        with open_engine(name, config.logs.engine, Path(folder)) as found:
            yield LogSource(config, source, found)
