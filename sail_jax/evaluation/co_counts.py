"""Scores items by what users consumed, without content: popularity, co-counts, SVD of histories.

Axes: N items of the store, Q queries of a block, D width. All of them score all items for some query items; scores are
compared within a query only.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from sklearn.decomposition import TruncatedSVD

from sail_jax.data.sequence_tables import stream_sequences
from sail_jax.data.store import ItemStore, known_positions

# Maps [Q] positions of query items to [Q, N] scores.
Scorer = Callable[[np.ndarray], np.ndarray]

_SVD_WIDTH = 64
# Added to the popularity of both items, so that rare items do not come first by chance.
_SMOOTHING = 10


def popularity(pairs: np.ndarray, items: int) -> Scorer:
    """Ranks items by the number of pairs that they are in, alike for all queries.

    Args:
        pairs: [P, 2] int64, positions of the items of each train pair.
        items: N.
    """
    counts = _counts(pairs, items)
    return lambda queries: np.broadcast_to(counts, (len(queries), items))


def co_counts(pairs: np.ndarray, items: int) -> Scorer:
    """Scores items by a smoothed cosine of co-counts; arguments as for `popularity`.

    The score is n_ij / sqrt((n_i + 10) (n_j + 10)), with n_ij the pairs of both items, n_i those of one.
    """
    counts = _counts(pairs, items) + _SMOOTHING
    ends = np.concatenate([pairs, pairs[:, ::-1]]).T
    both = coo_matrix((np.ones(ends.shape[1]), ends), shape=(items, items)).tocsr()
    return lambda queries: both[queries].toarray() / np.sqrt(np.outer(counts[queries], counts))


class Factors(NamedTuple):
    """A truncated SVD of users x items.

    Attributes:
        vectors: [N, D], the right singular vectors.
        values: [D], the singular values.
    """

    vectors: np.ndarray
    values: np.ndarray


def decompose(histories: csr_matrix) -> Factors:
    """Returns the truncated SVD of what each user consumed, [users, N], 64 wide or less."""
    width = min(_SVD_WIDTH, min(histories.shape) - 1)
    found = TruncatedSVD(max(width, 1), random_state=0).fit(histories)
    return Factors(found.components_.T, found.singular_values_)


def svd(factors: Factors, *, scaled: bool) -> Scorer:
    """Scores items by their vectors in a truncated SVD.

    Args:
        factors: the SVD.
        scaled: the dot product of the vectors times the singular values, by which popular items score high; False for
            the cosine of the vectors alone.
    """
    lengths = np.linalg.norm(factors.vectors, axis=1, keepdims=True) + 1e-9
    vectors = factors.vectors * factors.values if scaled else factors.vectors / lengths
    return lambda queries: vectors[queries] @ vectors.T


def read_histories(path: Path, store: ItemStore) -> csr_matrix:
    """Reads the train rows of a sequence table, targets too, as a sparse matrix of users x items.

    Raises:
        SailError: the table is missing or wrong, or an id is unknown.
    """
    rows, columns, users = [], [], 0
    for users_items in _histories(path):
        sizes = [len(items) for items in users_items]
        rows.append(np.repeat(np.arange(users, users + len(sizes)), sizes))
        found = known_positions([name for items in users_items for name in items], store, str(path))
        columns.append(store.first_positions(found))
        users += len(sizes)
    entries = np.concatenate(rows), np.concatenate(columns)
    found = csr_matrix((np.ones(len(entries[0])), entries), shape=(users, len(store)))
    found.data[:] = 1  # an item counts once for a user
    return found


def _histories(path: Path) -> Iterator[list[list[str]]]:
    for histories, targets in stream_sequences(path, "train"):
        yield [[*history, target] for history, target in zip(histories, targets, strict=True)]


def _counts(pairs: np.ndarray, items: int) -> np.ndarray:
    return np.bincount(pairs.ravel(), minlength=items).astype(float)
