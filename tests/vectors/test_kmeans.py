"""k-means against scikit-learn's, and residual k-means against its definition."""

import jax
import numpy as np
import pytest
from sklearn.cluster import KMeans

from sail_jax.errors import SailError
from sail_jax.vectors import kmeans as kmeans_lib
from sail_jax.vectors.kmeans import kmeans, residual_kmeans


def drawn(rows=700, width=9, seed=0):
    rng = np.random.default_rng(seed)
    centres = 3 * rng.normal(size=(12, width))
    return (centres[rng.integers(0, 12, rows)] + rng.normal(size=(rows, width))).astype(np.float32)


def squared_distances(x, centroids):
    return ((x[:, None].astype(np.float64) - centroids[None]) ** 2).sum(axis=-1)


@pytest.mark.parametrize("block", [16, 1024])
@pytest.mark.parametrize("rounds", [1, 4])
def test_equal_to_scikit_learn_after_as_many_rounds(rounds, block):
    x = drawn()
    initial = x[::50]
    ours, assignment, inertia = kmeans(x, len(initial), rounds=rounds, seed=0, initial=initial, block=block)
    theirs = KMeans(len(initial), init=initial, n_init=1, max_iter=rounds, tol=0, algorithm="lloyd").fit(x)
    np.testing.assert_allclose(ours, theirs.cluster_centers_, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(assignment, theirs.labels_)
    assert inertia == pytest.approx(theirs.inertia_, rel=1e-5)


def test_the_draw_is_of_different_rows_and_follows_the_seed():
    x = drawn()
    start = [kmeans(x, 12, rounds=0, seed=seed)[0] for seed in (5, 5, 6)]
    np.testing.assert_array_equal(start[0], start[1])
    assert not np.array_equal(start[0], start[2])
    where = [np.flatnonzero((x == centroid).all(axis=1)) for centroid in start[0]]
    assert all(len(found) == 1 for found in where)
    assert len({int(found[0]) for found in where}) == 12


def test_rows_of_zeros_are_not_drawn():
    x = drawn(rows=40)
    x[::2] = 0
    assert kmeans(x, 20, rounds=0, seed=0)[0].any(axis=1).all()
    centroids, _, inertia = kmeans(x, 30, rounds=3, seed=0)
    assert np.isfinite(centroids).all()
    assert inertia < 1e-6
    assert kmeans(np.zeros_like(x), 5, rounds=2, seed=0)[2] == 0


@pytest.mark.slow
def test_the_same_on_every_call_and_for_every_block():
    x = drawn()
    first = kmeans(x, 12, rounds=5, seed=1, block=64)
    for found, expected in zip(kmeans(x, 12, rounds=5, seed=1, block=64), first, strict=True):
        np.testing.assert_array_equal(found, expected)
    for block in (1, 7, 100, 4096):
        centroids, assignment, inertia = kmeans(x, 12, rounds=5, seed=1, block=block)
        np.testing.assert_allclose(centroids, first[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(assignment, first[1])
        assert inertia == pytest.approx(first[2], rel=1e-6)


def test_several_devices_equal_one(monkeypatch):
    x = drawn()
    many = kmeans(x, 12, rounds=5, seed=1)
    one_device = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one_device)
    one = kmeans(x, 12, rounds=5, seed=1)
    np.testing.assert_allclose(many[0], one[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(many[1], one[1])
    assert many[2] == pytest.approx(one[2], rel=1e-6)


@pytest.mark.slow
def test_rows_that_are_read_anew_each_round_equal_rows_that_are_held(tmp_path, monkeypatch):
    x = drawn()
    held = residual_kmeans(x, (12, 5), rounds=3, seed=1, block=16)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    monkeypatch.setattr(kmeans_lib, "_STRETCH_BYTES", 16 * 8 * 9 * 4)  # one block per device at a time
    read = residual_kmeans(mapped, (12, 5), rounds=3, seed=1, block=16, held_bytes=0)
    for level in range(2):
        np.testing.assert_allclose(read[0][level], held[0][level], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(read[1], held[1])
    np.testing.assert_allclose(read[2], held[2], rtol=1e-6)


def test_a_cluster_without_rows_takes_half_of_the_largest():
    x = drawn()
    far = np.full((2, x.shape[1]), 1e3, np.float32)
    initial = np.concatenate([x[:3], far])
    centroids, _, inertia = kmeans(x, 5, rounds=1, seed=0, initial=initial)
    label = squared_distances(x, initial).argmin(axis=1)
    expected = np.stack([x[label == i].mean(axis=0) for i in range(3)])
    largest = np.bincount(label).argmax()
    alternating = np.where(np.arange(x.shape[1]) % 2, -1, 1) / 1024
    np.testing.assert_allclose(centroids[3], expected[largest] * (1 + alternating), rtol=1e-4)
    _, assignment, later = kmeans(x, 5, rounds=10, seed=0, initial=initial)
    assert set(assignment.tolist()) == set(range(5))
    assert later < inertia


def test_no_more_different_rows_than_clusters():
    x = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    centroids, assignment, inertia = kmeans(x, 6, rounds=10, seed=0)
    assert np.isfinite(centroids).all()
    assert inertia == pytest.approx(squared_distances(x, centroids).min(axis=1).sum(), abs=1e-6)
    np.testing.assert_array_equal(assignment, squared_distances(x, centroids).argmin(axis=1))


def test_the_product_for_accelerators_equals_the_scatter(monkeypatch):
    rng = np.random.default_rng(2)
    rows, sums = rng.normal(size=(50, 4)).astype(np.float32), rng.normal(size=(7, 4)).astype(np.float32)
    nearest = rng.integers(0, 8, 50).astype(np.int32)  # the eighth is none
    scattered = kmeans_lib._sums(rows, nearest, jax.numpy.asarray(sums))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_allclose(kmeans_lib._sums(rows, nearest, sums), scattered, rtol=1e-5, atol=1e-5)


def test_codes_reconstruct_better_with_every_level():
    x = drawn()
    codebooks, codes, inertia = residual_kmeans(x, (8, 16, 4), rounds=6, seed=3)
    assert [codebook.shape for codebook in codebooks] == [(8, 9), (16, 9), (4, 9)]
    assert (codes.shape, codes.dtype) == ((700, 3), np.int32)
    left = x.copy()
    for level, codebook in enumerate(codebooks):
        np.testing.assert_array_equal(codes[:, level], squared_distances(left, codebook).argmin(axis=1))
        left -= codebook[codes[:, level]]
        assert inertia[level] == pytest.approx((left**2).sum(), rel=1e-5)
    assert inertia[0] > inertia[1] > inertia[2]


def test_too_few_rows_centroids_that_do_not_fit_and_rows_that_are_not_finite():
    x = drawn(rows=10)
    with pytest.raises(SailError, match="10 rows do not make 11 clusters"):
        kmeans(x, 11, rounds=1, seed=0)
    with pytest.raises(SailError, match="first centroids are"):
        kmeans(x, 3, rounds=1, seed=0, initial=x[:2])
    x[3, 2] = np.nan
    with pytest.raises(SailError, match="not finite"):
        kmeans(x, 2, rounds=2, seed=0)
