"""k-means by faiss, on the host's processors, for rows that fit into its memory; `kmeans` is for the accelerators.

Axis letters: N rows, D width, K clusters.
"""

import faiss
import numpy as np
from jaxtyping import Float, Float32, Int32


def faiss_kmeans(
    x: Float32[np.ndarray, "N D"], k: int, *, rounds: int, seed: int, spherical: bool = False
) -> Float32[np.ndarray, "{k} D"]:
    """The centroids of Lloyd's algorithm over all rows; the same on every call.

    Args:
        x: at least `k` rows.
        k: clusters, K.
        rounds: times that all rows are assigned and the centroids moved.
        seed: of the draw of the first centroids.
        spherical: cluster by inner product, with centroids of unit length; for rows of unit length that is by cosine.
    """
    # faiss warns of fewer than 39 rows per centroid, and draws a sample of its own where there are more than 256.
    limits = {"min_points_per_centroid": 1, "max_points_per_centroid": len(x)}
    trained = faiss.Kmeans(x.shape[1], k, niter=rounds, seed=seed, spherical=spherical, **limits)
    trained.train(x)
    return trained.centroids.reshape(k, -1).copy()


def nearest_centroids(
    x: Float[np.ndarray, "N D"], centroids: Float32[np.ndarray, "K D"], *, spherical: bool = False
) -> Int32[np.ndarray, " N"]:
    """The nearest centroid of each row; of equally near ones the first.

    Args:
        x: the rows.
        centroids: those of `faiss_kmeans`.
        spherical: by inner product, in place of Euclidean distance.
    """
    metric = faiss.METRIC_INNER_PRODUCT if spherical else faiss.METRIC_L2
    return faiss.knn(np.ascontiguousarray(x, np.float32), centroids, 1, metric=metric)[1][:, 0].astype(np.int32)
