"""Separation of the cosines of matching and of other pairs (arXiv 2510.12709, sec. 4.2)."""

import numpy as np

_BINS = 50


def separability(positive: np.ndarray, negative: np.ndarray) -> tuple[dict[str, float], dict[str, list]]:
    """Returns gap, d' and overlap of two distributions of cosines, and histograms over shared edges.

    The gap is the difference of the means; d' is the gap over the root of the mean of the two variances; the overlap is
    the sum over the bins of the smaller of the two shares: 0 if a threshold separates the two, 1 if they are equal.

    Args:
        positive: [P] cosines of matching pairs, P > 0.
        negative: [M] cosines of other pairs, M > 0.

    Returns:
        figures: "gap", "dprime" (infinite if both have variance 0 and their means differ), "overlap", "positive_mean",
            "negative_mean".
        histograms: "edges" [51] from the lowest to the highest cosine, "positive" [50] and "negative" [50] counts.
    """
    edges = np.histogram_bin_edges(np.concatenate([positive, negative]).astype(np.float64), bins=_BINS)
    counts = [np.histogram(side, bins=edges)[0] for side in (positive, negative)]
    shares = [count / count.sum() for count in counts]
    means = [float(np.mean(side, dtype=np.float64)) for side in (positive, negative)]
    spread = np.sqrt((np.var(positive, dtype=np.float64) + np.var(negative, dtype=np.float64)) / 2)
    gap = means[0] - means[1]
    figures = {
        "gap": gap,
        "dprime": float(gap / spread) if spread > 0 else float(np.copysign(np.inf, gap)) if gap else 0.0,
        "overlap": float(np.minimum(*shares).sum()),
        "positive_mean": means[0],
        "negative_mean": means[1],
    }
    histograms = {"edges": edges.tolist(), "positive": counts[0].tolist(), "negative": counts[1].tolist()}
    return figures, histograms
