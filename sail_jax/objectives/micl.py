"""mICL: the visual and the textual part of a fused item are contrasted each on its own.

Axis letters: B pairs of the global batch, K targets of a pair (its target and its hard negatives), D width.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

Contrast = Callable[
    [Float32[Array, "B D"], Float32[Array, "B K D"], Bool[Array, " B"], Bool[Array, "B K"]],
    tuple[Float32[Array, ""], Int32[Array, ""]],
]


class Part(NamedTuple):
    """What one modality contributes to the fused items: means over its positions, rows of zeros where it is absent.

    Attributes:
        query: of the queries.
        target: of their targets.
    """

    query: Float32[Array, "B D"]
    target: Float32[Array, "B K D"]


def micl(contrast: Contrast, visual: Part, textual: Part) -> tuple[Float32[Array, ""], Int32[Array, ""]]:
    """Multimodal in-context learning loss, L = L_nce(n_v, n_v+) + L_nce(n_t, n_t+) (arXiv 2510.12709, sec. 3.3.2).

    From NoteLLM-2 (arXiv 2405.16789): it keeps the LLM from leaning on text alone. A pair counts for a modality when both its
    items have it.

    Args:
        contrast: (query, targets, whether the query exists, whether each target does) -> (loss, pairs that count).
        visual: n_v, the means of the fused states over the visual positions.
        textual: n_t, those over the text positions.

    Returns:
        The loss, and the pairs that count, of the modality with more of them.
    """
    (visual_loss, visual_count), (text_loss, text_count) = (
        contrast(part.query, part.target, present(part.query), present(part.target)) for part in (visual, textual)
    )
    return visual_loss + text_loss, jnp.maximum(visual_count, text_count)


def present(rows: Float32[Array, "*rows D"]) -> Bool[Array, "*rows"]:
    """Which rows exist; a modality that is absent leaves a row of zeros."""
    return (rows != 0).any(axis=-1)
