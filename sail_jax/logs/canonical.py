"""The logs as the rules read them: Parquet of canonical columns, texts and words in plain form.

The reader checks and converts (`sail_jax.logs.reader`); texts are normalised here, because NFKC and the classes of
Unicode letters are not the same in all engines.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import ibis.expr.types as ir
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from sail_jax.config import Config
from sail_jax.data.store import ItemStore
from sail_jax.logs.engine import Engine
from sail_jax.logs.reader import scan_events, scan_hashtags, scan_items, scan_live, scan_results

# Log -> column -> type of Ibis.
SCHEMAS = {
    "events": {"user": "string", "item": "string", "time": "int64", "positives": "uint8"},
    "searches": {"user": "string", "query": "string", "item": "string", "time": "int64", "clicked": "boolean"},
    "live": {"user": "string", "item": "string", "time": "int64", "seconds": "float32"},
    "hashtags": {"item": "string", "hashtag": "string", "time": "int64"},
    "catalogue": {"item": "string", "time": "int64", "labels": "array<string>", "words": "array<string>"},
}
SCANS = {
    "events": scan_events,
    "searches": scan_results,
    "live": scan_live,
    "hashtags": scan_hashtags,
    "catalogue": scan_items,
}
_IDS_AT_ONCE = 65_536
# One character of a script without spaces, or a run of letters and digits.
_WORD = r"\p{Han}|\p{Hiragana}|\p{Katakana}|[\p{L}\p{M}\p{N}&&[^\p{Han}\p{Hiragana}\p{Katakana}]]+"


def open_logs(
    config: Config,
    source: Path,
    logs: Mapping[str, Collection[str]],
    store: ItemStore | None,
    engine: Engine,
    scratch: Path,
    show: Callable[[str], None],
) -> dict[str, ir.Table]:
    """Writes some columns of logs, and the ids of the store; returns them as tables of the engine.

    Args:
        logs: log -> its columns that are read.
    """
    tables = {}
    for log, columns in logs.items():
        show(f"reading {getattr(config.logs, log).path}")
        write_canonical(config, source, log, columns, scratch / f"log-{log}.parquet")
        tables[log] = engine.read(scratch / f"log-{log}.parquet")
    if store is not None:
        _write_ids(store.item_ids(), scratch / "store.parquet")
        tables["store"] = engine.read(scratch / "store.parquet")
    return tables


def _write_ids(ids: Iterator[str], path: Path) -> None:
    schema = pa.schema([("item", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        while batch := [item for item, _ in zip(ids, range(_IDS_AT_ONCE), strict=False)]:
            writer.write_table(pa.table([batch], schema=schema))


def write_canonical(config: Config, source: Path, log: str, columns: Collection[str], path: Path) -> None:
    """Streams a log into a Parquet file with some columns of `SCHEMAS`, without unusable rows."""
    frame = SCANS[log](config, source)
    if log == "searches":
        frame = frame.with_columns(query=plain_text(pl.col("query"))).drop_nulls("query")
    elif log == "hashtags":
        tag = plain_text(pl.col("hashtag").str.strip_chars().str.strip_chars_start("#＃"))
        frame = frame.with_columns(hashtag=tag).drop_nulls("hashtag")
    elif log == "catalogue":
        labels = pl.col("labels").list.eval(pl.element().str.strip_chars().replace("", None).drop_nulls())
        frame = frame.with_columns(labels=labels, words=words_of(pl.col("summary")))
    frame.select(*columns).sink_parquet(path, compression="lz4", maintain_order=False, engine="streaming")


def plain_text(text: pl.Expr) -> pl.Expr:
    """Normalises a text: lower case, NFKC, single spaces, stripped; null if nothing is left."""
    plain = text.str.normalize("NFKC").str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()
    return pl.when(plain != "").then(plain)


def words_of(text: pl.Expr) -> pl.Expr:
    """Returns the words of a text (List[String]) in lower case and NFKC; none for null."""
    return text.str.normalize("NFKC").str.to_lowercase().str.extract_all(_WORD).fill_null([])
