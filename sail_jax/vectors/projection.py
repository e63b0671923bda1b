"""Maps embeddings to 2-D: t-SNE or UMAP places some of them, and the others lie between those.

t-SNE (van der Maaten and Hinton, 2008) and PCA are scikit-learn's; UMAP (McInnes et al., 2018) is umap-learn's, which
the extra `atlas` installs.

Axis letters: N vectors, L landmarks, D width.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from sail_jax.config.search import PROJECTIONS
from sail_jax.errors import SailError
from sail_jax.vectors.top_k import top_k

LANDMARKS = 1500  # points of `project` that t-SNE places, in some ten seconds
# Points of a map of a whole set that are placed. With fewer, many others have but one landmark that is near, and lie
# on it.
_OF_ALL = {"tsne": 5_000, "umap": 20_000}
_ANCHORS = 3  # landmarks between which each other point is placed
_SHARPNESS = 0.02  # difference of cosines at which a landmark weighs e times less
_COMPONENTS = 50
_PERPLEXITY = 30.0
_UMAP_NEIGHBOURS = 15
# With fewer points there are no neighbourhoods to keep, and the principal components are enough.
_FEWEST = 12


class Placement(NamedTuple):
    """A way to place landmarks.

    Attributes:
        most: landmarks that it places.
        place: called as place(vectors, seed) with at least `_FEWEST` of them, [L, D] float32; returns [L, 2].
    """

    most: int
    place: Callable[[Float32[np.ndarray, "L D"], int], Float32[np.ndarray, "L 2"]]


class PlaneMap:
    """A map of landmarks, on which other vectors can be placed a block at a time.

    Args:
        landmarks: vectors of unit length, a random sample of those to be placed.
        seed: of PCA and of the placement; the same landmarks give the same map.
        placement: places the landmarks.

    Attributes:
        places: [L, 2] float32, centred; the axes have no meaning and no unit.
    """

    def __init__(self, landmarks: Float32[np.ndarray, "L D"], seed: int, placement: Placement) -> None:
        self._landmarks = landmarks
        self.places = _placed(landmarks, seed, placement)

    def between(self, vectors: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, "N 2"]:
        """Places vectors between their nearest landmarks, the nearer the more."""
        rows, cosines = top_k(vectors, self._landmarks, _ANCHORS, block=max(1, len(self._landmarks)))
        weights = np.exp((cosines - cosines[:, :1]) / _SHARPNESS)[..., None]
        return ((self.places[rows] * weights).sum(axis=1) / weights.sum(axis=1)).astype(np.float32)


def project(vectors: Float32[np.ndarray, "N D"], seed: int) -> Float32[np.ndarray, "N 2"]:
    """Places vectors in the plane so that neighbours stay together; the same vectors give the same map.

    t-SNE places the first `LANDMARKS` of them, and each other one lies between its nearest landmarks.

    Args:
        vectors: of unit length, in random order.
        seed: seed of PCA and t-SNE.

    Returns:
        Places as of `PlaneMap`.
    """
    plane = PlaneMap(vectors[:LANDMARKS], seed, Placement(LANDMARKS, _by_tsne))
    others = vectors[LANDMARKS:]
    return np.concatenate([plane.places, plane.between(others)]) if len(others) else plane.places


def placement(name: str) -> Placement:
    """Returns one of `PROJECTIONS`, for maps of whole sets.

    Raises:
        SailError: there is none of this name, or it is UMAP, and umap-learn is not installed.
    """
    if name == "tsne":
        return Placement(_OF_ALL[name], _by_tsne)
    if name != "umap":
        raise SailError(f"There is no projection {name!r}; choose one of {', '.join(PROJECTIONS)}.")
    try:
        import umap  # noqa: PLC0415 umap-learn is in an extra, and takes long to import
    except ImportError as error:
        raise SailError("The projection umap needs umap-learn: pip install -e '.[atlas]', or take tsne.") from error

    def by_umap(vectors: np.ndarray, seed: int) -> np.ndarray:
        neighbours = min(_UMAP_NEIGHBOURS, len(vectors) - 1)
        return umap.UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1).fit_transform(vectors)

    return Placement(_OF_ALL[name], by_umap)


def _placed(vectors: np.ndarray, seed: int, placement: Placement) -> np.ndarray:
    """Places landmarks, few or equal ones by PCA alone."""
    if not len(vectors) or np.ptp(vectors, axis=0).max() == 0:
        return np.zeros((len(vectors), 2), np.float32)
    # With several threads sums are made in an order that varies from call to call.
    with threadpool_limits(1):
        places = placement.place(vectors, seed) if len(vectors) >= _FEWEST else _plane(_components(vectors, seed))
    return (places - places.mean(axis=0)).astype(np.float32)


def _components(vectors: np.ndarray, seed: int) -> np.ndarray:
    count, width = vectors.shape
    return PCA(min(_COMPONENTS, width, count), random_state=seed).fit_transform(vectors.astype(np.float64))


def _plane(reduced: np.ndarray) -> np.ndarray:
    """Returns the first two components, [L, 2]; the second is 0 where there is one alone."""
    plane = np.zeros((len(reduced), 2))
    plane[:, : min(2, reduced.shape[1])] = reduced[:, :2]
    return plane


def _by_tsne(vectors: np.ndarray, seed: int) -> np.ndarray:
    reduced = _components(vectors, seed)
    plane = _plane(reduced)
    start = plane / np.std(plane[:, 0]) * 1e-4  # the scale of scikit-learn's init="pca"
    tsne = TSNE(
        perplexity=min(_PERPLEXITY, (len(vectors) - 1) / 3), init=start.astype(np.float32), random_state=seed, n_jobs=1
    )
    return tsne.fit_transform(reduced.astype(np.float32))
