"""Unit vectors: zero rows stay zero, with finite gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from sail_jax.vectors.unit import normalize


def test_normalize_keeps_zero_rows():
    z, vjp = jax.vjp(normalize, jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(z, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert np.all(np.isfinite(vjp(jnp.ones((2, 2)))[0]))
