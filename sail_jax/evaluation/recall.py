"""Recall at k by exact nearest-neighbour search, blocked on the devices.

Axes: Q queries, N corpus rows, D width, K results.
"""

from collections.abc import Sequence

import numpy as np

from sail_jax.parallel.score_blocks import ScoreBlocks, TargetBlocks

_QUERY_BLOCK = 512


def top_k(
    queries: np.ndarray, corpus: np.ndarray, k: int, *, block: int, exclude: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k corpus rows with the highest cosine to each query; ties go to the lower row.

    Never more than 512 x `block` scores exist at a time, on each device.

    Args:
        queries: [Q, D]; a row of zeros finds nothing.
        corpus: [N, D]; may be memory-mapped. Rows of zeros are never found.
        k: results per query.
        block: corpus rows scored at a time.
        exclude: [Q] int, the row that a query must not find (itself), or -1.

    Returns:
        rows: [Q, k] int64, -1 where there are fewer than k.
        cosines: [Q, k] float32, -inf there.
    """
    return top_k_of(queries, TargetBlocks(corpus, corpus.any(axis=-1), block), k, exclude=exclude)


def top_k_of(
    queries: np.ndarray, corpus: TargetBlocks, k: int, *, exclude: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
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


def relevant_hits(rows: np.ndarray, relevant: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Where something relevant is found, [Q, K] bool, and how much is relevant to each query, [Q] int; see `recall_at_k`."""
    hits = np.stack([np.isin(found, wanted) for found, wanted in zip(rows, relevant, strict=True)])
    return hits, np.array([len(np.unique(wanted)) for wanted in relevant])


def recall_at_k(rows: np.ndarray, relevant: Sequence[np.ndarray], ks: Sequence[int]) -> dict[str, float]:
    """Recall at several cut-offs: relevant found in the top k over all relevant, averaged over queries.

    Source: arXiv 2510.12709, sec. 4.2.

    Args:
        rows: [Q, K] int, the results of each query, best first.
        relevant: Q arrays of the relevant rows, none empty.
        ks: cut-offs, at most K.

    Returns:
        "recall@k" -> share in [0, 1].
    """
    hits, total = relevant_hits(rows, relevant)
    return {f"recall@{k}": float((hits[:, :k].sum(axis=1) / total).mean()) for k in ks}
