"""Unit vectors, as the models, the losses and the cosines of both need them."""

import jax
import jax.numpy as jnp


def normalize(z: jax.Array) -> jax.Array:
    """Vectors of unit length along the last axis, in float32; a vector of zeros stays zero, with zero gradient."""
    z = z.astype(jnp.float32)
    square = jnp.sum(z * z, axis=-1, keepdims=True)
    return jnp.where(square > 0, z * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0)), 0.0)
