"""InfoNCE over cosine similarities with in-batch and hard negatives.

Axes: B pairs of the global batch, M hard negatives of a pair, D width.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from sail_jax.objectives.negative_masks import Negatives
from sail_jax.sharding.activations import split_rows
from sail_jax.vectors.unit import normalize

_MASKED = -1e30


def info_nce(
    query: jax.Array,
    target: jax.Array,
    temperature: jax.Array,
    negatives: Negatives,
    valid: jax.Array,
    *,
    hard: jax.Array | None = None,
    weight: jax.Array | None = None,
    symmetric: bool = True,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The contrastive loss of arXiv 2510.12709, sec. 3.1.2 and 3.3.2.

        L = - mean_i w_i log( exp(s_ii / tau_i)
              / (exp(s_ii / tau_i) + sum_{j in N_i} exp(s_ij / tau_i) + sum_{h in H_i} exp(s_ih / tau_i)) )

    with s the cosine, N_i targets of other pairs and H_i hard negatives. With `symmetric`, the mean of this and of the
    same with targets as queries (which have no hard negatives), as in CLIP. With all others as negatives and one
    temperature it equals sentence-transformers' MultipleNegativesRankingLoss (scale = 1 / tau), hard negatives included.

    Args:
        query: [B, D] any float type; computed in float32.
        target: [B, D].
        temperature: [B] float32, that of each pair.
        negatives: which targets and which hard negatives each query is compared with.
        valid: [B] bool; other pairs have no part in the loss. A batch without a valid pair has loss 0.
        hard: [B, M, D] hard negatives, or None.
        weight: [B] float32, what each pair counts; None for one. The mean is over valid pairs, whatever they weigh.
        symmetric: also score targets against queries.

    Returns:
        The loss, [] float32, and metrics: "accuracy", the share of valid queries whose positive beats all negatives.
    """
    if query.shape != target.shape or query.ndim != 2:
        raise ValueError(f"query and target must both be [B, D], got {query.shape} and {target.shape}")
    weight = jnp.ones(len(valid)) if weight is None else weight
    query, target = normalize(query), normalize(target)
    scores = _cosines(query, target)
    positive = jnp.diagonal(scores) / temperature
    masked = jnp.where(negatives.targets, scores / temperature[:, None], _MASKED)
    if hard is not None:
        hard_scores = _cosines(query, normalize(hard.reshape(-1, hard.shape[-1])))
        hard_scores = jnp.where(negatives.hard, hard_scores / temperature[:, None], _MASKED)
        masked = jnp.concatenate([masked, hard_scores], axis=1)
    others = [jax.nn.logsumexp(masked, axis=-1)]
    if symmetric:
        # Along the columns: transposed, the scores of a sharded batch would move between all devices.
        back = jnp.where(negatives.targets, scores / temperature, _MASKED)
        others.append(jax.nn.logsumexp(back, axis=0))
    loss, accuracy = mean_loss(positive, others, masked.max(axis=-1), valid, weight)
    return loss, {"accuracy": accuracy}


def mean_loss(
    positive: jax.Array, others: Sequence[jax.Array], best: jax.Array, valid: jax.Array, weight: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """InfoNCE from sums over the negatives.

    Args:
        positive: [B, ...] logits of the pairs; the axes that follow are losses of their own.
        others: for each direction, [B, ...] logarithms of the sums over the negatives.
        best: [B, ...] highest logit among the negatives of each query.
        valid: [B] bool.
        weight: [B] float32.

    Returns:
        The losses, and the shares of valid queries whose positive beats all negatives, [...] each.
    """
    valid, weight = (x.reshape(-1, *[1] * (positive.ndim - 1)) for x in (valid, weight))
    count = jnp.maximum(valid.sum(0), 1)
    # log((p + o) / p) as log(1 + o / p), which keeps the digits of a small loss; zero where no other counts.
    losses = sum(jax.nn.softplus(other - positive) for other in others) / len(others)
    losses = (jnp.where(valid, weight, 0.0) * losses).sum(0) / count
    return losses, (valid & (positive > best)).sum(0) / count


def _cosines(left: jax.Array, right: jax.Array) -> jax.Array:
    # Split by queries, also where there are more columns, as of hard negatives, whose scores are joined to the others.
    # At a temperature of 0.01 an error of 0.004, bfloat16's, would move a logit by 0.4.
    return split_rows(jnp.matmul(left, right.T, precision=jax.lax.Precision.HIGHEST))
