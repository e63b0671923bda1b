"""The items of the logs as numbers, so that billions of rows need no strings: a number is the rank of the id.

What is held in memory is the ids alone, once.
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
    """The items that pairs may have.

    Attributes:
        frame: item (String), code (UInt32, the rank of the item's id), test (Boolean, published after the cut; false
            where the time is not known), sorted by item.
        left_out: items of the logs that the item store lacks.
    """

    frame: pl.DataFrame
    left_out: int

    def __len__(self) -> int:
        return len(self.frame)

    def encode(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """Puts the item's number, as `item` (UInt32), in place of its id; null where the catalogue lacks the item."""
        codes = self.frame.lazy().select("item", "code")
        return rows.join(codes, on="item", how="left").drop("item").rename({"code": "item"})

    def ids(self) -> pa.Array:
        """[items] the ids, in the order of their numbers."""
        return self.frame["item"].to_arrow()

    def test(self) -> np.ndarray:
        """[items] bool, whether the item was published after the cut."""
        return self.frame["test"].to_numpy()


def build_catalogue(
    items: Iterable[pl.LazyFrame], published: pl.LazyFrame | None, cut: int, store: ItemStore | None
) -> Catalogue:
    """Numbers the items.

    Args:
        items: frames with a column item (String), of all logs.
        published: item and time; where an item has several rows, the first time counts. None where there are no times.
        cut: the last second of the train split.
        store: items that it lacks are left out; None for all.
    """
    ids = pl.concat([frame.select("item") for frame in items]).unique().collect(engine="streaming").sort("item")
    known = len(ids)
    if store is not None:
        ids = ids.filter(_in_store(ids["item"], store))
    frame = ids.with_row_index("code").select("item", pl.col("code").cast(pl.UInt32))
    late = pl.lit(False)
    if published is not None:
        first = published.group_by("item").agg(pl.col("time").min()).collect(engine="streaming")
        frame = frame.join(first, on="item", how="left", maintain_order="left")
        late = (pl.col("time") > cut).fill_null(False)
    return Catalogue(frame.select("item", "code", test=late), known - len(frame))


def _in_store(ids: pl.Series, store: ItemStore) -> pl.Series:
    found = [
        store.positions(ids.slice(start, _STORE_BATCH).to_list()) >= 0 for start in range(0, len(ids), _STORE_BATCH)
    ]
    return pl.Series(np.concatenate(found) if found else np.zeros(0, bool), dtype=pl.Boolean)


def number_texts(texts: pl.LazyFrame, column: str) -> pl.DataFrame:
    """The distinct texts of a column, sorted, with their rank as `code` (UInt32)."""
    distinct = texts.select(column).unique().collect(engine="streaming").sort(column)
    return distinct.with_row_index("code").with_columns(pl.col("code").cast(pl.UInt32))
