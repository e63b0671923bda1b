"""Numbers the items of the logs by the rank of their ids, so that large tables hold integers.

Only the ids are held in memory, once.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
import polars as pl
import pyarrow as pa

from sail_jax.data.store import ItemStore

_STORE_BATCH = 65_536


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """The items that may occur in pairs, with their numbers.

    Attributes:
        frame: item (String), code (UInt32, the rank of the item's id), test (Boolean, published after the cut; false
            where the time is not known), sorted by item.
        left_out: how many items of the logs are not in the item store.
    """

    frame: pl.DataFrame
    left_out: int

    def __len__(self) -> int:
        return len(self.frame)

    def encode(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """Replaces the column `item` by the item's number (UInt32); null for an item outside the catalogue."""
        codes = self.frame.lazy().select("item", "code")
        return rows.join(codes, on="item", how="left").drop("item").rename({"code": "item"})

    def ids(self) -> pa.Array:
        """[items] the ids, in the order of the numbers."""
        return self.frame["item"].to_arrow()

    def test(self) -> np.ndarray:
        """[items] bool, whether the item was published after the cut."""
        return self.frame["test"].to_numpy()


def build_catalogue(
    items: Iterable[pl.LazyFrame], published: pl.LazyFrame | None, cut: int, store: ItemStore | None
) -> Catalogue:
    """Collects the items of the logs and numbers them.

    Args:
        items: frames with a column item (String), of all logs.
        published: item and time; the first time counts if an item has several rows. None if there are no times.
        cut: the last second of the train split.
        store: items that are not in it are left out; None for all items.
    """
    ids = pl.concat([frame.select("item") for frame in items]).unique().collect(engine="streaming").sort("item")
    known = len(ids)
    if store is not None:
        ids = ids.filter(_in_store(ids["item"], store))
    frame = ids.with_row_index("code").select("item", pl.col("code").cast(pl.UInt32))
    is_test = pl.lit(False)
    if published is not None:
        first = published.group_by("item").agg(pl.col("time").min()).collect(engine="streaming")
        frame = frame.join(first, on="item", how="left", maintain_order="left")
        is_test = (pl.col("time") > cut).fill_null(False)
    return Catalogue(frame.select("item", "code", test=is_test), known - len(frame))


def _in_store(ids: pl.Series, store: ItemStore) -> pl.Series:
    found = [
        store.positions(ids.slice(start, _STORE_BATCH).to_list()) >= 0 for start in range(0, len(ids), _STORE_BATCH)
    ]
    return pl.Series(np.concatenate(found) if found else np.zeros(0, bool), dtype=pl.Boolean)


def number_texts(texts: pl.LazyFrame, column: str) -> pl.DataFrame:
    """The distinct texts of a column, sorted, with their rank as `code` (UInt32)."""
    distinct = texts.select(column).unique().collect(engine="streaming").sort(column)
    return distinct.with_row_index("code").with_columns(pl.col("code").cast(pl.UInt32))
