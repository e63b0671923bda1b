"""Matryoshka representation learning: the same loss on nested slices of the embedding.

Axis letters: D width.
"""

from collections.abc import Callable, Sequence

from jaxtyping import Array, Float, Float32

from sail_jax.errors import SailError

Value = tuple[Float32[Array, ""], dict[str, Float32[Array, ""]]]
Loss = Callable[[Float[Array, "*queries _"], Float[Array, "*targets _"]], Value]


def matryoshka(
    loss: Loss, query: Float[Array, "*queries D"], target: Float[Array, "*targets D"], widths: Sequence[int]
) -> Value:
    """Sum of a loss over slices: L = sum_k loss(query[..., :k], target[..., :k]) (arXiv 2510.12709, sec. 3.3.2).

    Each slice is normalised on its own by the loss. Equals sentence-transformers' MatryoshkaLoss with weights of one.

    Args:
        loss: (query, target) -> (loss, metrics).
        query: embeddings of queries.
        target: those of targets.
        widths: widths of the slices.

    Returns:
        The sum, and the metrics of each slice under "WIDTH/NAME", its loss among them.
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
