"""Agreement of the similarity rankings of the same items in two spaces (arXiv 2510.12709, sec. 4.2).

Axes: n items, D width.
"""

from collections.abc import Sequence

import numpy as np

from sail_jax.vectors.unit import unit_rows


def kendall(left: np.ndarray, right: np.ndarray) -> float:
    """Returns Kendall's tau = (C - D) / (C + D) of two lists of scores.

    C and D are the numbers of concordant and of discordant pairs; a pair that is tied in either list is neither. This
    is Goodman and Kruskal's gamma; without ties it is scipy's tau. It is computed from tau-b and the counts of ties,
    in O(n log n).

    Args:
        left: [n] scores.
        right: [n] scores of the same items.

    Returns:
        tau in [-1, 1]; NaN if all pairs are tied.
    """
    from scipy.stats import kendalltau

    pairs = len(left) * (len(left) - 1) // 2
    tied_left, tied_right = _tied(left), _tied(right)
    untied = pairs - tied_left - tied_right + _tied(np.stack([left, right], axis=1))
    if untied == 0:
        return float("nan")
    difference = kendalltau(left, right, method="asymptotic").statistic
    difference *= np.sqrt(float(pairs - tied_left)) * np.sqrt(float(pairs - tied_right))
    return float(np.rint(difference) / untied)


def _tied(values: np.ndarray) -> int:
    """Returns the number of pairs of equal rows."""
    _, counts = np.unique(values, axis=0, return_counts=True)
    return int((counts * (counts - 1) // 2).sum())


def rank_agreement(left: np.ndarray, right: np.ndarray, anchors: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    """Returns Kendall's tau and the top-k overlap of the rankings of two spaces, averaged over anchors.

    For each anchor, all other items are ranked by their cosine to it, once in each space.

    Args:
        left: [n, D] vectors of the items in one space.
        right: [n, E] vectors of the same items in the other space.
        anchors: rows of the anchors.
        ks: cut-offs below n; of equal cosines, the lower row counts as nearer.

    Returns:
        "kendall" in [-1, 1], NaN if no anchor has an untied pair; "top@k" -> share of the k nearest items in common.
    """
    # Sum in double precision and round after, so that equal vectors score equally in every row.
    spaces = [unit_rows(space).astype(np.float64) for space in (left, right)]
    taus, shared = [], {k: [] for k in ks}
    for anchor in anchors:
        scores = [np.delete(space @ space[anchor], anchor).astype(np.float32) for space in spaces]
        taus.append(kendall(*scores))
        orders = [np.argsort(-score, kind="stable") for score in scores]
        for k in ks:
            shared[k].append(len(np.intersect1d(orders[0][:k], orders[1][:k])) / k)
    defined = [tau for tau in taus if np.isfinite(tau)]
    return {"kendall": float(np.mean(defined)) if defined else float("nan")} | {
        f"top@{k}": float(np.mean(shares)) for k, shares in shared.items()
    }
