"""COSENT: pairs with a higher graded score shall have a higher cosine.

Axes: B pairs of the global batch, D width.
"""

import jax
import jax.numpy as jnp

from sail_jax.vectors import normalize

_MASKED = -1e30


def cosent(
    query: jax.Array, target: jax.Array, scores: jax.Array, temperature: float, valid: jax.Array, group: jax.Array
) -> jax.Array:
    """The ranking loss of arXiv 2510.12709, sec. 3.3.2.

        L = log( 1 + sum over pairs with score_a > score_b of exp((cos_b - cos_a) / tau) )

    Unlike InfoNCE it reads no negatives: only the order of the graded scores counts. Equals sentence-transformers'
    CoSENTLoss (scale = 1 / tau).

    Args:
        query: [B, D] any float type; computed in float32.
        target: [B, D].
        scores: [B] float32 graded similarity, on any scale.
        temperature: tau.
        valid: [B] bool, pairs that count. Without two of them that differ in score the loss is 0.
        group: [B] int32; scores are compared within a group alone, as those of two data sets need not be comparable.

    Returns:
        The loss, [] float32.
    """
    cosines = (normalize(query) * normalize(target)).sum(-1) / temperature
    ordered = (scores[:, None] > scores[None, :]) & valid[:, None] & valid[None, :] & (group[:, None] == group[None, :])
    differences = jnp.where(ordered, cosines[None, :] - cosines[:, None], _MASKED)
    return jax.nn.logsumexp(jnp.append(differences.reshape(-1), 0.0))
