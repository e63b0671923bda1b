"""Facts about items (labels, vectors, consumers), and the similarity of an item and a target.

Axis letters: I items of the histories at hand, P pairs (item, target), D width of the vectors.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import scipy.sparse as sp

from sail_jax.errors import SailError
from sail_jax.logs.sequences.histories import hashes_of, partition, read_part, user_hash
from sail_jax.logs.sequences.item_lists import ItemLists, ranges
from sail_jax.logs.vector_files import read_vectors
from sail_jax.vectors.embedding_set import EmbeddingSet, is_complete
from sail_jax.vectors.unit import unit_rows

_BATCH = 65_536
_PAIRS = 8192  # pairs whose vectors, or users, are in memory at a time


# ---------------------------------------------------------------------------------------------------------- labels


def write_labels(folder: Path, items: pl.LazyFrame) -> ItemLists:
    """Writes the labels of items as numbers; holds only the distinct labels in memory.

    Args:
        folder: the folder to write to.
        items: item, labels; see `sail_jax.logs.reader.scan_items`.
    """
    numbers: dict[str, int] = {}

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for rows in items.select("item", "labels").collect_batches(chunk_size=_BATCH, engine="streaming"):
            labels = rows["labels"].to_list()
            flat = [numbers.setdefault(label, len(numbers)) for some in labels for label in some]
            yield hashes_of(rows["item"]), np.array([len(some) for some in labels]), np.array(flat, np.int32)

    return ItemLists.write(folder, np.int32, batches())


class Labels:
    """The labels of the items at hand.

    Args:
        lists: what `write_labels` returned.
        keys: [I] uint64.
        level: the position of the cluster among an item's labels; the last label if there are fewer.

    Attributes:
        known: [I] bool, whether an item has labels.
        cluster: [I] int64, the number of the label that is the cluster; -1 for an item without labels.
    """

    def __init__(self, lists: ItemLists, keys: np.ndarray, level: int):
        starts, values = lists.find(keys)
        sizes = np.diff(starts)
        self.known = sizes > 0
        self.cluster = np.full(len(keys), -1, np.int64)
        self.cluster[self.known] = values[(starts[:-1] + np.minimum(level, sizes - 1))[self.known]]
        _, values = np.unique(values, return_inverse=True)  # consecutive numbers keep the matrix narrow
        self._sets = sp.csr_matrix((np.ones(len(values), np.int32), values, starts), (len(keys), len(values)))
        self._sets.sum_duplicates()
        self._sets.data[:] = 1
        self._sizes = np.diff(self._sets.indptr)

    def jaccard(self, item: np.ndarray, target: np.ndarray) -> np.ndarray:
        """[P] float64, the Jaccard similarity of two items' label sets; 0 if both are empty."""
        both = np.asarray(self._sets[item].multiply(self._sets[target]).sum(axis=1)).ravel()
        return both / np.maximum(self._sizes[item] + self._sizes[target] - both, 1)


# ------------------------------------------------------------------------------------------------------- embeddings


def write_embeddings(folder: Path, path: Path) -> tuple[ItemLists, int]:
    """Copies content embeddings into lists that can be looked up by item.

    Args:
        folder: the folder to write to.
        path: a folder written by `embed`, or Parquet of `id` (or `item_id`) and `vector`, or a folder of its parts.

    Returns:
        The unit vectors, and their width.

    Raises:
        SailError: there are no vectors, or they cannot be read.
    """
    width = 0

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        nonlocal width
        for ids, vectors in (
            EmbeddingSet(path).batches(finite=True) if is_complete(path) else read_vectors(path, "--embeddings")
        ):
            width = vectors.shape[1]
            yield hashes_of(ids), np.full(len(ids), width), unit_rows(vectors).ravel()

    lists = ItemLists.write(folder, np.float32, batches())
    if not width:
        raise SailError(f"{path} holds no vectors: embed the items, or leave out --embeddings.")
    return lists, width


class Embeddings:
    """The content embeddings of the items at hand.

    Args:
        lists: the lists that `write_embeddings` returned.
        width: D.
        keys: [I] uint64.

    Attributes:
        known: [I] bool, whether an item has a non-zero vector.
    """

    def __init__(self, lists: ItemLists, width: int, keys: np.ndarray):
        self._lists, self._width, self._keys = lists, width, keys
        self.known = np.zeros(len(keys), bool)
        for start in range(0, len(keys), _PAIRS):
            self.known[start : start + _PAIRS] = self._vectors(np.arange(start, min(start + _PAIRS, len(keys)))).any(1)

    def _vectors(self, item: np.ndarray) -> np.ndarray:
        """[n, D]; zeros for an item without a vector."""
        starts, values = self._lists.find(self._keys[item])
        vectors = np.zeros((len(item), self._width), np.float32)
        vectors[np.diff(starts) > 0] = values.reshape(-1, self._width)
        return vectors

    def cosine(self, item: np.ndarray, target: np.ndarray) -> np.ndarray:
        """[P] float64, the cosine of item and target; 0 if one of them has no vector."""

        def some(part: slice) -> np.ndarray:
            targets, place = np.unique(target[part], return_inverse=True)
            return np.einsum("pd,pd->p", self._vectors(item[part]), self._vectors(targets)[place], dtype=np.float64)

        return _in_pieces(some, len(item))


# --------------------------------------------------------------------------------------------------------- consumers


def write_consumers(folder: Path, events: pl.LazyFrame, users: int, parts: int) -> ItemLists:
    """Writes the consumers of each item: up to `users` of them, those with the lowest hashes.

    All items use the same hash of a user, so that the samples of two items can be compared ("bottom-k sketches",
    Cohen and Kaplan 2007).

    Args:
        folder: the folder to write to.
        events: item, user, of the events that count; may contain duplicates.
        users: most users kept per item.
        parts: the number of parts in which the items are processed.
    """
    scattered = folder.with_name(f"{folder.name}.parts")
    paths = partition(events.select("item", users=user_hash()), scattered, "item", parts)

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for path in paths:
            pairs = read_part(path).unique().sort("item", "users")
            kept = pairs.group_by("item", maintain_order=True).head(users)
            sizes = kept.group_by("item", maintain_order=True).len()
            yield hashes_of(sizes["item"]), sizes["len"].to_numpy(), kept["users"].to_numpy()

    return ItemLists.write(folder, np.uint64, batches())


class Consumers:
    """The users who consumed the items at hand.

    Args:
        lists: what `write_consumers` returned.
        users: the limit that `write_consumers` was given.
        keys: [I] uint64.
    """

    def __init__(self, lists: ItemLists, users: int, keys: np.ndarray):
        self._starts, hashes = lists.find(keys)
        # Ranks replace hashes: a rank and the number of a pair fit into one integer, which sorts fast.
        self._hashes, self._ranks = np.unique(hashes, return_inverse=True)
        sizes = np.diff(self._starts)
        # Up to this rank, all users of an item are in its list.
        self._limit = np.full(len(keys), len(self._hashes))
        full = sizes >= users
        self._limit[full] = self._ranks[self._starts[1:][full] - 1]

    def jaccard(self, item: np.ndarray, target: np.ndarray, user: np.ndarray) -> np.ndarray:
        """The Jaccard similarity of the sets of users who consumed two items, without one user.

        It is estimated from users whose hashes are below both items' limits, and exact if both lists are complete.

        Args:
            item: [P].
            target: [P].
            user: [P] uint64, the hash of the user to leave out, who consumed both.

        Returns:
            [P] float64; 0 if no other user consumed either.
        """

        def some(part: slice) -> np.ndarray:
            return self._jaccard(item[part], target[part], user[part])

        return _in_pieces(some, len(item))

    def _jaccard(self, item: np.ndarray, target: np.ndarray, user: np.ndarray) -> np.ndarray:
        limit = np.minimum(self._limit[item], self._limit[target])
        own = np.searchsorted(self._hashes, user)
        own[~np.isin(user, self._hashes)] = -1
        pairs, ranks = [], []
        for items in (item, target):
            begins, ends = self._starts[items], self._starts[items + 1]
            pair, rank = np.repeat(np.arange(len(items)), ends - begins), self._ranks[ranges(begins, ends)]
            counts = (rank <= limit[pair]) & (rank != own[pair])
            pairs.append(pair[counts])
            ranks.append(rank[counts])
        pair = np.concatenate(pairs)
        keys = np.sort(pair * len(self._hashes) + np.concatenate(ranks))
        twice = keys[1:][keys[1:] == keys[:-1]] // max(len(self._hashes), 1)  # a list has no duplicates
        both = np.bincount(twice, minlength=len(item))
        return both / np.maximum(np.bincount(pair, minlength=len(item)) - both, 1)


def _in_pieces(function: Callable[[slice], np.ndarray], count: int) -> np.ndarray:
    pieces = [function(slice(start, start + _PAIRS)) for start in range(0, count, _PAIRS)]
    return np.concatenate([np.zeros(0), *pieces])
