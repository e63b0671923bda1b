"""The contrastive loss of one pattern: what it takes, and its plain form, which holds all scores of a batch at once.

Axes: B pairs of the global batch, K = 1 + M targets of a pair (its target and M hard negatives), D width.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from sail_jax.batch import Batch
from sail_jax.objectives.info_nce import info_nce
from sail_jax.objectives.matryoshka import matryoshka
from sail_jax.objectives.negative_masks import find_negatives
from sail_jax.patterns import Pattern


class Contrast(NamedTuple):
    """The inputs of a contrastive loss.

    Attributes:
        query: [B, D] float32.
        target: [B, K, D] float32.
        valid: [B] bool, pairs that count.
        valid_hard: [B, M] bool, hard negatives that count.
        temperature: [B] float32.
        weight: [B] float32, what each pair counts.
        batch: its keys tell which items are the same.
        pattern: the views of the two sides.
    """

    query: jax.Array
    target: jax.Array
    valid: jax.Array
    valid_hard: jax.Array
    temperature: jax.Array
    weight: jax.Array
    batch: Batch
    pattern: Pattern


class ContrastSettings(NamedTuple):
    """How it is computed.

    Attributes:
        widths: Matryoshka slices; their losses are added.
        symmetric: whether targets are scored against queries too.
        share_hard: whether hard negatives of a pair are negatives of the other queries too.
    """

    widths: tuple[int, ...]
    symmetric: bool
    share_hard: bool


Metrics = dict[str, jax.Array]
ContrastLoss = Callable[[Contrast, ContrastSettings], tuple[jax.Array, Metrics]]


def plain_contrast(given: Contrast, settings: ContrastSettings) -> tuple[jax.Array, Metrics]:
    """InfoNCE summed over the Matryoshka slices (`info_nce`, `matryoshka`), with the masks of `find_negatives`.

    Returns:
        The loss, [] float32, and the metrics of each slice under "WIDTH/NAME".
    """
    negatives = find_negatives(
        given.batch, given.pattern, given.valid, given.valid_hard, share_hard=settings.share_hard
    )

    def one(query: jax.Array, target: jax.Array) -> tuple[jax.Array, Metrics]:
        return info_nce(
            query,
            target[:, 0],
            given.temperature,
            negatives,
            given.valid,
            hard=target[:, 1:] if target.shape[1] > 1 else None,
            weight=given.weight,
            symmetric=settings.symmetric,
        )

    return matryoshka(one, given.query, given.target, settings.widths)
