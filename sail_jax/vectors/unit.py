"""Normalisation to unit vectors: on the device for models and losses, on the host for search.

Axis letters: N rows, D width.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32


def normalize(z: Float[Array, "*batch D"]) -> Float32[Array, "*batch D"]:
    """Normalises along the last axis; a vector of zeros stays zero, with zero gradient; NaN stays NaN."""
    z = z.astype(jnp.float32)
    square = jnp.sum(z * z, axis=-1, keepdims=True)
    return jnp.where(square == 0, 0.0, z * jax.lax.rsqrt(jnp.where(square == 0, 1.0, square)))


def unit_rows(z: Float[np.ndarray, "N D"]) -> Float32[np.ndarray, "N D"]:
    """Normalises rows; rows of zeros stay zero."""
    norm = np.linalg.norm(z, axis=-1, keepdims=True)
    return (z / np.where(norm > 0, norm, 1)).astype(np.float32)
