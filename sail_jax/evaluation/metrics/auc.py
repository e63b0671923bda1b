"""AUC of the cosine: how often a matching pair scores above another (arXiv 2510.12709, sec. 4.2)."""

import numpy as np


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Returns the area under the ROC curve of the cosines of matching pairs against those of other pairs.

    Ties count half.

    Args:
        positive: [P] cosines of matching pairs, P > 0.
        negative: [M] cosines of other pairs, M > 0.

    Returns:
        The area, in [0, 1].
    """
    from sklearn.metrics import roc_auc_score

    labels = np.repeat([1, 0], [len(positive), len(negative)])
    return float(roc_auc_score(labels, np.concatenate([positive, negative])))
