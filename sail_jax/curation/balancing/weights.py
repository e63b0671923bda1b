"""Computes sampling weights of training sets by adaptive balancing (arXiv 2510.12709, sec. 3.1.3).

Training sets similar to the benchmarks are sampled more. An early model embeds a few samples of every training set and
of every benchmark, which are then clustered. The similarity of two sets is the mean cosine between their centroids
under the optimal transport of one onto the other. The sampling weights are the softmax of the mean similarities to the
benchmarks.

Axis letters: n samples, D width, k centroids, m training sets, n benchmarks of an [m, n] matrix.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ott.geometry import geometry
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn

from sail_jax.config import Config
from sail_jax.config.curation import BalancingConfig
from sail_jax.curation.balancing.report import BalancingResult, write_heat_map, write_json
from sail_jax.curation.balancing.samples import (
    FUSED,
    KINDS,
    SampledSet,
    benchmark,
    embed_samples,
    sample_items,
    training_set,
)
from sail_jax.data.store import ItemStore
from sail_jax.data.views import retrieval_tasks
from sail_jax.embedding.embedder import Embedder
from sail_jax.errors import SailError
from sail_jax.patterns import MODALITIES
from sail_jax.progress import track
from sail_jax.vectors.faiss_kmeans import faiss_kmeans
from sail_jax.vectors.unit import unit_rows

# A set has a kind of embedding if this share of its samples has it, and at least two: a few stray frames do not make a
# set of texts a set of frames.
_LEAST_SHARE = 0.05
_LEAST_SAMPLES = 2
# Deviation of the plan's marginals (L1, of a total mass of one); it bounds the error of a similarity.
_TOLERANCE = 1e-4
_MAX_ITERATIONS = 20_000
_ROUNDS = 25  # of k-means

# ------------------------------------------------------------------------------------------------------------ arrays


class Clusters(NamedTuple):
    """The clusters of a set of embeddings.

    Attributes:
        centroids: [k, D] float32, rows of unit length.
        shares: [k] float64, the share of the embeddings in each cluster; positive, summing to one.
    """

    centroids: np.ndarray
    shares: np.ndarray


def centroids(z: np.ndarray, k: int, seed: int) -> Clusters:
    """Clusters embeddings by spherical k-means.

    Args:
        z: [n, D] float32, at least one row that is not zero; rows are normalised, and rows of zeros left out.
        k: maximum number of clusters: there are no more than distinct rows, and empty ones are left out.
        seed: seed of the initial centroids; the same rows, k and seed give the same clusters.

    Raises:
        SailError: an embedding is not finite.
    """
    if not np.isfinite(z).all():
        raise SailError("The model returns embeddings that are not finite: balance with another checkpoint.")
    z = unit_rows(z[z.any(axis=1)])
    # View rows as bytes, which sort ten times faster than rows of numbers; adding zero turns -0 into 0.
    rows = (z + 0.0).view(np.dtype((np.void, z.shape[1] * z.itemsize))).ravel()
    _, first, counts = np.unique(rows, return_index=True, return_counts=True)
    if len(first) <= k:
        return Clusters(z[first], counts / len(z))
    means = unit_rows(faiss_kmeans(z, k, rounds=_ROUNDS, seed=seed, spherical=True))
    shares = np.bincount(np.argmax(z @ means.T, axis=1), minlength=k) / len(z)
    return Clusters(means[shares > 0], shares[shares > 0])


def similarity(left: Clusters, right: Clusters, epsilon: float, size: int = 0) -> float:
    """Returns the mean cosine between the centroids of two sets under their optimal transport.

    It is sum(P * C), with C the cosines and P the Sinkhorn plan of cost 1 - C. The marginals of P are the clusters'
    shares of the samples (our choice; the paper does not specify them), so a small cluster has little weight.

    Args:
        left: k centroids.
        right: k' centroids.
        epsilon: entropic regularisation; towards 0 the plan becomes the optimal one, towards infinity the product of
            the marginals.
        size: number of clusters to which both sets are padded, by clusters without mass, which do not change the
            result; all calls of one size share one compilation. 0 for no padding.

    Raises:
        SailError: Sinkhorn's iteration does not converge.
    """
    rows, columns = max(size, len(left.shares)), max(size, len(right.shares))
    cosines = np.zeros((rows, columns), np.float32)
    cosines[: len(left.shares), : len(right.shares)] = left.centroids @ right.centroids.T
    masses = [
        np.pad(shares, (0, length - len(shares))) for shares, length in ((left.shares, rows), (right.shares, columns))
    ]
    value, converged = _transported(cosines, *(mass.astype(np.float32) for mass in masses), epsilon)
    if not converged:
        raise SailError(
            f"Sinkhorn's iteration does not converge with config.balancing.epsilon = {epsilon:g}: raise it (0.05 is "
            "usual)."
        )
    return float(value)


@jax.jit
def _transported(
    cosines: jax.Array, rows: jax.Array, columns: jax.Array, epsilon: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns sum(P * C) for [k, k'] cosines and marginals [k] and [k'], and whether P converged."""
    problem = linear_problem.LinearProblem(geometry.Geometry(1 - cosines, epsilon=epsilon), a=rows, b=columns)
    out = sinkhorn.Sinkhorn(threshold=_TOLERANCE, max_iterations=_MAX_ITERATIONS)(problem)
    return jnp.sum(out.matrix * cosines), out.converged


def sampling_weights(matrix: np.ndarray, temperature: float) -> np.ndarray:
    """Returns the sampling weights of training sets: the softmax of their mean similarities.

    Sums are correctly rounded (`math.fsum`), so the result does not depend on the order of the sets.

    Args:
        matrix: [m, n] similarities; the mean ignores NaNs, and each row has at least one number.
        temperature: divides the means; towards 0 the closest set takes all, towards infinity all weights are equal.

    Returns:
        [m] float64, summing to one.
    """
    means = np.array([math.fsum(row[~np.isnan(row)]) / np.count_nonzero(~np.isnan(row)) for row in matrix])
    powers = np.exp((means - means.max()) / temperature)
    return powers / math.fsum(powers)


def shared_kinds(left: Mapping[str, Clusters], right: Mapping[str, Clusters]) -> tuple[str, ...]:
    """Returns the kinds of embedding by which two sets are compared, "fusion first".

    They are ("fused",) if both sets have it; else all single modalities that both have, which may be none (our choice:
    the paper says "a shared single modality").
    """
    if FUSED in left and FUSED in right:
        return (FUSED,)
    return tuple(kind for kind in MODALITIES if kind in left and kind in right)


# -------------------------------------------------------------------------------------------------------------- sets


class ClusteredSet(NamedTuple):
    """The clusters of a set's sample.

    Attributes:
        clusters: kind of embedding -> clusters, for the kinds that the set has.
        counts: "items" and each kind -> number of samples.
    """

    clusters: dict[str, Clusters]
    counts: dict[str, int]


def cluster_set(
    embedder: Embedder, chosen: SampledSet, config: Config, store: ItemStore, scratch: Path
) -> ClusteredSet:
    """Samples a set, embeds the samples fused and by each modality, and clusters each kind of embedding.

    Args:
        embedder: the model.
        chosen: the set.
        config: the experiment; `balancing` and `seed` are read.
        store: the item store.
        scratch: folder for embeddings, [views, n, D] float32 per side; the caller removes it.

    Raises:
        SailError: too many items could not be loaded, or the table refers to an unknown one.
    """
    settings = config.balancing
    items = sample_items(chosen, store, settings.samples, config.seed)
    sides = embed_samples(embedder, chosen, items, store, scratch)
    total = sum(map(len, items.values()))
    least = max(_LEAST_SAMPLES, math.ceil(_LEAST_SHARE * total))
    counts, clusters = {"items": total}, {}
    for kind in KINDS:
        present = [side[kind] for side in sides if kind in side]
        counts[kind] = sum(int(mask.sum()) for _, mask in present)
        if counts[kind] >= least:
            z = np.concatenate([z[mask] for z, mask in present])
            clusters[kind] = centroids(z, settings.centroids, config.seed)
    return ClusteredSet(clusters, counts)


# ------------------------------------------------------------------------------------------------------------- whole


def balance(embedder: Embedder, config: Config, store: ItemStore, output: Path) -> BalancingResult:
    """Computes and writes the sampling weights of training sets by their similarity to the tasks.

    The processes of the embedder embed together; each then computes the same weights, and the first one writes them.

    Args:
        embedder: the model; an early one is enough.
        config: the experiment; `data.datasets`, `eval.tasks`, `balancing` and `seed` are read.
        store: the item store.
        output: the JSON file to write, for config.data.weights; a heat map is written beside it, with the suffix .png.

    Raises:
        SailError: there is no training set or no task, a setting is wrong, a training set has no kind of embedding in
            common with any task, or Sinkhorn's iteration does not converge.
    """
    _check(config, output)
    processes = embedder.processes
    processes.on_first(lambda: output.parent.mkdir(parents=True, exist_ok=True))
    # Open every set before embedding the first, so that an error in the last is reported at once.
    sources = [training_set(config, name) for name in config.data.datasets]
    tasks = [benchmark(config, name) for name in retrieval_tasks(config)]
    with processes.scratch(output.parent, f"{output.name}.scratch-") as scratch:
        rows, columns = (
            [cluster_set(embedder, chosen, config, store, scratch) for chosen in sets] for sets in (sources, tasks)
        )
    kinds = tuple(tuple(shared_kinds(row.clusters, column.clusters) for column in columns) for row in rows)
    _check_overlap(sources, rows, tasks, columns)
    matrix = _similarities(rows, columns, kinds, config.balancing)
    result = BalancingResult(
        datasets=tuple(config.data.datasets),
        tasks=tuple(task.name for task in tasks),
        similarity=matrix,
        kinds=kinds,
        weights=sampling_weights(matrix, config.balancing.temperature),
        samples={
            "datasets": {chosen.name: row.counts for chosen, row in zip(sources, rows, strict=True)},
            "tasks": {chosen.name: column.counts for chosen, column in zip(tasks, columns, strict=True)},
        },
        settings=config.balancing,
        seed=config.seed,
    )
    if processes.first:
        write_heat_map(result, output.with_suffix(".png"))
        write_json(result, output)
    return result


def _check(config: Config, output: Path) -> None:
    if not config.data.datasets:
        raise SailError("config.data.datasets is empty: there is no training set to weigh. Name at least one.")
    if not retrieval_tasks(config):
        raise SailError(
            "config.eval.tasks is empty, or has no retrieval task: balancing weighs training sets by benchmarks. Name "
            "at least one task."
        )
    if output.suffix != ".json":
        raise SailError(f"The output {output} must be a JSON file; give it a name that ends in .json.")


def _check_overlap(
    sources: Sequence[SampledSet],
    rows: Sequence[ClusteredSet],
    tasks: Sequence[SampledSet],
    columns: Sequence[ClusteredSet],
) -> None:
    for chosen, row in zip(sources, rows, strict=True):
        if not any(shared_kinds(row.clusters, column.clusters) for column in columns):
            has = "; ".join(f"{task.where} has {_has(column)}" for task, column in zip(tasks, columns, strict=True))
            raise SailError(
                f"{chosen.where} has no kind of embedding in common with any task: it has {_has(row)}, but {has}. Show "
                "more modalities on its sides, add a task that shows its modalities, or remove the data set."
            )


def _has(found: ClusteredSet) -> str:
    kinds = ", ".join(f"{kind} ({found.counts[kind]:,})" for kind in found.clusters)
    return f"{kinds or 'no kind in enough'} of {found.counts['items']:,} samples"


def _similarities(
    rows: Sequence[ClusteredSet],
    columns: Sequence[ClusteredSet],
    kinds: Sequence[Sequence[tuple[str, ...]]],
    settings: BalancingConfig,
) -> np.ndarray:
    """Returns the mean similarity over the kinds compared, [m, n] float64; NaN if there are none."""
    close = functools.partial(similarity, epsilon=settings.epsilon, size=settings.centroids)
    matrix = np.full((len(rows), len(columns)), np.nan)
    for i, j in track(list(np.ndindex(matrix.shape)), description="similarities"):
        values = [close(rows[i].clusters[kind], columns[j].clusters[kind]) for kind in kinds[i][j]]
        if values:
            matrix[i, j] = math.fsum(values) / len(values)
    return matrix
