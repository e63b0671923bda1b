"""The norm of the mean vector and the effective dimension, against numpy on all rows at once."""

import numpy as np
import pytest

from sail_jax.evaluation.metrics import spread as spread_lib
from sail_jax.evaluation.metrics.spread import spread


@pytest.mark.parametrize("block", [7, 1000])
def test_blocks_equal_the_covariance_of_all_rows(block, monkeypatch):
    monkeypatch.setattr(spread_lib, "_BLOCK", block)
    z = np.random.default_rng(0).normal(0.3, 1 / np.arange(1, 9), (100, 8)).astype(np.float32)
    rows = np.arange(3, 90)
    unit = z[rows].astype(np.float64) / np.linalg.norm(z[rows].astype(np.float64), axis=1, keepdims=True)
    variances = np.linalg.eigvalsh(np.cov(unit.T, bias=True))
    figures = spread(z, rows)
    assert figures["mean_norm"] == pytest.approx(np.linalg.norm(unit.mean(0)), rel=1e-5)
    assert figures["effective_dimension"] == pytest.approx(variances.sum() ** 2 / (variances**2).sum(), rel=1e-5)


def test_known_spreads():
    axes = np.concatenate([np.eye(6), -np.eye(6)])
    assert spread(axes, np.arange(12)) == pytest.approx({"mean_norm": 0, "effective_dimension": 6})
    assert spread(axes, np.array([0, 6])) == pytest.approx({"mean_norm": 0, "effective_dimension": 1})
    one = np.random.default_rng(1).uniform(1, 5, (50, 1)) * np.array([[0.3, -0.7, 0.2]])  # of different lengths
    assert spread(one, np.arange(50)) == pytest.approx({"mean_norm": 1, "effective_dimension": 0})
