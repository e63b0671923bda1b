"""Bijective alignment: query -> nearest target -> nearest query (arXiv 2510.12709, sec. 4.2).

Axes: Q queries, N targets, D width.
"""

import numpy as np

from sail_jax.evaluation.metrics.nearest import nearest as search
from sail_jax.sharding.process_group import ALONE, Processes


def bijective_alignment(
    queries: np.ndarray,
    targets: np.ndarray,
    nearest: np.ndarray,
    own: np.ndarray,
    *,
    block: int,
    processes: Processes = ALONE,
) -> float:
    """Returns the share of queries that are the nearest query of their nearest target.

    Args:
        queries: [Q, D]; queries of zeros are ignored.
        targets: [N, D]; may be memory-mapped.
        nearest: [Q] int, the target nearest to each query, or -1 if there is none: such a query counts as a miss.
        own: [Q] int, the target that is the query itself, or -1; its search among the queries skips that query.
        block: number of queries scored at a time.
        processes: the processes that search together.

    Returns:
        The share in [0, 1], NaN if there is no query. Of queries equally near to a target, the first one counts.
    """
    counts = queries.any(axis=-1)
    if not counts.any():
        return float("nan")
    # One row per query, even if several share a target: the shape is the same for all models, so it is compiled once.
    reached = np.where((nearest >= 0)[:, None], targets[np.maximum(nearest, 0)], 0)
    query_of = dict(zip(own.tolist(), range(len(own)), strict=True))
    itself = np.array([query_of.get(target, -1) if target >= 0 else -1 for target in nearest.tolist()])
    back, _ = search(reached, queries, 1, block=block, exclude=itself, processes=processes)
    return float((back[:, 0] == np.arange(len(queries)))[counts].mean())
