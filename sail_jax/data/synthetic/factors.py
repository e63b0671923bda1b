"""Factorises the logs of a generated world into ID embeddings, without using the hidden truth.

Axis letters: N items, U users, E events, D width.
"""

import numpy as np
import scipy.sparse
from sklearn.decomposition import TruncatedSVD

_ROUNDS = 5


def factorise(
    user: np.ndarray, item: np.ndarray, weight: np.ndarray, width: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Computes vectors of items by a truncated SVD of the item-user matrix.

    Entries are divided by the square roots of the sums of their row and column, so that popular items and active users
    do not dominate the factors (the normalisation of spectral co-clustering, Dhillon 2001).

    Args:
        user: [E] indices of users.
        item: [E] indices of items.
        weight: [E] not negative; entries with the same user and item are added up.
        width: largest D; a small matrix has fewer factors.
        seed: of the randomised SVD.

    Returns:
        [n] indices of the items with a positive weight, ascending, and [n, D] float32.
    """
    used = weight > 0
    users, columns = np.unique(user[used], return_inverse=True)
    items, rows = np.unique(item[used], return_inverse=True)
    width = min(width, len(items) - 1, len(users) - 1)
    if width < 1:
        return items[:0], np.zeros((0, 0), np.float32)
    matrix = scipy.sparse.coo_array((weight[used], (rows, columns)), (len(items), len(users)), dtype=np.float64).tocsr()
    by_item = scipy.sparse.diags_array(1 / np.sqrt(matrix.sum(axis=1)))
    by_user = scipy.sparse.diags_array(1 / np.sqrt(matrix.sum(axis=0)))
    svd = TruncatedSVD(width, algorithm="randomized", n_iter=_ROUNDS, random_state=seed % 2**32)
    return items, svd.fit_transform(scipy.sparse.csr_matrix(by_item @ matrix @ by_user)).astype(np.float32)
