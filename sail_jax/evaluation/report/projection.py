"""Maps embeddings to 2-D by scikit-learn's PCA and t-SNE (van der Maaten and Hinton, 2008)."""

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from sail_jax.vectors.top_k import top_k

LANDMARKS = 1500  # points that t-SNE places; it would take minutes for more
_ANCHORS = 3  # landmarks between which each other point is placed
_SHARPNESS = 0.02  # difference of cosines at which a landmark weighs e times less
_COMPONENTS = 50
_PERPLEXITY = 30.0
# With fewer points t-SNE has no neighbourhoods to keep, and the principal components are enough.
_FEWEST_FOR_TSNE = 12


def project(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Places vectors in the plane so that neighbours stay together; the same vectors give the same map.

    t-SNE places the first `LANDMARKS` of them, and each other one lies between its nearest landmarks.

    Args:
        vectors: [N, D] float32, in random order.
        seed: seed of PCA and t-SNE.

    Returns:
        [N, 2] float32, centred; its axes have no meaning and no unit.
    """
    places = _placed(vectors[:LANDMARKS], seed)
    if len(vectors) <= LANDMARKS:
        return places
    rows, cosines = top_k(vectors[LANDMARKS:], vectors[:LANDMARKS], _ANCHORS, block=LANDMARKS)
    weights = np.exp((cosines - cosines[:, :1]) / _SHARPNESS)[..., None]
    between = (places[rows] * weights).sum(axis=1) / weights.sum(axis=1)
    return np.concatenate([places, between]).astype(np.float32)


def _placed(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Places at most `LANDMARKS` vectors by PCA and t-SNE."""
    count, width = vectors.shape
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
