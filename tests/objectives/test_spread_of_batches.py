"""The spread of vectors against eigenvalues of NumPy, and at its ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.objectives.spread import spread

measured = jax.jit(spread)


def test_it_is_what_the_eigenvalues_say():
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(40, 8)) * np.linspace(0.2, 3, 8) + 0.5).astype(np.float32)
    counts = rng.random(40) < 0.7
    found = measured(jnp.asarray(vectors), jnp.asarray(counts))
    unit = vectors[counts] / np.linalg.norm(vectors[counts], axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(np.cov(unit.T))
    assert found["effective_dimension"] == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-4)
    assert found["mean_norm"] == pytest.approx(np.linalg.norm(unit.mean(0)), rel=1e-5)
    assert not np.any(jax.grad(lambda z: spread(z, jnp.asarray(counts))["mean_norm"])(jnp.asarray(vectors)))


def test_its_ends():
    even = measured(jnp.concatenate([jnp.eye(5), -jnp.eye(5)]), jnp.ones(10, bool))
    assert even == pytest.approx({"mean_norm": 0.0, "effective_dimension": 5.0}, abs=1e-6)
    same = measured(jnp.tile(jnp.array([[0.0, 2.0]]), (6, 1)), jnp.ones(6, bool))
    assert same == pytest.approx({"mean_norm": 1.0, "effective_dimension": 0.0}, abs=1e-6)
    assert all(np.isnan(value) for value in measured(jnp.ones((3, 2)), jnp.zeros(3, bool)).values())
