"""Bijective alignment: query -> nearest target -> nearest query (arXiv 2510.12709, sec. 4.2).

Axes: Q queries, N targets, D width.
"""

import numpy as np

from sail_jax.vectors.top_k import top_k


def bijective_alignment(
    queries: np.ndarray, targets: np.ndarray, nearest: np.ndarray, own: np.ndarray, *, block: int
) -> float:
    """The share of queries that are the nearest query of their nearest target.

    Args:
        queries: [Q, D]; queries of zeros do not count.
        targets: [N, D]; may be memory-mapped.
        nearest: [Q] int, the target nearest to each query, or -1 where it has none: such a query does not come back.
        own: [Q] int, the target that is the query itself, or -1; it does not look for itself among the queries.
        block: queries that are scored at a time.

    Returns:
        The share in [0, 1], NaN where there is no query. Of queries equally near to a target, the first one counts.
    """
    counts = queries.any(axis=-1)
    if not counts.any():
        return float("nan")
    # One row per query, though several may share a target: of one shape for all models, so that one search is compiled.
    reached = np.where((nearest >= 0)[:, None], targets[np.maximum(nearest, 0)], 0)
    query_of = dict(zip(own.tolist(), range(len(own)), strict=True))
    itself = np.array([query_of.get(target, -1) if target >= 0 else -1 for target in nearest.tolist()])
    back, _ = top_k(reached, queries, 1, block=block, exclude=itself)
    return float((back[:, 0] == np.arange(len(queries)))[counts].mean())
