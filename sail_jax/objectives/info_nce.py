"""InfoNCE over cosine similarities with in-batch and hard negatives.

Axis letters: B pairs of the global batch, M hard negatives of a pair, D width.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from sail_jax.objectives.negative_masks import Negatives
from sail_jax.sharding.activations import split_rows
from sail_jax.vectors.unit import normalize

_MASKED = -1e30


def info_nce(
    query: Float[Array, "B D"],
    target: Float[Array, "B D"],
    temperature: Float32[Array, " B"],
    negatives: Negatives,
    valid: Bool[Array, " B"],
    *,
    hard: Float[Array, "B M D"] | None = None,
    weight: Float32[Array, " B"] | None = None,
    symmetric: bool = True,
) -> tuple[Float32[Array, ""], dict[str, Float32[Array, ""]]]:
    """Computes the contrastive loss of arXiv 2510.12709, sec. 3.1.2 and 3.3.2.

        L = - mean_i w_i log( exp(s_ii / tau_i)
              / (exp(s_ii / tau_i) + sum_{j in N_i} exp(s_ij / tau_i) + sum_{h in H_i} exp(s_ih / tau_i)) )

    with s the cosine, N_i targets of other pairs and H_i hard negatives. With `symmetric`, it is the mean of this loss
    and of the loss with queries and targets swapped, which has no hard negatives, as in CLIP. With all other targets as
    negatives and one temperature it equals MultipleNegativesRankingLoss (scale = 1 / tau) of sentence-transformers,
    also with hard negatives.

    Args:
        query: embeddings of the queries; computed in float32.
        target: embeddings of the targets.
        temperature: temperature of each pair.
        negatives: the targets and hard negatives that are negatives of each query.
        valid: pairs that count. A batch without a valid pair has loss 0.
        hard: hard negatives, or None.
        weight: weight of each pair; None for one. The sum is divided by the number of valid pairs, not by their weight.
        symmetric: whether targets are also scored against queries.

    Returns:
        The loss, and metrics: "accuracy", the share of valid queries that score their target above all negatives.
    """
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
        # Reduce along the columns: a transpose would move the scores of a sharded batch between all devices.
        back = jnp.where(negatives.targets, scores / temperature, _MASKED)
        others.append(jax.nn.logsumexp(back, axis=0))
    loss, accuracy = mean_loss(positive, others, masked.max(axis=-1), valid, weight)
    return loss, {"accuracy": accuracy}


def mean_loss(
    positive: Float32[Array, " B *losses"],
    others: Sequence[Float32[Array, " B *losses"]],
    best: Float32[Array, " B *losses"],
    valid: Bool[Array, " B"],
    weight: Float32[Array, " B"],
) -> tuple[Float32[Array, "*losses"], Float32[Array, "*losses"]]:
    """Computes InfoNCE from sums of exponentials over the negatives.

    Args:
        positive: logits of the pairs; each index of the further axes is a separate loss.
        others: for each direction, the log-sum-exp over the negatives.
        best: highest logit among the negatives of each query.
        valid: pairs that count.
        weight: weight of each pair.

    Returns:
        The losses, and the shares of valid queries that score their target above all negatives.
    """
    valid, weight = (x.reshape(-1, *[1] * (positive.ndim - 1)) for x in (valid, weight))
    count = jnp.maximum(valid.sum(0), 1)
    # log((p + o) / p) as log(1 + o / p), which keeps the digits of a small loss; zero without negatives.
    losses = sum(jax.nn.softplus(other - positive) for other in others) / len(others)
    losses = (jnp.where(valid, weight, 0.0) * losses).sum(0) / count
    return losses, (valid & (positive > best)).sum(0) / count


def _cosines(left: jax.Array, right: jax.Array) -> jax.Array:
    # Split by queries, even if hard negatives make more columns than rows: their scores are joined to those of targets.
    # Full precision: at a temperature of 0.01, the bfloat16 error of 0.004 shifts a logit by 0.4.
    return split_rows(jnp.matmul(left, right.T, precision=jax.lax.Precision.HIGHEST))
