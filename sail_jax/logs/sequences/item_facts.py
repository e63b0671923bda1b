"""What is known of the items of histories, and the rules that compare an item with a target.

Axis letters: I items of the histories at hand, P pairs (item, target), D width of the vectors.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import scipy.sparse as sp

from sail_jax.errors import SailError
from sail_jax.logs.reader import read_vectors
from sail_jax.logs.sequences.histories import hashes_of, read_part, spool, user_hash
from sail_jax.logs.sequences.item_lists import ItemLists, ranges
from sail_jax.vectors.embedding_set import EmbeddingSet, is_complete
from sail_jax.vectors.unit import unit_rows

_BATCH = 65_536
_PAIRS = 8192  # whose vectors, or users, are in memory at a time


# ---------------------------------------------------------------------------------------------------------- labels


def write_labels(folder: Path, items: pl.LazyFrame) -> ItemLists:
    """Writes the labels of items as numbers; all labels that there are, but not those of each item, are held in memory.

    Args:
        folder: where they go.
        items: item, labels; see `logs.scan_items`.
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
        lists: see `write_labels`.
        keys: [I] uint64.
        level: which label of an item is its cluster; the last one where there are fewer.

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
        _, values = np.unique(values, return_inverse=True)  # few columns, whatever the numbers
        self._sets = sp.csr_matrix((np.ones(len(values), np.int32), values, starts), (len(keys), len(values)))
        self._sets.sum_duplicates()
        self._sets.data[:] = 1
        self._sizes = np.diff(self._sets.indptr)

    def jaccard(self, item: np.ndarray, target: np.ndarray) -> np.ndarray:
        """[P] float64, the Jaccard of two items' sets of labels; 0 where neither has any."""
        both = np.asarray(self._sets[item].multiply(self._sets[target]).sum(axis=1)).ravel()
        return both / np.maximum(self._sizes[item] + self._sizes[target] - both, 1)


# ------------------------------------------------------------------------------------------------------- embeddings


def write_embeddings(folder: Path, path: Path) -> tuple[ItemLists, int]:
    """Copies content embeddings to where they are found by item.

    Args:
        folder: where they go.
        path: a folder that `embed` wrote, or Parquet of `id` (or `item_id`) and `vector`, or a folder of its parts.

    Returns:
        The vectors, of unit length; and their width.

    Raises:
        SailError: there are no vectors, or they cannot be read.
    """
    width = 0

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        nonlocal width
        for ids, vectors in EmbeddingSet(path).batches() if is_complete(path) else read_vectors(path, "--embeddings"):
            width = vectors.shape[1]
            yield hashes_of(ids), np.full(len(ids), width), unit_rows(vectors).ravel()

    lists = ItemLists.write(folder, np.float32, batches())
    if not width:
        raise SailError(f"{path} holds no vectors: embed the items, or leave out --embeddings.")
    return lists, width


class Embeddings:
    """The content embeddings of the items at hand.

    Args:
        lists: see `write_embeddings`.
        width: D.
        keys: [I] uint64.

    Attributes:
        known: [I] bool, whether an item has a vector, and one that is not zero.
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
        """[P] float64; 0 where one of the two has no vector."""

        def some(part: slice) -> np.ndarray:
            targets, place = np.unique(target[part], return_inverse=True)
            return np.einsum("pd,pd->p", self._vectors(item[part]), self._vectors(targets)[place], dtype=np.float64)

        return _in_pieces(some, len(item))


# --------------------------------------------------------------------------------------------------------- consumers


def write_consumers(folder: Path, events: pl.LazyFrame, users: int, parts: int) -> ItemLists:
    """Writes who consumed each item: the users with the lowest hashes, so many at most.

    The hashes of different items' users are the same hashes, so that such samples can be compared ("bottom-k sketches",
    Cohen and Kaplan 2007).

    Args:
        folder: where they go.
        events: item, user, of the events that count; a user may stand there several times.
        users: users of an item that are kept.
        parts: parts in which the items are worked on.
    """
    scattered = folder.with_name(f"{folder.name}.parts")
    paths = spool(events.select("item", users=user_hash()), scattered, "item", parts)

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
        lists: see `write_consumers`.
        users: users of an item that were kept, at most.
        keys: [I] uint64.
    """

    def __init__(self, lists: ItemLists, users: int, keys: np.ndarray):
        self._starts, hashes = lists.find(keys)
        # Ranks in place of hashes: with the number of a pair they fit one integer, which sorts fast.
        self._hashes, self._ranks = np.unique(hashes, return_inverse=True)
        sizes = np.diff(self._starts)
        # Up to this rank, all users of an item are known.
        self._limit = np.full(len(keys), len(self._hashes))
        full = sizes >= users
        self._limit[full] = self._ranks[self._starts[1:][full] - 1]

    def jaccard(self, item: np.ndarray, target: np.ndarray, user: np.ndarray) -> np.ndarray:
        """The Jaccard of the sets of users who consumed two items, one user left out.

        It is that of the users whose hashes lie below the limit of both items: exact where neither has more users than are kept.

        Args:
            item: [P].
            target: [P].
            user: [P] uint64, the hash of the user who is left out, as they consumed both.

        Returns:
            [P] float64; 0 where nobody else consumed either.
        """

        def some(part: slice) -> np.ndarray:
            return self._jaccard(item[part], target[part], user[part])

        return _in_pieces(some, len(item))

    def _jaccard(self, item: np.ndarray, target: np.ndarray, user: np.ndarray) -> np.ndarray:
        limit = np.minimum(self._limit[item], self._limit[target])
        own = np.searchsorted(self._hashes, user)
        own[~np.isin(user, self._hashes)] = -1
        pairs, ranks = [], []
        for side in (item, target):
            begins, ends = self._starts[side], self._starts[side + 1]
            pair, rank = np.repeat(np.arange(len(side)), ends - begins), self._ranks[ranges(begins, ends)]
            counts = (rank <= limit[pair]) & (rank != own[pair])
            pairs.append(pair[counts])
            ranks.append(rank[counts])
        pair = np.concatenate(pairs)
        keys = np.sort(pair * len(self._hashes) + np.concatenate(ranks))
        twice = keys[1:][keys[1:] == keys[:-1]] // max(len(self._hashes), 1)  # a list holds a user once
        both = np.bincount(twice, minlength=len(item))
        return both / np.maximum(np.bincount(pair, minlength=len(item)) - both, 1)


def _in_pieces(function: Callable[[slice], np.ndarray], count: int) -> np.ndarray:
    pieces = [function(slice(start, start + _PAIRS)) for start in range(0, count, _PAIRS)]
    return np.concatenate([np.zeros(0), *pieces])
