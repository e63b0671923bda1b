"""Matryoshka representation learning: the same loss on nested slices of the embedding.

Axes: B pairs, D width.
"""

from collections.abc import Callable, Sequence

import jax

from sail_jax.errors import SailError

Loss = Callable[[jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


def matryoshka(
    loss: Loss, query: jax.Array, target: jax.Array, widths: Sequence[int]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sum of a loss over slices: L = sum_k loss(query[..., :k], target[..., :k]) (arXiv 2510.12709, sec. 3.3.2).

    Each slice is normalised on its own by the loss. Equals sentence-transformers' MatryoshkaLoss with weights of one.

    Args:
        loss: (query, target) -> (loss, metrics).
        query: [..., D].
        target: [..., D].
        widths: widths of the slices.

    Returns:
        The sum, [] float32, and the metrics of each slice under "WIDTH/NAME", its loss among them.
    """
    check_widths(widths, query.shape[-1])
    total, metrics = 0.0, {}
    for width in widths:
        value, details = loss(query[..., :width], target[..., :width])
        total += value
        metrics |= {f"{width}/{name}": entry for name, entry in {"loss": value, **details}.items()}
    return total, metrics


def check_widths(widths: Sequence[int], full: int) -> None:
    """Raises SailError when a slice is empty or wider than the embedding, or when the same width comes twice."""
    if not widths or min(widths) < 1 or max(widths) > full or len(set(widths)) != len(widths):
        raise SailError(
            f"config.objective.matryoshka is {tuple(widths)}; give different widths of at most the embedding's, {full}."
        )
