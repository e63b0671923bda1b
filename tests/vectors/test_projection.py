"""Maps to the plane: equal from call to call, and neighbours stay together."""

import sys

import numpy as np
import pytest

from sail_jax.config.search import PROJECTIONS
from sail_jax.errors import SailError
from sail_jax.vectors.projection import LANDMARKS, PlaneMap, placement, project


def test_map_is_the_same_every_time_and_keeps_neighbours():
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(4), 30)
    vectors = (rng.normal(size=(4, 24))[kinds] * 3 + rng.normal(size=(120, 24)) * 0.3).astype(np.float32)
    points = project(vectors, 0)
    assert points.shape == (120, 2) and points.dtype == np.float32 and np.isfinite(points).all()
    np.testing.assert_array_equal(points, project(vectors, 0))
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(apart, np.inf)
    assert (kinds[apart.argmin(axis=1)] == kinds).all()


@pytest.mark.parametrize(("count", "width"), [(0, 4), (1, 4), (2, 4), (5, 4), (13, 4), (40, 1)])
def test_maps_of_few_vectors(count, width):
    points = project(np.random.default_rng(0).normal(size=(count, width)).astype(np.float32), 0)
    assert points.shape == (count, 2) and np.isfinite(points).all()


def test_map_of_equal_vectors():
    assert not project(np.ones((20, 3), np.float32), 0).any()


def test_vectors_beyond_the_landmarks_lie_beside_those_that_are_alike(monkeypatch):
    monkeypatch.setattr("sail_jax.vectors.projection.LANDMARKS", 60)
    assert LANDMARKS > 1000
    rng = np.random.default_rng(0)
    kinds = np.arange(200) % 4
    vectors = (rng.normal(size=(4, 24))[kinds] * 3 + rng.normal(size=(200, 24)) * 0.3).astype(np.float32)
    points = project(vectors, 0)
    apart = np.linalg.norm(points[60:, None] - points[None, :60], axis=-1)
    assert points.shape == (200, 2) and (kinds[apart.argmin(axis=1)] == kinds[60:]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", PROJECTIONS)
def test_blocks_lie_where_all_of_them_would(name):
    pytest.importorskip("umap", reason="needs the extra atlas") if name == "umap" else None
    rng = np.random.default_rng(0)
    kinds = np.arange(240) % 4
    vectors = (rng.normal(size=(4, 24))[kinds] * 3 + rng.normal(size=(240, 24)) * 0.3).astype(np.float32)
    plane = PlaneMap(vectors[:120], 0, placement(name))
    np.testing.assert_array_equal(plane.places, PlaneMap(vectors[:120], 0, placement(name)).places)
    places = plane.between(vectors[120:])
    blocks = [plane.between(vectors[start : start + 50]) for start in (120, 170, 220)]
    np.testing.assert_allclose(np.concatenate(blocks), places, atol=1e-3)
    apart = np.linalg.norm(places[:, None] - plane.places[None], axis=-1)
    assert (kinds[apart.argmin(axis=1)] == kinds[120:]).all()


def test_a_projection_that_is_not_there(monkeypatch):
    with pytest.raises(SailError, match="no projection 'pca'; choose one of tsne, umap"):
        placement("pca")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(SailError, match="needs umap-learn: pip install"):
        placement("umap")
