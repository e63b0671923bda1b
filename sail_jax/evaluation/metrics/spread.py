"""How far the vectors of a corpus are spread over their space: signs of a collapsed model.

Axes: N rows of the corpus, n of them measured, D width.
"""

from collections.abc import Iterator

import numpy as np

from sail_jax.vectors.unit import unit_rows

_BLOCK = 8192
_CONSTANT = 1e-12  # total variance below which unit vectors differ by rounding alone


def spread(vectors: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """Returns the norm of the mean unit vector and the effective dimension of some rows.

    The effective dimension is the participation ratio tr(C)^2 / tr(C^2) of the covariance C of the unit vectors: n if
    the variance is spread evenly over n directions, 1 if the vectors lie on a line. Memory holds blocks of rows and C.

    Args:
        vectors: [N, D]; may be memory-mapped.
        rows: [n] int, the rows to measure, n > 0; none is zero.

    Returns:
        "mean_norm" in [0, 1], 1 if all rows point in one direction; "effective_dimension" in [1, D], 0 if all rows are
        equal.
    """
    mean = sum(block.sum(axis=0, dtype=np.float64) for block in _unit_blocks(vectors, rows)) / len(rows)
    covariance = np.zeros((len(mean), len(mean)))
    for block in _unit_blocks(vectors, rows):
        centred = block - mean.astype(np.float32)
        covariance += centred.T @ centred / len(rows)
    total = np.trace(covariance)
    dimensions = total**2 / np.sum(covariance**2) if total > _CONSTANT else 0.0
    return {"mean_norm": float(np.linalg.norm(mean)), "effective_dimension": float(dimensions)}


def _unit_blocks(vectors: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    return (unit_rows(vectors[rows[start : start + _BLOCK]]) for start in range(0, len(rows), _BLOCK))
