"""Builds users' histories of positive items from the events of a log, by partitions of users.

A history holds each item once, at its first event with enough positive behaviours, in the order of (time, item id). The
entries before a position therefore contain no information about later ones.

Axis letters: U users, N entries of the histories, I items.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
import polars as pl

from sail_jax.data.store import ItemStore
from sail_jax.items import item_key

_HALF = 1 << 32


@dataclasses.dataclass(frozen=True)
class Histories:
    """The histories of some users.

    Attributes:
        users: U ids.
        user_keys: [U] uint64 hashes of the ids, the same everywhere (`item_key`).
        user_hashes: [U] uint64 other hashes of the ids, those of `user_hash`.
        starts: [U + 1] int64; entries starts[u] to starts[u + 1] - 1 are of user u, the oldest first.
        item: [N] int64, the entry's item, as an index into `items`.
        time: [N] int64 seconds.
        items: I ids, ascending.
        item_keys: [I] uint64 hashes of the ids (`item_key`).
    """

    users: np.ndarray
    user_keys: np.ndarray
    user_hashes: np.ndarray
    starts: np.ndarray
    item: np.ndarray
    time: np.ndarray
    items: np.ndarray
    item_keys: np.ndarray

    @functools.cached_property
    def user(self) -> np.ndarray:
        """[N] int64, the entry's user, as an index into `users`."""
        return np.repeat(np.arange(len(self.users)), np.diff(self.starts))


def user_hash() -> pl.Expr:
    """A 64-bit hash of the column `user`, the same in every process: it starts the MD5."""
    return pl.col("user").map_elements(md5_key, return_dtype=pl.UInt64)


def md5_key(text: str) -> int:
    """The first 64 bits of the MD5 of a text."""
    return int(hashlib.md5(text.encode()).hexdigest()[:16], 16)


def partition(frame: pl.LazyFrame, folder: Path, column: str, parts: int) -> list[Path]:
    """Partitions rows by a hash of a column, in one streaming pass.

    Args:
        frame: the rows.
        folder: the folder of the parts.
        column: rows with the same value get into the same part.
        parts: the number of parts.

    Returns:
        The folders of the non-empty parts, in the order of the hash, which does not depend on the number of parts.
    """
    # The high 32 bits, scaled to [0, parts): the order of parts is the order of hashes.
    part = pl.col(column).map_elements(md5_key, return_dtype=pl.UInt64) // _HALF * parts // _HALF
    frame.with_columns(part=part).sink_parquet(pl.PartitionBy(folder, key="part", include_key=False), mkdir=True)
    return sorted(folder.glob("part=*"), key=lambda path: int(path.name.partition("=")[2]))


def read_part(folder: Path) -> pl.DataFrame:
    """Reads the rows of a part, in no particular order."""
    return pl.read_parquet(folder / "*.parquet", hive_partitioning=False)


def known_items(events: pl.DataFrame, store: ItemStore) -> pl.DataFrame:
    """Filters the events to items of the store."""
    items = events["item"].unique()
    known = items.filter(pl.Series(store.positions(items.to_list()) >= 0))
    return events.filter(pl.col("item").is_in(known.implode()))


def histories_of(events: pl.DataFrame, positives: int) -> Histories:
    """Builds the histories of the users of one part.

    Args:
        events: user, item, time, positives.
        positives: the least number of positive behaviours with which an event counts.
    """
    rows = (
        events.lazy()
        .filter(pl.col("positives") >= positives)
        .group_by("user", "item")
        .agg(pl.col("time").min())
        .with_columns(hash=user_hash())
        .sort("hash", "user", "time", "item")
        .collect()
    )
    users = rows.select("user", "hash").unique(maintain_order=True)
    items, item = np.unique(rows["item"].to_numpy().astype(object), return_inverse=True)
    # The rows of a user are consecutive, so that the sizes, in order of appearance, give where each user begins.
    sizes = rows.group_by("user", maintain_order=True).len()["len"].to_numpy()
    return Histories(
        users=users["user"].to_numpy().astype(object),
        user_keys=hashes_of(users["user"]),
        user_hashes=users["hash"].to_numpy(),
        starts=np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]),
        item=item.astype(np.int64),
        time=rows["time"].to_numpy(),
        items=items,
        item_keys=hashes_of(items),
    )


def hashes_of(ids: Collection[str]) -> np.ndarray:
    """[n] uint64 hashes of ids, the same everywhere (`item_key`)."""
    return np.fromiter(map(item_key, ids), np.uint64, len(ids))
