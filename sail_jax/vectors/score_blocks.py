"""Cosines between all queries and all targets, by blocks on the devices: top-k search and histograms.

The matrix of scores is never stored. Each pass computes it block by block and keeps only its result: a histogram of all
scores, or the highest scores of each query below a limit. Queries are split over the local devices.

Axis letters: Q queries, N targets, D width, K results per query, S query blocks of a step, R queries and C targets of a
block, E known pairs of a block.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, Int64, Shaped

from sail_jax.errors import SailError
from sail_jax.progress import track
from sail_jax.vectors.unit import unit_rows

# Width of the bins of the histogram; a power of two, so that the edges are exact in float32.
BIN = 2.0**-15
BINS = 2**16 + 1  # from -1 to 1, both included

# Columns of a chunk; a chunk is sorted only if its highest score is high enough.
_CHUNK = 8
# Blocks per call of the device, so that the overhead of the call is negligible.
_BLOCKS_PER_CALL = 64
_HOST_ROOM = 1 << 30
_BY_QUERY, _COPIED = PartitionSpec("queries"), PartitionSpec()


class TargetBlocks:
    """Targets in equal blocks, each copied to all local devices.

    Args:
        targets: rows of any length; may be memory-mapped.
        present: which rows are not all zeros.
        block: largest number of targets of a block.
        held: whether the blocks stay on the devices, for repeated searches; otherwise each pass copies them again.

    Attributes:
        present: as in the arguments.
        rows: C, targets of a block.
    """

    def __init__(
        self, targets: Float[np.ndarray, "N D"], present: Bool[np.ndarray, " N"], block: int, *, held: bool = False
    ) -> None:
        self._targets, self.present, self.rows = targets, present, _even_size(len(targets), block, _CHUNK)
        self._held = {start: self._copied(start) for start in self.starts} if held else {}

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def starts(self) -> range:
        """The index of the first target of each block."""
        return range(0, len(self), self.rows)

    def at(self, start: int) -> Float32[Array, "C D"]:
        """Returns the block that begins at target `start`, on all local devices, padded with rows of zeros."""
        return self._held[start] if self._held else self._copied(start)

    def _copied(self, start: int) -> jax.Array:
        part = _padded(self._targets[start : start + self.rows], self.rows)
        return jax.device_put(part, NamedSharding(_mesh(), _COPIED))


def fits_on_devices(array: Shaped[np.ndarray, "..."]) -> bool:
    """Returns whether copies of an array on all local devices take at most half of their free memory.

    Devices that do not report their memory use that of the host, of which the copies may take 1 GiB.
    """
    devices = jax.local_devices()
    stats = [device.memory_stats() for device in devices]
    if not all(stats):
        return array.nbytes * len(devices) <= _HOST_ROOM
    return all(array.nbytes <= (of["bytes_limit"] - of["bytes_in_use"]) / 2 for of in stats)


def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), ("queries",))


class ScoreBlocks:
    """The scores of all pairs of queries and targets, except known pairs and rows of zeros.

    Args:
        queries: rows of any length; may be memory-mapped.
        targets: N targets in blocks.
        present: which queries are not all zeros.
        known: pairs to exclude, ascending, as N * query + target; they must not contain rows of zeros.
        query_block: queries scored at once.
        what: title of the progress bars; empty for no progress bars.

    Raises:
        SailError: a block has more scores than 32 bits can count.
    """

    def __init__(
        self,
        queries: Float[np.ndarray, "Q D"],
        targets: TargetBlocks,
        present: Bool[np.ndarray, " Q"],
        known: Int64[np.ndarray, " E"],
        query_block: int,
        what: str = "",
    ) -> None:
        devices = jax.local_devices()
        self._queries, self._targets, self._present, self._what = queries, targets, present, what
        self._mesh = _mesh()
        self._rows = max(1, min(query_block, -(-len(queries) // len(devices))))
        self._columns = targets.rows
        most = (2**31 - 1) // (self._rows * self._columns)
        if not most:
            raise SailError(
                f"Blocks of {self._rows} x {self._columns} scores are over 2^31; lower one of the two sizes."
            )
        needed = -(-len(queries) // (self._rows * len(devices)))
        self._blocks = _even_size(needed, min(most, _BLOCKS_PER_CALL), 1) * len(devices)
        self._known = _BlockPairs(known, len(targets), self._rows, self._columns)

    def count(self) -> tuple[Int64[np.ndarray, f"{BINS}"], Float32[np.ndarray, " E"]]:
        """Counts the scores by bin; see `bin_of`.

        Returns:
            counts: number of scores in each bin, without the known pairs.
            known: scores of the known pairs.
        """
        counts, known = np.zeros(BINS, np.int64), np.zeros(len(self._known), np.float32)

        def collect(found: tuple[jax.Array, jax.Array], places: np.ndarray) -> None:
            nonlocal counts
            counts += np.asarray(found[0], np.int64).sum(axis=0)
            here = places >= 0
            known[places[here]] = np.asarray(found[1])[here]

        waiting = []
        for _, query, target, _, pairs, places in self._steps("scores"):
            waiting.append((_count(query, target, pairs, mesh=self._mesh), places))
            if len(waiting) > 1:  # results are read one step late, so that the device never waits
                collect(*waiting.pop(0))
        for entry in waiting:
            collect(*entry)
        # Subtract the scores of padding and of other rows of zeros, which are all zero.
        counts[bin_of(np.zeros(1, np.float32))] -= counts.sum() - int(self._present.sum()) * int(
            self._targets.present.sum()
        )
        return counts - np.bincount(bin_of(known), minlength=BINS), known

    def top_below(
        self, limit: float, k: int
    ) -> Iterator[tuple[int, Int64[np.ndarray, "R K"], Float32[np.ndarray, "R K"]]]:
        """Yields the highest scores of each query strictly below a limit; ties go to the lower target.

        Args:
            limit: the limit, which is rounded to float32.
            k: K, results per query.

        Yields:
            start: index of the first query; ascending.
            rows: indices of targets, highest score first; -1 where a query has fewer than k.
            scores: scores of these targets; -inf where a query has fewer than k.
        """
        best, step = None, self._blocks * self._rows
        for start, query, target, column, pairs, _ in self._steps("negatives"):
            if column == 0:
                best = self._no_results(k)
            previous, best = (
                best,
                _merge(query, target, pairs, best, np.float32(limit), np.int32(column), mesh=self._mesh),
            )
            jax.block_until_ready(previous)
            if column + self._columns >= len(self._targets):
                rows, scores = (np.array(part).reshape(step, k)[: len(self._queries) - start] for part in best)
                scores[~self._present[start : start + step]] = -np.inf
                yield start, np.where(np.isfinite(scores), rows, -1).astype(np.int64), scores

    def _no_results(self, k: int) -> tuple[jax.Array, jax.Array]:
        shape = (self._blocks, self._rows, k)
        return self._put(np.full(shape, -1, np.int32)), self._put(np.full(shape, -np.inf, np.float32))

    def _steps(self, doing: str) -> Iterator[tuple[int, jax.Array, jax.Array, int, tuple, np.ndarray]]:
        """Yields all pairs of a stretch of queries and a block of targets; queries are the outer loop.

        Yields:
            The first query, queries [S, R, D], targets [C, D], the first target, and the known pairs with their places.
        """
        stretch, width = self._blocks * self._rows, self._queries.shape[1]
        starts = [(q, t) for q in range(0, len(self._queries), stretch) for t in self._targets.starts]
        description = f"{self._what}: {doing}"
        query = None
        for start, column in track(starts, description=description, disable=not self._what):
            if column == 0:
                part = unit_rows(_padded(self._queries[start : start + stretch], stretch))
                query = self._put(part.reshape(self._blocks, self._rows, width))
            target = self._targets.at(column)
            row, place_in_block, places = self._known.of(start // self._rows, column // self._columns, self._blocks)
            yield start, query, target, column, (self._put(row), self._put(place_in_block)), places

    def _put(self, array: np.ndarray) -> jax.Array:
        return jax.device_put(array, NamedSharding(self._mesh, _BY_QUERY))


def bin_of(scores: Float32[np.ndarray, "*batch"]) -> Int64[np.ndarray, "*batch"]:
    """Returns the bins of scores; rounding never moves a score across an edge."""
    return np.clip(np.floor(scores / BIN), -(2**15), 2**15).astype(np.int64) + 2**15


def _even_size(total: int, most: int, multiple: int) -> int:
    """Returns the size of the fewest equal parts of at most `most`, rounded up to a multiple and at least one."""
    size = -(-total // max(-(-total // most), 1)) or 1
    return -(-size // multiple) * multiple


def _padded(part: np.ndarray, rows: int) -> np.ndarray:
    """Pads with rows of zeros to [rows, D] float32; does not copy an array that needs no padding."""
    part = np.asarray(part, np.float32)
    return part if len(part) == rows else np.pad(part, ((0, rows - len(part)), (0, 0)))


class _BlockPairs:
    """Known pairs, grouped by block.

    Args:
        known: [E] int64 as in `ScoreBlocks`.
        targets: N.
        rows: R.
        columns: C.
    """

    def __init__(self, known: np.ndarray, targets: int, rows: int, columns: int) -> None:
        row, column = known // targets, known % targets
        self._across = -(-targets // columns)
        block = row // rows * self._across + column // columns
        self._order = np.argsort(block, kind="stable")
        self._block = block[self._order]
        self._row = (row % rows).astype(np.int32)[self._order]
        self._column = (column % columns).astype(np.int32)[self._order]
        self._outside = rows
        most = np.unique(block, return_counts=True)[1].max(initial=1)
        self._capacity = 1 << int(most - 1).bit_length()

    def __len__(self) -> int:
        return len(self._order)

    def of(self, first: int, across: int, blocks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the known pairs of consecutive blocks of queries with one block of targets.

        Args:
            first: the first block of queries.
            across: the block of targets.
            blocks: S, the number of blocks of queries.

        Returns:
            row: [S, E] int32 within the block; padding has a row that is out of range.
            column: [S, E] int32 within the block.
            place: [S, E] int64 index of the known pair; -1 for padding.
        """
        row = np.full((blocks, self._capacity), self._outside, np.int32)
        column = np.zeros((blocks, self._capacity), np.int32)
        place = np.full((blocks, self._capacity), -1, np.int64)
        wanted = (first + np.arange(blocks)) * self._across + across
        bounds = np.searchsorted(self._block, [wanted, wanted + 1])
        for i, (begin, end) in enumerate(bounds.T):
            row[i, : end - begin] = self._row[begin:end]
            column[i, : end - begin] = self._column[begin:end]
            place[i, : end - begin] = self._order[begin:end]
        return row, column, place


def _scores(query: jax.Array, target: jax.Array, length: jax.Array) -> jax.Array:
    """Returns cosines, [R, C] float32; dividing scores by norms is cheaper than normalising the targets."""
    return jnp.matmul(query, target.T, precision=jax.lax.Precision.HIGHEST) / length


def _lengths(target: jax.Array) -> jax.Array:
    """Returns the norms of the rows, [C] float32; 1 for rows of zeros."""
    length = jnp.sqrt(jnp.sum(target * target, axis=-1))
    return jnp.where(length > 0, length, 1)


@functools.partial(jax.jit, static_argnames="mesh")
def _count(
    queries: jax.Array, target: jax.Array, pairs: tuple[jax.Array, jax.Array], *, mesh: Mesh
) -> tuple[jax.Array, jax.Array]:
    """Returns the histogram of all scores, [devices, BINS] int32, and scores of known pairs, [S, E] float32."""

    def on_one_device(queries: jax.Array, target: jax.Array, pairs: tuple) -> tuple[jax.Array, jax.Array]:
        length = _lengths(target)

        def one_block(block: tuple) -> tuple[jax.Array, jax.Array]:
            query, (row, column) = block
            scores = _scores(query, target, length)
            bins = jnp.clip(jnp.floor(scores / BIN), -(2**15), 2**15).astype(jnp.int32) + 2**15
            counts = jnp.zeros(BINS, jnp.int32).at[bins.ravel()].add(1, mode="promise_in_bounds")
            return counts, scores.at[row, column].get(mode="fill", fill_value=0)

        counts, known = jax.lax.map(one_block, (queries, pairs))
        return counts.sum(axis=0)[None], known

    return _over_devices(on_one_device, mesh, inputs=(_BY_QUERY, _COPIED, _BY_QUERY))(queries, target, pairs)


@functools.partial(jax.jit, static_argnames="mesh")
def _merge(
    queries: jax.Array,
    target: jax.Array,
    pairs: tuple[jax.Array, jax.Array],
    best: tuple[jax.Array, jax.Array],
    limit: jax.Array,
    first: jax.Array,
    *,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
    """Merges a block of targets into the best results (rows of targets, scores), each [S, R, K]."""

    def on_one_device(
        queries: jax.Array, target: jax.Array, pairs: tuple, best: tuple, limit: jax.Array, first: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        length, present = _lengths(target), target.any(axis=-1)

        def one_block(block: tuple) -> tuple[jax.Array, jax.Array]:
            query, (row, column), (best_rows, best_scores) = block
            scores = _scores(query, target, length)
            shown = jnp.where((scores < limit) & present, scores, -jnp.inf).at[row, column].set(-jnp.inf, mode="drop")
            return _merge_block(best_rows, best_scores, shown, first)

        return jax.lax.map(one_block, (queries, pairs, best))

    inputs = (_BY_QUERY, _COPIED, _BY_QUERY, _BY_QUERY, _COPIED, _COPIED)
    return _over_devices(on_one_device, mesh, inputs)(queries, target, pairs, best, limit, first)


def _over_devices(function: Callable, mesh: Mesh, inputs: tuple[PartitionSpec, ...]) -> Callable:
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=_BY_QUERY, check_vma=False)


def _merge_block(
    best_rows: jax.Array, best_scores: jax.Array, scores: jax.Array, first: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Merges a block of scores [R, C] into the best results (rows of targets, scores), each [R, K].

    Ties go to earlier blocks, then to the lower column. After some blocks, few scores are still among the best, so only
    the chunks that contain them are sorted.
    """
    k, chunks = best_rows.shape[-1], scores.shape[1] // _CHUNK
    maxima = scores.reshape(len(scores), chunks, _CHUNK).max(axis=-1)
    few = min(max(k // 3, 8), chunks)

    def merge(count: int) -> tuple[jax.Array, jax.Array]:
        found, at = _best_chunks(scores, maxima, count) if count < chunks // 2 else (scores, _columns(scores))
        merged, place = jax.lax.top_k(jnp.concatenate([best_scores, found], axis=1), k)
        return jnp.take_along_axis(jnp.concatenate([best_rows, at + first], axis=1), place, axis=1), merged

    fit = jnp.all(jnp.sum(maxima > best_scores[:, -1:], axis=-1) <= few)
    return jax.lax.cond(fit, lambda: merge(few), lambda: merge(k))


def _columns(scores: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(scores.shape[1], dtype=jnp.int32), scores.shape)


def _best_chunks(scores: jax.Array, maxima: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Returns scores and columns, ascending, of the `count` chunks with the highest maxima.

    These contain the `count` highest scores.
    """
    chunk = jnp.sort(jax.lax.top_k(maxima, count)[1], axis=-1)
    found = jnp.take_along_axis(scores.reshape(*maxima.shape, _CHUNK), chunk[:, :, None], axis=1)
    at = chunk[:, :, None] * _CHUNK + jnp.arange(_CHUNK, dtype=jnp.int32)
    return found.reshape(len(scores), -1), at.reshape(len(scores), -1)
