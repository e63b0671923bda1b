"""Maps embeddings to 2-D by scikit-learn's PCA and t-SNE (van der Maaten and Hinton, 2008)."""

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

MAX_POINTS = 1500
_COMPONENTS = 50
_PERPLEXITY = 30.0
# With fewer points t-SNE has no neighbourhoods to keep, and the principal components are enough.
_FEWEST_FOR_TSNE = 12


def draw_rows(count: int, seed: int) -> np.ndarray:
    """Draws the rows that a map shows: all of them, or `MAX_POINTS` without replacement; ascending.

    Args:
        count: number of rows.
        seed: seed of the draw.

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
        seed: seed of PCA and t-SNE.

    Returns:
        [N, 2] float32, centred; its axes have no meaning and no unit.

    Raises:
        ValueError: more than `MAX_POINTS` vectors, for which the map would take minutes.
    """
    count, width = vectors.shape
    if count > MAX_POINTS:
        raise ValueError(f"{count} vectors; pass at most {MAX_POINTS} of them")
    components = min(_COMPONENTS, width, count)
    if not components or np.ptp(vectors, axis=0).max() == 0:
        return np.zeros((count, 2), np.float32)
    # With several threads the gradient is summed in an order that varies from call to call.
    with threadpool_limits(1):
        reduced = PCA(components, random_state=seed).fit_transform(vectors.astype(np.float64))
        plane = np.zeros((count, 2))
        plane[:, : min(2, components)] = reduced[:, :2]
        if count < _FEWEST_FOR_TSNE:
            return plane.astype(np.float32)
        start = plane / np.std(plane[:, 0]) * 1e-4  # the scale of scikit-learn's init="pca"
        tsne = TSNE(
            perplexity=min(_PERPLEXITY, (count - 1) / 3), init=start.astype(np.float32), random_state=seed, n_jobs=1
        )
        return tsne.fit_transform(reduced.astype(np.float32)).astype(np.float32)
