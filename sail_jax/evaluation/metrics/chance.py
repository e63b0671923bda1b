"""What a random ranking reaches on average: the floor of recall and accuracy.

Axes: Q queries.
"""

from collections.abc import Sequence

import numpy as np


def recall_by_chance(
    candidates: np.ndarray, findable: np.ndarray, relevant: np.ndarray, ks: Sequence[int]
) -> dict[str, float]:
    """Returns the expected recall at k of a random ranking.

    It is the share of the candidates that is among the first k, however many of them are relevant.

    Args:
        candidates: [Q] int, the rows that each query searches; 0 for a query without a vector.
        findable: [Q] int, how many of them are relevant.
        relevant: [Q] int, all relevant rows of the query, at least 1; those that cannot be found count as misses.
        ks: cut-offs.

    Returns:
        "recall@k" -> share in [0, 1].
    """
    reach = findable / relevant / np.maximum(candidates, 1)
    return {f"recall@{k}": float((reach * np.minimum(candidates, k)).mean()) for k in ks}


def accuracy_by_chance(candidates: np.ndarray, findable: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    """Returns the probability that a relevant row is among the first k of a random ranking.

    Arguments as in `recall_by_chance`; the number of relevant rows among the first k is hypergeometric.
    """
    from scipy.stats import hypergeom

    drawn = {k: np.minimum(candidates, k) for k in ks}
    return {f"accuracy@{k}": float(hypergeom.sf(0, np.maximum(candidates, 1), findable, drawn[k]).mean()) for k in ks}
