"""Exact nearest rows by cosine, in blocks on the devices.

Axis letters: Q queries, N rows of the corpus, D width, K results per query.
"""

import numpy as np
from jaxtyping import Float, Float32, Int, Int64

from sail_jax.vectors.score_blocks import ScoreBlocks, TargetBlocks

_QUERY_BLOCK = 512


def top_k(
    queries: Float[np.ndarray, "Q D"],
    corpus: Float[np.ndarray, "N D"],
    k: int,
    *,
    block: int,
    exclude: Int[np.ndarray, " Q"] | None = None,
) -> tuple[Int64[np.ndarray, "Q K"], Float32[np.ndarray, "Q K"]]:
    """The k corpus rows with the highest cosine to each query; ties go to the lower row.

    Never more than 512 x `block` scores exist at a time, on each device.

    Args:
        queries: a row of zeros finds nothing.
        corpus: may be memory-mapped. Rows of zeros are never found.
        k: K, results per query.
        block: corpus rows scored at a time.
        exclude: the row that a query must not find (itself), or -1.

    Returns:
        rows: -1 where there are fewer than k.
        cosines: -inf there.
    """
    return top_k_of(queries, TargetBlocks(corpus, corpus.any(axis=-1), block), k, exclude=exclude)


def top_k_of(
    queries: Float[np.ndarray, "Q D"], corpus: TargetBlocks, k: int, *, exclude: Int[np.ndarray, " Q"] | None = None
) -> tuple[Int64[np.ndarray, "Q K"], Float32[np.ndarray, "Q K"]]:
    """As `top_k`, of a corpus that is in blocks, which may lie on the devices already."""
    if not len(queries) or not len(corpus):
        return np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
    present = queries.any(axis=-1)
    exclude = np.full(len(queries), -1, np.int64) if exclude is None else exclude
    hidden = np.flatnonzero((exclude >= 0) & present & corpus.present[exclude])
    known = hidden * len(corpus) + exclude[hidden]
    blocks = ScoreBlocks(queries, corpus, present, known, _QUERY_BLOCK)
    _, rows, cosines = zip(*blocks.top_below(np.inf, k), strict=True)
    return np.concatenate(rows), np.concatenate(cosines)
