"""A 2-D map of embeddings: principal components, then t-SNE (van der Maaten and Hinton, 2008) of scikit-learn."""

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

MAX_POINTS = 1500
_COMPONENTS = 50
_PERPLEXITY = 30.0
# Below this many points t-SNE has no neighbourhoods to keep, and the principal components say it all.
_FEWEST_FOR_TSNE = 12


def draw_rows(count: int, seed: int) -> np.ndarray:
    """The rows that a map shows: all of them, or `MAX_POINTS` drawn without replacement; ascending.

    Args:
        count: rows there are.
        seed: of the draw.

    Returns:
        [min(count, MAX_POINTS)] int64.
    """
    if count <= MAX_POINTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, MAX_POINTS, replace=False))


def project(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Places vectors in the plane so that neighbours stay together; the same vectors give the same map.

    Args:
        vectors: [N, D] float32, N at most `MAX_POINTS`.
        seed: of PCA's and t-SNE's draws.

    Returns:
        [N, 2] float32, centred; its axes have no meaning and no unit.

    Raises:
        ValueError: on more than `MAX_POINTS` vectors, for which the map would take minutes.
    """
    count, width = vectors.shape
    if count > MAX_POINTS:
        raise ValueError(f"{count} vectors; draw at most {MAX_POINTS} of them")
    components = min(_COMPONENTS, width, count)
    if not components or np.ptp(vectors, axis=0).max() == 0:
        return np.zeros((count, 2), np.float32)
    # The gradient is a sum over threads, whose order is not the same twice.
    with threadpool_limits(1):
        reduced = PCA(components, random_state=seed).fit_transform(vectors.astype(np.float64))
        plane = np.zeros((count, 2))
        plane[:, : min(2, components)] = reduced[:, :2]
        if count < _FEWEST_FOR_TSNE:
            return plane.astype(np.float32)
        start = plane / np.std(plane[:, 0]) * 1e-4  # as scikit-learn's init="pca" has it
        tsne = TSNE(
            perplexity=min(_PERPLEXITY, (count - 1) / 3), init=start.astype(np.float32), random_state=seed, n_jobs=1
        )
        return tsne.fit_transform(reduced.astype(np.float32)).astype(np.float32)
