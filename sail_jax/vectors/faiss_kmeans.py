"""k-means by faiss on the CPU, for rows that fit into host memory; `kmeans` is for accelerators.

Axis letters: N rows, D width, K clusters.
"""

import faiss
import numpy as np
from jaxtyping import Float, Float32, Int32


def faiss_kmeans(
    x: Float32[np.ndarray, "N D"], k: int, *, rounds: int, seed: int, spherical: bool = False
) -> Float32[np.ndarray, "{k} D"]:
    """Returns the centroids of Lloyd's algorithm over all rows; the same on every call.

    Args:
        x: at least `k` rows.
        k: number of clusters.
        rounds: iterations of assigning all rows and updating the centroids.
        seed: seed of the initial centroids.
        spherical: whether to cluster by inner product with unit centroids; for unit rows, that is by cosine.
    """
    # By default, faiss warns below 39 rows per centroid, and trains on a sample above 256.
    limits = {"min_points_per_centroid": 1, "max_points_per_centroid": len(x)}
    trained = faiss.Kmeans(x.shape[1], k, niter=rounds, seed=seed, spherical=spherical, **limits)
    trained.train(x)
    return trained.centroids.reshape(k, -1).copy()


def nearest_centroids(
    x: Float[np.ndarray, "N D"], centroids: Float32[np.ndarray, "K D"], *, spherical: bool = False
) -> Int32[np.ndarray, " N"]:
    """Returns the index of the nearest centroid of each row; ties go to the lower index.

    Args:
        x: the rows.
        centroids: centroids of `faiss_kmeans`.
        spherical: whether to compare by inner product instead of Euclidean distance.
    """
    metric = faiss.METRIC_INNER_PRODUCT if spherical else faiss.METRIC_L2
    return faiss.knn(np.ascontiguousarray(x, np.float32), centroids, 1, metric=metric)[1][:, 0].astype(np.int32)
