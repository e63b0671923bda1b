"""Lloyd's k-means and residual k-means on the local devices, block by block.

The matrix of distances is never stored: each round reads the rows in blocks and accumulates the sum and the number of
the rows of each cluster. The rows are transferred in stretches, whose blocks are split over the local devices.

Axis letters: N rows, D width, K clusters, L levels, S blocks of a stretch, R rows of a block.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Float32, Int32

from sail_jax.errors import SailError

# Size of a stretch, summed over all devices.
_STRETCH_BYTES = 2**28
# Relative distance of both halves of a split cluster from its centroid, as in faiss (`EPS` of Clustering.cpp).
_SPLIT = np.float32(1 / 1024)
_BY_BLOCK, _COPIED = PartitionSpec("blocks"), PartitionSpec()

_Read = Callable[[int, int], np.ndarray]


def kmeans(
    x: Float[np.ndarray, "N D"],
    k: int,
    *,
    rounds: int,
    seed: int,
    initial: Float[np.ndarray, "_ _"] | None = None,
    block: int = 1024,
    held_bytes: int = 2**32,
) -> tuple[Float32[np.ndarray, "K D"], Int32[np.ndarray, " N"], float]:
    """Clusters rows by Lloyd's algorithm, from randomly drawn rows; the same on every call.

    An empty cluster takes over half of the largest cluster.

    Args:
        x: rows; may be memory-mapped.
        k: number of clusters, K.
        rounds: iterations of assigning all rows and updating the centroids.
        seed: seed of the initial centroids.
        initial: initial centroids [K, D], instead of drawn rows.
        block: rows whose distances are computed at once on each device.
        held_bytes: rows up to this size in float32 stay on the devices; larger ones are read again in each round.

    Returns:
        centroids: mean of the rows of each cluster.
        assignment: index of the nearest centroid of each row; ties go to the lower index.
        inertia: sum of the squared distances of rows to their nearest centroids.

    Raises:
        SailError: there are fewer rows than clusters, `initial` has another shape, or a row is not finite.
    """

    def read(start: int, stop: int) -> np.ndarray:
        return x[start:stop]

    if initial is None:
        initial = _draw_centroids(read, len(x), k, np.random.default_rng(seed))
    if initial.shape != (k, x.shape[1]):
        raise SailError(f"The first centroids are {initial.shape}, but {k} clusters need {(k, x.shape[1])}.")
    return _lloyd(_Rows(read, x.shape, block, held_bytes), initial, rounds)


def residual_kmeans(
    x: Float[np.ndarray, "N D"],
    codebook_sizes: Sequence[int],
    *,
    rounds: int,
    seed: int,
    block: int = 1024,
    held_bytes: int = 2**32,
) -> tuple[list[Float32[np.ndarray, "_ D"]], Int32[np.ndarray, "N L"], list[float]]:
    """Quantises rows level by level: each codebook is the k-means of the residuals of the previous ones.

    The sum over levels of `codebooks[level][codes[:, level]]` reconstructs the rows.
    Source: residual quantisation into semantic IDs, arXiv 2510.12709, sec. 4.4.6.

    Args:
        x: as in `kmeans`.
        codebook_sizes: L sizes of codebooks.
        rounds: as in `kmeans`, per level.
        seed: seed of the first level; each further level adds one.
        block: as in `kmeans`.
        held_bytes: as in `kmeans`.

    Returns:
        codebooks: one per level, with one row per code.
        codes: one per row and level.
        inertia: sum of the squared residuals after each level.

    Raises:
        SailError: as in `kmeans`.
    """
    codebooks, codes, inertia = [], np.zeros((len(x), len(codebook_sizes)), np.int32), []

    def residuals(start: int, stop: int) -> np.ndarray:
        part = np.array(x[start:stop], np.float32)
        for level, codebook in enumerate(codebooks):
            part -= codebook[codes[start:stop, level]]
        return part

    for level, size in enumerate(codebook_sizes):
        initial = _draw_centroids(residuals, len(x), size, np.random.default_rng(seed + level))
        codebook, codes[:, level], left = _lloyd(_Rows(residuals, x.shape, block, held_bytes), initial, rounds)
        codebooks.append(codebook)
        inertia.append(left)
    return codebooks, codes, inertia


class _Rows:
    """Iterates over rows on the devices, one stretch at a time.

    Args:
        read: (start, stop) -> rows [stop - start, D].
        shape: (N, D).
        block: R.
        held_bytes: as in `kmeans`.
    """

    def __init__(self, read: _Read, shape: tuple[int, ...], block: int, held_bytes: int) -> None:
        devices = jax.local_devices()
        self._read, self.shape = read, shape
        self.mesh = Mesh(np.array(devices), ("blocks",))
        count, width = shape
        self._block = min(block, -(-count // len(devices)))
        needed = -(-count // (self._block * len(devices)))
        stretches = -(-needed // max(1, _STRETCH_BYTES // (4 * width * self._block * len(devices))))
        self._blocks = -(-needed // stretches) * len(devices)
        self._held = list(self._put_stretches()) if 4 * width * count <= held_bytes else None

    def __iter__(self) -> Iterator[tuple[int, jax.Array, jax.Array]]:
        """Yields (first row, rows [S, R, D] float32, which are not padding [S, R] bool); the last stretch is padded."""
        return iter(self._held) if self._held is not None else self._put_stretches()

    def _put_stretches(self) -> Iterator[tuple[int, jax.Array, jax.Array]]:
        (count, width), stretch = self.shape, self._blocks * self._block
        by_block = NamedSharding(self.mesh, _BY_BLOCK)
        for start in range(0, count, stretch):
            part = np.asarray(self._read(start, min(start + stretch, count)), np.float32)
            exists = (np.arange(stretch) < len(part)).reshape(self._blocks, self._block)
            if len(part) < stretch:
                part = np.pad(part, ((0, stretch - len(part)), (0, 0)))
            yield start, *jax.device_put((part.reshape(self._blocks, self._block, width), exists), by_block)


def _draw_centroids(read: _Read, count: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Draws K different rows [K, D] as initial centroids.

    Rows of zeros are not drawn: in many dimensions, all rows are nearer to zero than to another row.
    """
    if k > count:
        raise SailError(f"{count} rows do not make {k} clusters; ask for fewer, or give more rows.")
    rows = (np.asarray(read(row, row + 1), np.float32) for row in rng.permutation(count))
    drawn = np.concatenate(list(itertools.islice((row for row in rows if row.any()), k)) or [read(0, 1)])
    return np.pad(drawn, ((0, k - len(drawn)), (0, 0)))


def _lloyd(rows: _Rows, initial: np.ndarray, rounds: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Runs Lloyd's algorithm; returns (centroids, assignment, inertia) as `kmeans`."""
    centroids = jnp.asarray(initial, jnp.float32)
    for _ in range(rounds):
        totals = jnp.zeros(centroids.shape, jnp.float32), jnp.zeros(len(centroids), jnp.int32)
        for _, part, exists in rows:
            previous, totals = totals, _add(part, exists, centroids, totals, mesh=rows.mesh)
            jax.block_until_ready(previous)  # holds at most two stretches on the devices
        sums, members = np.array(totals[0]), np.array(totals[1])
        centroids = jnp.asarray(_refill_empty(sums / np.maximum(members, 1)[:, None].astype(np.float32), members))
    assignment, inertia = np.zeros(rows.shape[0], np.int32), 0.0
    for start, part, _ in rows:
        nearest, square = (np.asarray(found).ravel() for found in _assign(part, centroids, mesh=rows.mesh))
        here = slice(start, min(start + len(nearest), len(assignment)))
        assignment[here] = nearest[: here.stop - start]
        inertia += float(square[: here.stop - start].sum(dtype=np.float64))
    if not np.isfinite(inertia):
        raise SailError("A row to cluster is not finite, or too long for float32; leave it out.")
    return np.asarray(centroids), assignment, inertia


def _refill_empty(centroids: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Returns centroids where each empty cluster has taken over half of the largest cluster.

    The two halves get opposite offsets of alternating sign, as in faiss (`split_clusters` of Clustering.cpp), which
    draws the cluster to split at random.
    """
    members = members.copy()
    apart = np.where(np.arange(centroids.shape[1]) % 2, -_SPLIT, _SPLIT)
    for empty in np.flatnonzero(members == 0):
        largest = members.argmax()
        centroids[empty] = centroids[largest] * (1 + apart)
        centroids[largest] *= 1 - apart
        members[empty] = members[largest] // 2
        members[largest] -= members[empty]
    return centroids


@functools.partial(jax.jit, static_argnames="mesh")
def _add(
    rows: jax.Array, exists: jax.Array, centroids: jax.Array, totals: tuple[jax.Array, jax.Array], *, mesh: Mesh
) -> tuple[jax.Array, jax.Array]:
    """Adds the rows of a stretch to the sums [K, D] and the counts [K] of the rows of each cluster."""

    def on_one_device(rows: jax.Array, exists: jax.Array, centroids: jax.Array) -> tuple[jax.Array, jax.Array]:
        half = _half_squares(centroids)

        def one_block(totals: tuple[jax.Array, jax.Array], block: tuple) -> tuple[tuple[jax.Array, jax.Array], None]:
            part, exists = block
            nearest = jnp.where(exists, _nearest(part, centroids, half), len(centroids))
            members = totals[1].at[nearest].add(1, mode="drop")
            return (_sums(part, nearest, totals[0]), members), None

        none = jnp.zeros(centroids.shape, jnp.float32), jnp.zeros(len(centroids), jnp.int32)
        return jax.lax.psum(jax.lax.scan(one_block, none, (rows, exists))[0], "blocks")

    over = jax.shard_map(
        on_one_device, mesh=mesh, in_specs=(_BY_BLOCK, _BY_BLOCK, _COPIED), out_specs=_COPIED, check_vma=False
    )
    return jax.tree.map(jnp.add, totals, over(rows, exists, centroids))


@functools.partial(jax.jit, static_argnames="mesh")
def _assign(rows: jax.Array, centroids: jax.Array, *, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """Returns the nearest centroid of each row, [S, R] int32, and its squared distance, [S, R] float32."""

    def on_one_device(rows: jax.Array, centroids: jax.Array) -> tuple[jax.Array, jax.Array]:
        half = _half_squares(centroids)

        def one_block(part: jax.Array) -> tuple[jax.Array, jax.Array]:
            nearest = _nearest(part, centroids, half)
            return nearest, jnp.sum((part - centroids[nearest]) ** 2, axis=-1)

        return jax.lax.map(one_block, rows)

    over = jax.shard_map(on_one_device, mesh=mesh, in_specs=(_BY_BLOCK, _COPIED), out_specs=_BY_BLOCK, check_vma=False)
    return over(rows, centroids)


def _half_squares(centroids: jax.Array) -> jax.Array:
    """Returns half the squared norms of centroids, [K] float32."""
    return jnp.sum(centroids * centroids, axis=-1) / 2


def _nearest(rows: jax.Array, centroids: jax.Array, half_squares: jax.Array) -> jax.Array:
    """Returns the nearest centroid of each row, [R] int32; the norm of the row cancels in the comparison."""
    products = jnp.matmul(rows, centroids.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmax(products - half_squares, axis=-1).astype(jnp.int32)


def _sums(rows: jax.Array, nearest: jax.Array, sums: jax.Array) -> jax.Array:
    """Adds rows [R, D] to the sums [K, D] of their clusters, `nearest` [R].

    Scatters are slow on accelerators, and their order varies between calls on GPUs; so these use a product with one-hot
    rows. On a CPU, the product takes twice as long as the scatter.
    """
    if jax.default_backend() == "cpu":
        return sums.at[nearest].add(rows, mode="drop")
    chosen = jax.nn.one_hot(nearest, len(sums), dtype=jnp.float32)
    return sums + jnp.matmul(chosen.T, rows, precision=jax.lax.Precision.HIGHEST)
