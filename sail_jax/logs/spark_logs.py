"""Reads logs at addresses by Spark: checks, counts and canonical rows.

This machine lists the files and reads their footers or headers. Rows are read by the machines of Spark, which run the
same polars expressions on them as the reader does on files of this machine (`sail_jax.logs.conversion`).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ibis
import ibis.expr.types as ir
import polars as pl
import pyarrow as pa
from ibis.formats.pyarrow import PyArrowType
from pyspark import cloudpickle
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema

from sail_jax.config import Config
from sail_jax.data.ingest.sources import TABLE_SUFFIXES
from sail_jax.errors import SailError
from sail_jax.files import PassedOver
from sail_jax.logs import spark_batches
from sail_jax.logs.addresses import Address
from sail_jax.logs.conversion import (
    TEXTS,
    TimeCheck,
    canonical_columns,
    columns_of,
    plain_columns,
    required_columns,
    time_check,
)
from sail_jax.logs.spark_files import Entry, SparkFiles
from sail_jax.logs.spark_tables import UNREADABLE, SparkTable, open_tables, unreadable_row

_FACTS = {"first": pa.string(), "shown": pa.string()}  # others are numbers
# The machines of Spark need not have this package.
cloudpickle.register_pickle_by_value(spark_batches)


class _Parts(NamedTuple):
    """Files of a log with the same columns and types, as they are read."""

    table: SparkTable
    rows: DataFrame
    columns: dict[str, pl.Expr]
    check: TimeCheck | None


class SparkLogs:
    """The logs of a config that are at addresses.

    Args:
        session: reads them.
        files: lists them.
        config: the experiment.
        keep: writes rows to the scratch folder under a name, and returns the table in it.
    """

    def __init__(
        self, session: SparkSession, files: SparkFiles, config: Config, keep: Callable[[DataFrame, str], ir.Table]
    ):
        self._session, self._files, self._config, self._keep = session, files, config, keep
        self._entries_of = functools.cache(self._list)
        self._parts_of = functools.cache(self._open)
        self._facts_of = functools.cache(self._count)

    def versions(self, address: Address) -> dict[str, list[int]]:
        """Returns the files of a log with their sizes and times."""
        return {f"{address}/{of.name}": [of.size, of.modified] for of in self._entries_of(address) if not of.is_folder}

    def passed_over(self, address: Address) -> str:
        """Returns a line on what lies in the folder of a log and is not read; empty for nothing."""
        others = PassedOver()
        for of in self._entries_of(address):
            if of.name and not _is_read(of):
                others.add(of.name + "/" * of.is_folder)
        return f"{address}: {others}" if str(others) else ""

    def check_rows(self, name: str, address: Address) -> None:
        """Checks that all rows of a log can be read."""
        self._facts_of(name, address)

    def check_times(self, name: str, address: Address) -> None:
        """Checks the times of a log; errors as of `reader.check_times`."""
        for parts, facts in zip(self._parts_of(name, address), self._facts_of(name, address), strict=True):
            if parts.check is not None:
                parts.check.require(facts, parts.table.files[0] if len(parts.table.files) == 1 else address)

    def facts(self, name: str, address: Address) -> dict[str, Any]:
        """Returns rows, those without_* a canonical column, kept, and the earliest and latest time of these."""
        names = (
            "rows",
            *(f"without_{column}" for column in self._required(name, address)),
            "kept",
            "earliest",
            "latest",
        )
        found = spark_batches.together(self._facts_of(name, address))
        return {key: found[key] for key in names}

    def table(self, name: str, address: Address, columns: Mapping[str, str]) -> ir.Table:
        """Returns some canonical columns of a log, without unusable rows; `columns` has their types of Ibis."""
        schema = pa.schema([(column, _spark_type(of)) for column, of in columns.items()])
        plain = {
            column: of for column, of in plain_columns(name).items() if column in columns or column in TEXTS.values()
        }
        texts = [TEXTS[name]] if name in TEXTS else []
        frames = []
        for parts in self._parts_of(name, address):
            steps = spark_batches.packed(parts.columns, required_columns(name, parts.columns), plain, texts)
            frames.append(parts.rows.mapInArrow(spark_batches.converter(steps, schema), from_arrow_schema(schema)))
        return self._keep(functools.reduce(DataFrame.union, frames), f"log-{name}.parquet")

    def _list(self, address: Address) -> list[Entry]:
        return self._files.entries(address) or []

    def _open(self, name: str, address: Address) -> list[_Parts]:
        tables = open_tables(self._session, self._files, self._named(name, address))
        return [self._read(name, table) for table in tables]

    def _named(self, name: str, address: Address) -> list[str]:
        """Returns the files of a log, by name."""
        entries = self._entries_of(address)
        change = f"Change config.logs.{name}.path, or set it to '' if there is none."
        if not entries:
            raise SailError(f"There is no {address}, or nothing in it. {change}")
        files = [address / of.name for of in entries if _is_read(of)] if entries[0].name else [address]
        found = sorted({suffix for suffix in TABLE_SUFFIXES for file in files if file.lower().endswith(suffix)})
        if len(found) != 1:
            held = f"{address} is {' and '.join(found)}" if found else f"{address} is none of what Spark reads there"
            raise SailError(f"{held}; write it as one of {', '.join(TABLE_SUFFIXES)}. {change}")
        return files

    def _read(self, name: str, table: SparkTable) -> _Parts:
        """Opens files of one schema, of which only the columns are read that the settings name."""
        rows = table.rows
        schema = pl.from_arrow(to_arrow_schema(rows.drop(UNREADABLE).schema).empty_table()).schema
        log = columns_of(self._config, name, table.files[0], schema)
        columns = canonical_columns(self._config, name, log)
        has_time = bool(getattr(self._config.logs, name).time)
        check = time_check(self._config, name, log, schema) if has_time else None
        used = {root for column in (*columns.values(), *_times(check).values()) for root in column.meta.root_names()}
        quoted = ["`{}`".format(of.replace("`", "``")) for of in rows.columns if of in used or of == UNREADABLE]
        return _Parts(table, rows.select(*quoted), columns, check)

    def _count(self, name: str, address: Address) -> list[dict[str, Any]]:
        """Returns the facts of each group of files."""
        return [self._count_parts(name, parts) for parts in self._parts_of(name, address)]

    def _count_parts(self, name: str, parts: _Parts) -> dict[str, Any]:
        required, times = required_columns(name, parts.columns), _times(parts.check)
        if UNREADABLE in parts.rows.columns:
            times["unreadable"] = pl.col(UNREADABLE).is_not_null().sum()
        names = ["rows", *times, *(f"without_{column}" for column in required), "kept", "earliest", "latest"]
        schema = pa.schema([(key, _FACTS.get(key, pa.int64())) for key in names])
        steps = spark_batches.packed(parts.columns, required, times)
        found = parts.rows.mapInArrow(spark_batches.counter(steps, schema), from_arrow_schema(schema)).collect()
        none = {key: None if key in (*_FACTS, "earliest", "latest", "last") else 0 for key in names}
        facts = spark_batches.together([row.asDict() for row in found] or [none])
        if facts.pop("unreadable", 0):
            raise unreadable_row(parts.table)
        return facts

    def _required(self, name: str, address: Address) -> list[str]:
        return required_columns(name, self._parts_of(name, address)[0].columns)


def _times(check: TimeCheck | None) -> dict[str, pl.Expr]:
    return {key: of for key, of in check.facts.items() if key != "rows"} if check else {}


def _is_read(entry: Entry) -> bool:
    return not entry.is_folder and entry.name.lower().endswith(TABLE_SUFFIXES) and not entry.name.startswith((".", "_"))


def _spark_type(name: str) -> pa.DataType:
    """Returns the type of a canonical column, which Spark has signed."""
    found = PyArrowType.from_ibis(ibis.dtype(name))
    return pa.int16() if found == pa.uint8() else found
