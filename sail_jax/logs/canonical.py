"""The logs as the rules read them: Parquet of canonical columns, texts and words in plain form.

The reader checks and converts (`sail_jax.logs.reader`).
"""

from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sail_jax.config import Config
from sail_jax.logs.conversion import TEXTS, plain_columns
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


def write_ids(ids: Iterator[str], path: Path) -> None:
    """Writes ids as a Parquet file with the column `item`."""
    schema = pa.schema([("item", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        while batch := [item for item, _ in zip(ids, range(_IDS_AT_ONCE), strict=False)]:
            writer.write_table(pa.table([batch], schema=schema))


def write_canonical(config: Config, source: Path, log: str, columns: Collection[str], path: Path) -> None:
    """Streams a log into a Parquet file with some columns of `SCHEMAS`, without unusable rows."""
    frame = SCANS[log](config, source).with_columns(**plain_columns(log))
    frame = frame.drop_nulls(TEXTS[log]) if log in TEXTS else frame
    frame.select(*columns).sink_parquet(path, compression="lz4", maintain_order=False, engine="streaming")
