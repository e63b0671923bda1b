"""Residual quantisation: fits codebooks by k-means, assigns codes, and reconstructs vectors.

Axes: N rows, W width, K codes of a level, L levels.
"""

from collections.abc import Sequence

import numpy as np

from sail_jax.errors import SailError
from sail_jax.progress import track
from sail_jax.vectors.faiss_kmeans import faiss_kmeans, nearest_centroids


def residual_kmeans(x: np.ndarray, sizes: Sequence[int], *, rounds: int, seed: int) -> list[np.ndarray]:
    """Fits codebooks level by level: each is the k-means (faiss) of the residuals of the levels before.

    Source: RQ-KMeans; residual quantisation into semantic IDs, arXiv 2510.12709, sec. 4.4.6.

    Args:
        x: [N, W] float32, finite.
        sizes: L sizes of codebooks.
        rounds: number of rounds of Lloyd's algorithm, per level.
        seed: seed of the initial centroids of the first level; each further level adds one.

    Returns:
        L arrays [K, W] float32.

    Raises:
        SailError: there are fewer rows than codes of a level.
    """
    require_rows(len(x), sizes)
    residual, codebooks = np.array(x, np.float32), []
    for level, size in enumerate(track(sizes, f"residual k-means {'-'.join(map(str, sizes))}")):
        codebooks.append(faiss_kmeans(residual, size, rounds=rounds, seed=seed + level))
        residual -= codebooks[-1][nearest_centroids(residual, codebooks[-1])]
    return codebooks


def require_rows(rows: int, sizes: Sequence[int]) -> None:
    """Checks that there are at least as many rows as the largest codebook has codes.

    Raises:
        SailError: there are fewer rows.
    """
    if rows < max(sizes):
        raise SailError(
            f"{rows} vectors cannot fill a codebook of {max(sizes)} codes; fit on more vectors or ask for fewer codes."
        )


def quantize(x: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the codes of rows, [N, L] int32: greedily, at each level the code nearest to the residual.

    Args:
        x: [N, W] float32.
        codebooks: L arrays [K, W] float32.
    """
    residual, codes = np.array(x, np.float32), np.zeros((len(x), len(codebooks)), np.int32)
    for level, codebook in enumerate(codebooks):
        codes[:, level] = nearest_centroids(residual, codebook)
        residual -= codebook[codes[:, level]]
    return codes


def reconstruct(codes: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the sum of the codes [N, l] of the first l levels, [N, W] float32."""
    total = np.zeros((len(codes), codebooks[0].shape[1]), np.float32)
    for level in range(codes.shape[1]):
        total += codebooks[level][codes[:, level]]
    return total
