"""Unit vectors and their gradients; zero rows stay zero."""

import jax
import jax.numpy as jnp
import numpy as np

from sail_jax.vectors.unit import normalize


def test_unit_vectors_and_their_gradients():
    vectors = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(normalize(vectors), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    slope = jax.grad(lambda x: (normalize(x) * jnp.array([1.0, 2.0])).sum())(vectors)
    assert np.all(np.isfinite(slope)) and not np.any(slope[1]) and np.abs(slope[0] @ vectors[0]) < 1e-6
