"""Exact nearest-neighbour search by cosine, by blocks on the devices.

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
    """Returns the k corpus rows with the highest cosine to each query; ties go to the lower row.

    Each device stores at most 512 x `block` scores at a time.

    Args:
        queries: vectors of any length; a row of zeros has no results.
        corpus: vectors of any length; may be memory-mapped. Rows of zeros are never results.
        k: K, results per query.
        block: corpus rows scored at once.
        exclude: a corpus row that each query excludes, such as itself; -1 for none.

    Returns:
        rows: indices of corpus rows, highest cosine first; -1 where a query has fewer than k.
        cosines: cosines of these rows; -inf where a query has fewer than k.
    """
    return top_k_of(queries, TargetBlocks(corpus, corpus.any(axis=-1), block), k, exclude=exclude)


def top_k_of(
    queries: Float[np.ndarray, "Q D"], corpus: TargetBlocks, k: int, *, exclude: Int[np.ndarray, " Q"] | None = None
) -> tuple[Int64[np.ndarray, "Q K"], Float32[np.ndarray, "Q K"]]:
    """Returns the result of `top_k` for a corpus in blocks, which may already be on the devices."""
    if not len(queries) or not len(corpus):
        return np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
    present = queries.any(axis=-1)
    exclude = np.full(len(queries), -1, np.int64) if exclude is None else exclude
    hidden = np.flatnonzero((exclude >= 0) & present & corpus.present[exclude])
    known = hidden * len(corpus) + exclude[hidden]
    blocks = ScoreBlocks(queries, corpus, present, known, _QUERY_BLOCK)
    _, rows, cosines = zip(*blocks.top_below(np.inf, k), strict=True)
    return np.concatenate(rows), np.concatenate(cosines)
