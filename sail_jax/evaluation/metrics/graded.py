"""Agreement of cosines with the grades of the items listed for a query: Spearman's rho and nDCG.

Axes: P judged pairs of a query and an item, K places of a ranking.
"""

from collections.abc import Sequence

import numpy as np


def graded_metrics(queries: np.ndarray, grades: np.ndarray, cosines: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    """Returns Spearman's rho and nDCG over the judged items of a query, averaged over queries.

    A query counts if its items have at least two different grades. Only they are ranked, by cosine; equal cosines share
    their places, as in scipy's `spearmanr` and scikit-learn's `ndcg_score`, which the two figures equal. The gain of an
    item is its grade. A query whose cosines are all equal counts as a rho of 0.

    Args:
        queries: [P] int, ascending.
        grades: [P], at least 0.
        cosines: [P].
        ks: cut-offs of nDCG beside that of all judged items; those that no query has more judged items than are left
            out.

    Returns:
        "spearman" in [-1, 1], "ndcg" and "ndcg@k" in [0, 1], and "queries", their number; empty if there is none.
    """
    _, starts, group = np.unique(queries, return_index=True, return_inverse=True)
    if not len(starts):
        return {}
    kept = (np.minimum.reduceat(grades, starts) < np.maximum.reduceat(grades, starts))[group]
    if not kept.all():
        return graded_metrics(queries[kept], grades[kept], cosines[kept], ks)
    places = np.arange(len(group)) - starts[group]
    ranks = np.arange(places.max() + 1)
    rho = _correlation(group, *(_of_place(group, places, side, ranks) for side in (grades, cosines)))
    figures = {"spearman": float(rho.mean())}
    cut_offs = {f"ndcg@{k}": k for k in ks if k < len(ranks)}
    for name, k in {"ndcg": len(ranks), **cut_offs}.items():
        discounts = np.where(ranks < k, 1 / np.log2(ranks + 2), 0)
        gains = (grades * _of_place(group, places, side, discounts) for side in (cosines, grades))
        found, ideal = (np.bincount(group, gain) for gain in gains)
        figures[name] = float((found / ideal).mean())
    return figures | {"queries": float(len(starts))}


def _of_place(group: np.ndarray, places: np.ndarray, values: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """Returns what the place of each value is worth within its group, highest value first; ties share the mean.

    Args:
        group: [P] int, ascending.
        places: [P] int, the number of pairs of the same group that stand before each.
        values: [P].
        worth: [K], of each place, first one first.

    Returns:
        [P] float64.
    """
    order = np.lexsort((-values, group))
    new = (np.diff(values[order], prepend=np.nan) != 0) | (places == 0)
    tie = np.cumsum(new) - 1
    shared = np.bincount(tie, worth[places]) / np.bincount(tie)
    out = np.empty(len(values))
    out[order] = shared[tie]
    return out


def _correlation(group: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns Pearson's correlation of each group, [groups]; 0 where one side is constant."""
    counts = np.bincount(group)
    left, right = (side - (np.bincount(group, side) / counts)[group] for side in (left, right))
    spread = np.sqrt(np.bincount(group, left**2) * np.bincount(group, right**2))
    return np.divide(np.bincount(group, left * right), spread, out=np.zeros(len(counts)), where=spread > 0)
