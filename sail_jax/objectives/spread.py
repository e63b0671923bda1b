"""How a batch's vectors are spread: signs of a collapse, which a contrastive loss may hide for long.

Axis letters: N rows, D width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from sail_jax.vectors.unit import normalize


def spread(vectors: Float[Array, "N D"], counts: Bool[Array, " N"]) -> dict[str, Float32[Array, ""]]:
    """Returns the norm of the mean unit vector, and the effective dimension; both without gradient.

    The effective dimension is the participation ratio of the covariance C of the unit vectors, tr(C)^2 / tr(C^2): the
    number of directions if all vary alike, and at most N - 1. It needs no eigenvalues.

    Args:
        vectors: of any length.
        counts: rows that count.

    Returns:
        "mean_norm", from 0 to 1, where all vectors are the same; "effective_dimension", which is 0 then. NaN if no row
        counts.
    """
    weight = jnp.where(counts, 1.0, 0.0)[:, None] / counts.sum()
    unit = normalize(jax.lax.stop_gradient(vectors))
    mean = (unit * weight).sum(0)
    # Centred before they are multiplied: the difference of two products would lose what a collapse leaves.
    centred = (unit - mean) * jnp.sqrt(weight)
    covariance = jnp.matmul(centred.T, centred, precision=jax.lax.Precision.HIGHEST)
    trace, squares = jnp.trace(covariance), jnp.square(covariance).sum()
    return {
        "mean_norm": jnp.sqrt(jnp.square(mean).sum()),
        "effective_dimension": jnp.where(squares == 0, 0.0, trace**2 / jnp.where(squares == 0, 1.0, squares)),
    }
