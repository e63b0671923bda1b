"""Nearest-neighbour search of a metric, split over the processes that measure together.

Axes: Q queries, N rows of the corpus, D width, K results.
"""

import numpy as np

from sail_jax.sharding.process_group import Processes
from sail_jax.vectors.top_k import top_k


def nearest(
    queries: np.ndarray,
    corpus: np.ndarray,
    k: int,
    *,
    block: int,
    exclude: np.ndarray,
    processes: Processes,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the [Q, K] rows and cosines of `top_k` on all processes.

    Each process searches for a part of the queries.

    Args:
        queries: [Q, D], equal on all processes, as are the other arrays.
        corpus: [N, D].
        k: K.
        block: corpus rows scored at once.
        exclude: [Q] int, a corpus row that each query excludes; -1 for none.
        processes: the processes.
    """
    own = processes.rows(len(queries))
    rows, cosines = top_k(queries[own], corpus, k, block=block, exclude=exclude[own])
    return processes.join(rows), processes.join(cosines)
