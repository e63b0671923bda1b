"""mICL: contrasts the visual and the textual part of fused items separately.

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
    """Mean fused states over the positions of one modality; zeros for items without it.

    Attributes:
        query: means of the queries.
        target: means of their targets and hard negatives.
    """

    query: Float32[Array, "B D"]
    target: Float32[Array, "B K D"]


def micl(contrast: Contrast, visual: Part, textual: Part) -> tuple[Float32[Array, ""], Int32[Array, ""]]:
    """Computes the multimodal in-context learning loss, L = L_nce(n_v, n_v+) + L_nce(n_t, n_t+).

    Source: arXiv 2510.12709, sec. 3.3.2, from NoteLLM-2 (arXiv 2405.16789). It keeps the LLM from relying only on text.
    A pair counts for a modality if both of its items have it.

    Args:
        contrast: (query, targets, whether each query exists, whether each target exists) -> (loss, pairs that count).
        visual: n_v, the means of the fused states over the visual positions.
        textual: n_t, the means over the text positions.

    Returns:
        The loss, and the larger of the two modalities' numbers of pairs that count.
    """
    (visual_loss, visual_count), (text_loss, text_count) = (
        contrast(part.query, part.target, present(part.query), present(part.target)) for part in (visual, textual)
    )
    return visual_loss + text_loss, jnp.maximum(visual_count, text_count)


def present(rows: Float32[Array, "*rows D"]) -> Bool[Array, "*rows"]:
    """Returns which rows are not all zeros; an absent modality is a row of zeros."""
    return (rows != 0).any(axis=-1)
