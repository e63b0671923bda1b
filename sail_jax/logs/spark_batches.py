"""What the machines of Spark do with the rows of logs.

They need Python with polars and pyarrow, and not this package: functions of this module travel to them by value.
Expressions travel as bytes, which only the same polars reads.
"""

import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import polars as pl
import pyarrow as pa

Convert = Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]


def packed(*expressions: Any) -> tuple[str, bytes]:
    """Returns expressions as bytes, with the version of polars that reads them."""
    return pl.__version__, pickle.dumps(expressions)


def unpacked(version: str, expressions: bytes) -> tuple:
    """Returns what `packed` took.

    Raises:
        RuntimeError: this polars is another one.
    """
    if pl.__version__ != version:
        raise RuntimeError(
            f"polars is {pl.__version__} on the machines of Spark and {version} here; install one of them"
        )
    return pickle.loads(expressions)


def converter(steps: tuple[str, bytes], schema: pa.Schema) -> Convert:
    """Returns what turns batches of a log into canonical rows.

    Args:
        steps: `packed` columns, required, plain and texts: expressions of the canonical columns, those of them that no
            row may lack, expressions of plain columns, and those of them that no row may lack.
        schema: the columns that are kept.
    """

    def convert(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        columns, required, plain, texts = unpacked(*steps)
        for batch in batches:
            rows = pl.from_arrow(pa.Table.from_batches([batch])).lazy().select(**columns).drop_nulls(required)
            rows = rows.with_columns(**plain)
            rows = rows.drop_nulls(texts) if texts else rows
            yield from rows.select(schema.names).collect().to_arrow().cast(schema).to_batches()

    return convert


def counter(steps: tuple[str, bytes], schema: pa.Schema) -> Convert:
    """Returns what turns the batches of a part of a log into one row of facts.

    Args:
        steps: `packed` columns and required, as of `converter`, and expressions of facts about times.
        schema: of the facts; see `together`.
    """

    def count(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        columns, required, times = unpacked(*steps)
        found = []
        for batch in batches:
            rows = pl.from_arrow(pa.Table.from_batches([batch])).lazy()
            canonical = rows.select(**columns).collect()
            facts = rows.select(rows=pl.len(), **times).collect().row(0, named=True)
            for column in required:
                left = canonical.drop_nulls(column)
                facts[f"without_{column}"] = len(canonical) - len(left)
                canonical = left
            facts["kept"] = len(canonical)
            facts |= {"earliest": canonical["time"].min(), "latest": canonical["time"].max()}
            found.append(facts)
        yield pa.RecordBatch.from_pylist([together(found)] if found else [], schema)

    return count


def together(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the facts of all rows, from those of their parts in order.

    Args:
        found: rows, kept, bad and without_* are counts; first is a value of the first part that has one; earliest the
            least and latest the greatest number; shown belongs to the greatest last.
    """
    result: dict[str, Any] = {}
    for key in found[0]:
        values = [facts[key] for facts in found if facts[key] is not None]
        if key in ("first", "earliest", "latest", "last", "shown"):
            pick = {"earliest": min, "latest": max, "last": max}.get(key, lambda values: values[0])
            result[key] = pick(values) if values else None
        else:
            result[key] = sum(values)
    if "shown" in result:
        last = result["last"]
        result["shown"] = next((facts["shown"] for facts in found if facts["last"] == last), None)
    return result
