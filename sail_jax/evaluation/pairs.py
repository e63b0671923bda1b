"""Samples pairs of a query and a corpus row for the metrics on pairs, and computes their cosines.

Axes: P pairs, Q queries, N corpus rows, D width. A pair is (query, row).
"""

import numpy as np

from sail_jax.vectors.unit import unit_rows

_BLOCK = 8192
# Rounds of drawing negatives, after which fewer than asked for are returned.
_MOST_DRAWS = 20


def pair_cosines(queries: np.ndarray, corpus: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Returns the cosines of pairs, [P] float32; 0 if a side is zero.

    Args:
        queries: [Q, D]; may be memory-mapped, as may the corpus.
        corpus: [N, D].
        pairs: [P, 2] int.
    """
    cosines = np.zeros(len(pairs), np.float32)
    for start in range(0, len(pairs), _BLOCK):
        left, right = pairs[start : start + _BLOCK].T
        products = np.einsum("pd,pd->p", unit_rows(queries[left]), unit_rows(corpus[right]))
        cosines[start : start + _BLOCK] = np.clip(products, -1, 1)
    return cosines


def sample_rows(rng: np.random.Generator, values: np.ndarray, most: int) -> np.ndarray:
    """Draws at most `most` of the values without replacement, and returns them in their order."""
    if len(values) <= most:
        return values
    return values[np.sort(rng.choice(len(values), most, replace=False))]


def sample_negatives(
    rng: np.random.Generator, present: tuple[np.ndarray, np.ndarray], known: np.ndarray, count: int
) -> np.ndarray:
    """Draws pairs that are not among the known ones, uniformly and without replacement.

    Args:
        rng: the source of the draws.
        present: ([Q] bool, [N] bool), which queries and rows may be drawn.
        known: [E, 2] int, pairs to leave out.
        count: number of pairs.

    Returns:
        [P, 2] int64 in ascending order: `count` of them, or fewer if there are fewer or they are rare.
    """
    queries, rows = (np.flatnonzero(side) for side in present)
    total = len(queries) * len(rows)
    codes = known[:, 0] * len(present[1]) + known[:, 1]
    drawn = np.zeros(0, np.int64)
    if total <= 4 * count:
        drawn = (queries[:, None] * len(present[1]) + rows).ravel()
        drawn = drawn[~np.isin(drawn, codes)]
    else:
        for _ in range(_MOST_DRAWS):
            more = rng.choice(queries, count) * len(present[1]) + rng.choice(rows, count)
            drawn = np.union1d(drawn, more[~np.isin(more, codes)])
            if len(drawn) >= count:
                break
    drawn = sample_rows(rng, drawn, count)
    return np.stack([drawn // len(present[1]), drawn % len(present[1])], axis=1)
