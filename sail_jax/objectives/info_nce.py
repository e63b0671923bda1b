"""InfoNCE over cosine similarities with in-batch and hard negatives.

Axis letters: B pairs of the global batch, M hard negatives of a pair, D width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from sail_jax.objectives.negative_masks import Negatives
from sail_jax.sharding.activations import split_rows
from sail_jax.vectors.unit import normalize

_MASKED = -1e30


class Correction(NamedTuple):
    """The sampling-bias correction (logQ): how likely each candidate was to come into the batch.

    In-batch negatives come as often as they are popular, so the optimum of InfoNCE is a pointwise mutual information.
    With log q subtracted from the logit of every candidate, it is the log probability of the candidate, up to a
    constant (Bengio and Senecal 2008; Yi et al. 2019, "Sampling-bias-corrected neural modeling").

    Attributes:
        query: log q of each query as a candidate of the targets.
        target: log q of each target as a candidate of the queries.
        hard: log q of each hard negative.
        strength: factor on log q in the logits of a pair's query and of its target; 0 for no correction.
    """

    query: Float32[Array, " B"]
    target: Float32[Array, " B"]
    hard: Float32[Array, "B M"]
    strength: Float32[Array, " B"]


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
    correction: Correction | None = None,
) -> tuple[Float32[Array, ""], dict[str, Float32[Array, ""]]]:
    """Computes the contrastive loss of arXiv 2510.12709, sec. 3.1.2 and 3.3.2.

        L = - mean_i w_i log( exp(s_ii / tau_i)
              / (exp(s_ii / tau_i) + sum_{j in N_i} exp(s_ij / tau_i) + sum_{h in H_i} exp(s_ih / tau_i)) )

    with s the cosine, N_i targets of other pairs and H_i hard negatives. With `symmetric`, it is the mean of this loss
    and of the loss with queries and targets swapped, which has no hard negatives, as in CLIP. With all other targets as
    negatives and one temperature it equals MultipleNegativesRankingLoss (scale = 1 / tau) of sentence-transformers,
    also with hard negatives. With a `correction` of strength a, s_ij / tau_i becomes s_ij / tau_i - a_i log q_j for all
    candidates, the positive included, in both directions.

    Args:
        query: embeddings of the queries; computed in float32.
        target: embeddings of the targets.
        temperature: temperature of each pair.
        negatives: the targets and hard negatives that are negatives of each query.
        valid: pairs that count. A batch without a valid pair has loss 0.
        hard: hard negatives, or None.
        weight: weight of each pair; None for one. The sum is divided by the number of valid pairs, not by their weight.
        symmetric: whether targets are also scored against queries.
        correction: frequencies of the candidates; None corrects nothing.

    Returns:
        The loss, and metrics: "accuracy", the share of valid queries whose target has a higher logit than any negative.
    """
    weight = jnp.ones(len(valid)) if weight is None else weight
    query, target = normalize(query), normalize(target)
    scores = _cosines(query, target)
    positive = jnp.diagonal(scores) / temperature
    logits = scores / temperature[:, None]
    if correction is not None:
        logits -= correction.strength[:, None] * correction.target
    masked = jnp.where(negatives.targets, logits, _MASKED)
    if hard is not None:
        hard_logits = _cosines(query, normalize(hard.reshape(-1, hard.shape[-1]))) / temperature[:, None]
        if correction is not None:
            hard_logits -= correction.strength[:, None] * correction.hard.reshape(-1)
        masked = jnp.concatenate([masked, jnp.where(negatives.hard, hard_logits, _MASKED)], axis=1)
    others, best = [jax.nn.logsumexp(masked, axis=-1)], masked.max(axis=-1)
    if symmetric:
        # Reduce along the columns: a transpose would move the scores of a sharded batch between all devices.
        back = scores / temperature
        if correction is not None:
            back -= correction.strength * correction.query[:, None]
        others.append(jax.nn.logsumexp(jnp.where(negatives.targets, back, _MASKED), axis=0))
    if correction is not None:
        others, best = correct_positives(others, best, correction)
    loss, accuracy = mean_loss(positive, others, best, valid, weight)
    return loss, {"accuracy": accuracy}


def correct_positives(
    others: Sequence[Float32[Array, " B *losses"]], best: Float32[Array, " B *losses"], correction: Correction
) -> tuple[list[Float32[Array, " B *losses"]], Float32[Array, " B *losses"]]:
    """Shifts the logits of the negatives by the correction of the positive; only differences count.

    A positive has a correction of its own in each direction, and the two losses share its logit.

    Args:
        others: for each direction, the log-sum-exp over the negatives; queries first.
        best: highest logit among the negatives of each query.
        correction: frequencies of the candidates.

    Returns:
        The arguments `others` and `best` of `mean_loss`.
    """
    own = [correction.strength * correction.target, correction.strength * correction.query]
    own = [x.reshape(-1, *[1] * (best.ndim - 1)) for x in own]
    return [other + shift for other, shift in zip(others, own, strict=False)], best + own[0]


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
