"""Matryoshka representation learning: applies one loss to nested slices of the embedding.

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
    """Sums a loss over slices: L = sum_k loss(query[..., :k], target[..., :k]).

    Source: arXiv 2510.12709, sec. 3.3.2. The loss normalises each slice separately. Equals MatryoshkaLoss of
    sentence-transformers with weights of one.

    Args:
        loss: (query, target) -> (loss, metrics).
        query: embeddings of queries.
        target: embeddings of targets.
        widths: widths of the slices.

    Returns:
        The sum, and the loss and the metrics of each slice, named "WIDTH/NAME".

    Raises:
        SailError: wrong widths; see `check_widths`.
    """
    check_widths(widths, query.shape[-1])
    total, metrics = 0.0, {}
    for width in widths:
        value, details = loss(query[..., :width], target[..., :width])
        total += value
        metrics |= {f"{width}/{name}": entry for name, entry in {"loss": value, **details}.items()}
    return total, metrics


def check_widths(widths: Sequence[int], full: int) -> None:
    """Raises SailError if a width is repeated, below 1 or above that of the embedding."""
    if not widths or min(widths) < 1 or max(widths) > full or len(set(widths)) != len(widths):
        raise SailError(
            f"config.objective.matryoshka is {tuple(widths)}; give different widths of at most the embedding's, {full}."
        )
