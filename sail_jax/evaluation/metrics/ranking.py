"""Retrieval metrics that depend on the ranks of relevant items: nDCG, MRR and MAP.

Axes: Q queries, K results of a query.
"""

from collections.abc import Sequence

import numpy as np

from sail_jax.evaluation.metrics.recall import relevant_hits


def ranking_metrics(rows: np.ndarray, relevant: Sequence[np.ndarray], ks: Sequence[int]) -> dict[str, float]:
    """Returns nDCG, MRR and MAP at several cut-offs, averaged over queries; relevance is binary.

    They are defined as in trec_eval: nDCG@k is the sum of 1 / log2(rank + 1) over the relevant rows among the first k,
    over the highest possible sum (`ndcg_cut`); MRR@k is one over the rank of the first relevant row, 0 if it is beyond
    k (`recip_rank`); MAP@k is the sum of the precision at each relevant rank up to k, over the number of all relevant
    rows (`map_cut`).

    Args:
        rows: [Q, K] int, the results of each query, best first; -1 is no result.
        relevant: Q arrays of the relevant rows, none empty.
        ks: cut-offs, at most K.

    Returns:
        "ndcg@k", "mrr@k" and "map@k" -> value in [0, 1].
    """
    hits, total = relevant_hits(rows, relevant)
    ranks = np.arange(1, rows.shape[1] + 1)
    gains = 1 / np.log2(ranks + 1)
    found = np.cumsum(hits * gains, axis=1)
    ideal = np.cumsum(gains)
    first = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, np.inf)
    precision = np.cumsum(hits * np.cumsum(hits, axis=1) / ranks, axis=1)
    figures = {}
    for k in ks:
        figures[f"ndcg@{k}"] = float((found[:, k - 1] / ideal[np.minimum(total, k) - 1]).mean())
        figures[f"mrr@{k}"] = float(np.where(first <= k, 1 / first, 0).mean())
        figures[f"map@{k}"] = float((precision[:, k - 1] / total).mean())
    return figures
