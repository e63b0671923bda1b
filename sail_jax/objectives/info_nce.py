"""InfoNCE over cosine similarities with in-batch negatives.

Axes: B pairs of the global batch, D width.
"""

import jax
import jax.numpy as jnp

_MASKED = -1e30


def info_nce(
    query: jax.Array,
    target: jax.Array,
    temperature: jax.Array,
    negatives: jax.Array,
    valid: jax.Array,
    *,
    symmetric: bool = True,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The contrastive loss of arXiv 2510.12709, sec. 3.3.2.

        L = - mean_i log( exp(s_ii / tau_i) / (exp(s_ii / tau_i) + sum_{j in N_i} exp(s_ij / tau_i)) )

    with s_ij = cos(query_i, target_j). With `symmetric`, the mean of this and of the same with targets as queries, as in
    CLIP. With all others as negatives and one temperature it equals sentence-transformers'
    MultipleNegativesRankingLoss (scale = 1 / tau).

    Args:
        query: [B, D] any float type; computed in float32.
        target: [B, D].
        temperature: [B] float32, that of each pair.
        negatives: [B, B] bool, whether target j is a negative of query i.
        valid: [B] bool; other pairs have no part in the loss. A batch without a valid pair has loss 0.
        symmetric: also score targets against queries.

    Returns:
        The loss, [] float32, and metrics: "accuracy", the share of valid queries whose positive beats all negatives.
    """
    if query.shape != target.shape or query.ndim != 2:
        raise ValueError(f"query and target must both be [B, D], got {query.shape} and {target.shape}")
    scores = normalize(query) @ normalize(target).T
    loss, accuracy = _one_way(scores / temperature[:, None], negatives, valid)
    if symmetric:
        loss_back, _ = _one_way(scores.T / temperature[:, None], negatives.T, valid)
        loss = (loss + loss_back) / 2
    return loss, {"accuracy": accuracy}


def normalize(z: jax.Array) -> jax.Array:
    """Rows of unit length in float32; a row of zeros stays zero, with zero gradient."""
    z = z.astype(jnp.float32)
    square = jnp.sum(z * z, axis=-1, keepdims=True)
    return jnp.where(square > 0, z * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _one_way(logits: jax.Array, negatives: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    positive = jnp.diagonal(logits)
    others = jnp.where(negatives, logits, _MASKED)
    everything = jnp.where(jnp.eye(len(logits), dtype=bool), positive[:, None], others)
    losses = jax.nn.logsumexp(everything, axis=-1) - positive
    count = jnp.maximum(valid.sum(), 1)
    accuracy = jnp.where(valid, positive > others.max(axis=-1), False).sum() / count
    return jnp.where(valid, losses, 0.0).sum() / count, accuracy
