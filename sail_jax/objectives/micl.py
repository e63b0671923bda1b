"""mICL: the visual and the textual part of a fused item are contrasted each on its own.

Axes: B pairs of the global batch, K targets of a pair (its target and its hard negatives), D width.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

Contrast = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Part(NamedTuple):
    """What one modality contributes to the fused items: means over its positions, rows of zeros where it is absent.

    Attributes:
        query: [B, D].
        target: [B, K, D].
    """

    query: jax.Array
    target: jax.Array


def micl(contrast: Contrast, visual: Part, textual: Part) -> tuple[jax.Array, jax.Array]:
    """Multimodal in-context learning loss, L = L_nce(n_v, n_v+) + L_nce(n_t, n_t+) (arXiv 2510.12709, sec. 3.3.2).

    From NoteLLM-2 (arXiv 2405.16789): it keeps the LLM from leaning on text alone. A pair counts for a modality when both its
    items have it.

    Args:
        contrast: (query [B, D], targets [B, K, D], whether each exists [B], [B, K]) -> (loss [], pairs that count []).
        visual: n_v, the means of the fused states over the visual positions.
        textual: n_t, those over the text positions.

    Returns:
        The loss, [] float32, and the pairs that count, of the modality with more of them.
    """
    (visual_loss, visual_count), (text_loss, text_count) = (
        contrast(part.query, part.target, present(part.query), present(part.target)) for part in (visual, textual)
    )
    return visual_loss + text_loss, jax.numpy.maximum(visual_count, text_count)


def present(rows: jax.Array) -> jax.Array:
    """[..., D] -> [...] bool; a modality that is absent leaves a row of zeros."""
    return (rows != 0).any(axis=-1)
