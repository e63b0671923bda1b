"""Measures whether queries and targets fall into the same clusters (arXiv 2510.12709, sec. 4.2)."""

import numpy as np

from sail_jax.vectors.faiss_kmeans import faiss_kmeans, nearest_centroids
from sail_jax.vectors.unit import unit_rows

_ROUNDS = 10
_RUNS = 4


def clustering_nmi(queries: np.ndarray, targets: np.ndarray, *, clusters: int, seed: int, runs: int = _RUNS) -> float:
    """Returns the clustering consistency: the NMI of the cluster labels of queries and of their targets.

    A k-means by cosine (faiss) is fitted on both sides together; NMI = 2 I(L_q; L_t) / (H(L_q) + H(L_t)). The result of
    k-means depends on the initial centroids, so the mean over several runs is returned.

    Args:
        queries: [P, D] one side of P pairs, none zero.
        targets: [P, D] the other side, none zero.
        clusters: number of clusters; at most one per vector.
        seed: seed of the initial centroids of the first run; each further run adds one.
        runs: number of runs of k-means.

    Returns:
        The NMI, in [0, 1]; 1 if all vectors are in one cluster.
    """
    from sklearn.metrics import normalized_mutual_info_score

    points = np.concatenate([unit_rows(queries), unit_rows(targets)])
    clusters = min(clusters, len(points))
    values = []
    for run in range(runs):
        centroids = faiss_kmeans(points, clusters, rounds=_ROUNDS, seed=seed + run, spherical=True)
        labels = nearest_centroids(points, centroids, spherical=True)
        values.append(normalized_mutual_info_score(labels[: len(queries)], labels[len(queries) :]))
    return float(np.mean(values))
