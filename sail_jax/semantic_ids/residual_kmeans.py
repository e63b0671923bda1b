"""Residual quantisation: codebooks by k-means, the codes of vectors, and the vectors of codes.

Axes: N rows, W width, K codes of a level, L levels.
"""

from collections.abc import Sequence

import numpy as np
from rich.progress import track

from sail_jax.errors import SailError
from sail_jax.vectors.faiss_kmeans import faiss_kmeans, nearest_centroids


def residual_kmeans(x: np.ndarray, sizes: Sequence[int], *, rounds: int, seed: int) -> list[np.ndarray]:
    """Codebooks level by level: each is the k-means (faiss) of what the levels before it leave of the rows.

    Source: RQ-KMeans; residual quantisation into semantic IDs, arXiv 2510.12709, sec. 4.4.6.

    Args:
        x: [N, W] float32, finite.
        sizes: L sizes of codebooks.
        rounds: of Lloyd's algorithm, per level.
        seed: of the first centroids of the first level; each further level adds one.

    Returns:
        L arrays [K, W] float32.

    Raises:
        SailError: there are fewer rows than codes of a level.
    """
    require_rows(len(x), sizes)
    left, codebooks = np.array(x, np.float32), []
    for level, size in enumerate(track(sizes, f"residual k-means {'-'.join(map(str, sizes))}")):
        codebooks.append(faiss_kmeans(left, size, rounds=rounds, seed=seed + level))
        left -= codebooks[-1][nearest_centroids(left, codebooks[-1])]
    return codebooks


def require_rows(rows: int, sizes: Sequence[int]) -> None:
    """Checks that there are as many rows as the largest codebook has codes.

    Raises:
        SailError: there are fewer.
    """
    if rows < max(sizes):
        raise SailError(
            f"{rows} vectors cannot fill a codebook of {max(sizes)} codes; fit on more vectors or ask for fewer codes."
        )


def quantize(x: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    """The codes of rows, [N, L] int32: greedily, level by level, the code nearest to what is left.

    Args:
        x: [N, W] float32.
        codebooks: L arrays [K, W] float32.
    """
    left, codes = np.array(x, np.float32), np.zeros((len(x), len(codebooks)), np.int32)
    for level, codebook in enumerate(codebooks):
        codes[:, level] = nearest_centroids(left, codebook)
        left -= codebook[codes[:, level]]
    return codes


def reconstruct(codes: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    """[N, W] float32: the sum of the codes [N, l] of the first l levels."""
    total = np.zeros((len(codes), codebooks[0].shape[1]), np.float32)
    for level in range(codes.shape[1]):
        total += codebooks[level][codes[:, level]]
    return total
