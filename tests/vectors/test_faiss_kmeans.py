"""k-means by faiss over all rows: against faiss as its authors call it, and plain NumPy."""

import faiss
import numpy as np
import pytest

from sail_jax.vectors.faiss_kmeans import faiss_kmeans, nearest_centroids
from sail_jax.vectors.unit import unit_rows

ROWS = unit_rows(np.random.default_rng(0).standard_normal((3000, 8)))


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("k", [5, 300])  # over 256 rows per centroid, and under 39
def test_all_rows_count_and_the_seed_decides(k, spherical):
    found = faiss_kmeans(ROWS, k, rounds=6, seed=3, spherical=spherical)
    again, other = (faiss_kmeans(ROWS, k, rounds=6, seed=seed, spherical=spherical) for seed in (3, 4))
    assert found.shape == (k, 8) and found.dtype == np.float32
    np.testing.assert_array_equal(found, again)
    assert np.abs(found - other).max() > 0.01

    plain = faiss.Kmeans(8, k, niter=6, seed=3, spherical=spherical, max_points_per_centroid=10**6)
    plain.train(ROWS)
    np.testing.assert_allclose(found, plain.centroids, atol=1e-6)
    labels = nearest_centroids(ROWS, found, spherical=spherical)
    np.testing.assert_array_equal(labels, plain.index.search(ROWS, 1)[1][:, 0])


def test_the_nearest_by_distance_and_by_inner_product():
    centroids = np.array([[1, 0], [10, 0], [1, 0]], np.float32)
    x = np.array([[2.0, 0.0], [9.0, 1.0]], np.float64)
    assert nearest_centroids(x, centroids).tolist() == [0, 1]  # of equal ones the first
    assert nearest_centroids(x, centroids, spherical=True).tolist() == [1, 1]
