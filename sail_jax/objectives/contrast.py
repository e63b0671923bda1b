"""The contrastive loss of a pattern: its inputs, and the plain form that stores all scores.

Axis letters: B pairs of the global batch, K = 1 + M targets of a pair (its target and M hard negatives), D width.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Shaped

from sail_jax.batch import Batch
from sail_jax.objectives.info_nce import Correction, info_nce
from sail_jax.objectives.matryoshka import matryoshka
from sail_jax.objectives.negative_masks import find_negatives
from sail_jax.patterns import Pattern


class Contrast(NamedTuple):
    """The inputs of a contrastive loss.

    Attributes:
        query: embeddings of the queries.
        target: embeddings of the target and the hard negatives of each query.
        valid: pairs that count.
        valid_hard: hard negatives that count.
        temperature: temperature of each pair.
        weight: weight of each pair in the loss.
        batch: provides the keys that identify equal items.
        pattern: the views of the two sides.
        correction: frequencies of the candidates; None corrects nothing.
    """

    query: Float32[Array, "B D"]
    target: Float32[Array, "B K D"]
    valid: Bool[Array, " B"]
    valid_hard: Bool[Array, "B M"]
    temperature: Float32[Array, " B"]
    weight: Float32[Array, " B"]
    batch: Batch
    pattern: Pattern
    correction: Correction | None = None


class ContrastSettings(NamedTuple):
    """The settings of a contrastive loss.

    Attributes:
        widths: widths of the Matryoshka slices, whose losses are added.
        symmetric: whether targets are also scored against queries.
        share_hard: whether hard negatives of a pair are also negatives of the other queries.
    """

    widths: tuple[int, ...]
    symmetric: bool
    share_hard: bool


Metrics = dict[str, Float32[Array, ""]]
ContrastLoss = Callable[[Contrast, ContrastSettings], tuple[Float32[Array, ""], Metrics]]


def plain_contrast(given: Contrast, settings: ContrastSettings) -> tuple[Float32[Array, ""], Metrics]:
    """Computes InfoNCE, summed over the Matryoshka slices, with the masks of `find_negatives`.

    Returns:
        The loss; and "false_negatives" with the metrics of each slice, named "WIDTH/NAME".
    """
    negatives = find_negatives(
        given.batch, given.pattern, given.valid, given.valid_hard, share_hard=settings.share_hard
    )

    def one(query: Array, target: Array) -> tuple[Array, Metrics]:
        return info_nce(
            query,
            target[:, 0],
            given.temperature,
            negatives,
            given.valid,
            hard=target[:, 1:] if target.shape[1] > 1 else None,
            weight=given.weight,
            symmetric=settings.symmetric,
            correction=given.correction,
        )

    loss, metrics = matryoshka(one, given.query, given.target, settings.widths)
    return loss, metrics | {"false_negatives": false_negatives(negatives.targets.sum(1), given.valid)}


def false_negatives(negatives: Shaped[Array, " B"], valid: Bool[Array, " B"]) -> Float32[Array, ""]:
    """Returns the share of the other targets of a batch that are left out as known not to be negatives.

    Args:
        negatives: number of targets that are negatives of each query.
        valid: pairs that count.
    """
    others = valid.sum() - 1
    left_out = jnp.where(valid, others - negatives, 0).sum()
    return left_out / jnp.maximum(others * (others + 1), 1).astype(jnp.float32)
