"""Recall at k: the share of the relevant items found among the first k results.

Axes: Q queries, N corpus rows, D width, K results.
"""

from collections.abc import Sequence

import numpy as np


def relevant_hits(rows: np.ndarray, relevant: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns which results are relevant, [Q, K] bool, and how many rows are, for each query, [Q] int.

    Arguments as in `recall_at_k`.
    """
    owners = np.repeat(np.arange(len(relevant)), [len(wanted) for wanted in relevant])
    wanted = np.concatenate(relevant)
    span = 1 + max(rows.max(), wanted.max())
    pairs = np.unique(owners * span + wanted)
    hits = np.isin(np.arange(len(rows))[:, None] * span + rows, pairs) & (rows >= 0)
    return hits, np.bincount(pairs // span, minlength=len(relevant))


def recall_at_k(rows: np.ndarray, relevant: Sequence[np.ndarray], ks: Sequence[int]) -> dict[str, float]:
    """Returns recall at several cut-offs: relevant rows in the top k over all relevant rows.

    It is averaged over queries.

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
