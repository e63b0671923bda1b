"""All cosines between queries and targets, block by block on the device: search, and counts of scores.

The matrix of scores never exists. Each pass computes it anew, a block at a time, and keeps what it came for: the counts of
all scores by bin, or the highest scores of each query below a limit. Queries are split over the local devices.

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
from rich.progress import track

from sail_jax.errors import SailError
from sail_jax.vectors.unit import unit_rows

# Scores are counted in bins of this width; a power of two, so that the edges are exact in float32.
BIN = 2.0**-15
BINS = 2**16 + 1  # from -1 to 1, both included

# Columns of a block whose highest score decides whether they are looked at.
_CHUNK = 8
# Blocks that one call of the device goes through, so that calls cost nothing beside the blocks.
_BLOCKS_PER_CALL = 64
_HOST_ROOM = 1 << 30
_BY_QUERY, _COPIED = PartitionSpec("queries"), PartitionSpec()


class TargetBlocks:
    """Targets as they are scored: in equal blocks, each copied to all local devices.

    Args:
        targets: rows of any length; may be memory-mapped.
        present: which rows are not all zeros.
        block: targets of a block, at most.
        held: whether the blocks stay on the devices, for searches that come again and again; else each pass copies them anew.

    Attributes:
        present: see above.
        rows: C, targets of a block.
    """

    def __init__(
        self, targets: Float[np.ndarray, "N D"], present: Bool[np.ndarray, " N"], block: int, *, held: bool = False
    ) -> None:
        self._targets, self.present, self.rows = targets, present, _even(len(targets), block, _CHUNK)
        self._held = {start: self._copied(start) for start in self.starts} if held else {}

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def starts(self) -> range:
        """The first targets of the blocks."""
        return range(0, len(self), self.rows)

    def at(self, start: int) -> Float32[Array, "C D"]:
        """The block that begins with target `start`, on all local devices; rows of zeros fill up the last one."""
        return self._held[start] if self._held else self._copied(start)

    def _copied(self, start: int) -> jax.Array:
        part = _filled_up(self._targets[start : start + self.rows], self.rows)
        return jax.device_put(part, NamedSharding(_mesh(), _COPIED))


def fits_on_devices(array: Shaped[np.ndarray, "..."]) -> bool:
    """Whether copies of an array on all local devices take at most half of the memory that is free there.

    Devices that do not tell their memory share that of the host, of which the copies may take 1 GiB.
    """
    devices = jax.local_devices()
    stats = [device.memory_stats() for device in devices]
    if not all(stats):
        return array.nbytes * len(devices) <= _HOST_ROOM
    return all(array.nbytes <= (of["bytes_limit"] - of["bytes_in_use"]) / 2 for of in stats)


def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), ("queries",))


class ScoreBlocks:
    """The scores of all pairs of a query and a target but for known pairs; rows of zeros take no part.

    Args:
        queries: rows of any length; may be memory-mapped.
        targets: N targets in blocks.
        present: which queries are not all zeros.
        known: ascending: row of the query times N plus row of the target, for pairs that are left out; none
            has a row of zeros.
        query_block: queries scored at a time.
        what: what the progress bars call it; empty for none.

    Raises:
        SailError: a block has more scores than are counted in 32 bits.
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
        self._rows = min(query_block, -(-len(queries) // len(devices)))
        self._columns = targets.rows
        most = (2**31 - 1) // (self._rows * self._columns)
        if not most:
            raise SailError(
                f"Blocks of {self._rows} x {self._columns} scores are over 2^31; lower one of the two sizes."
            )
        needed = -(-len(queries) // (self._rows * len(devices)))
        self._blocks = _even(needed, min(most, _BLOCKS_PER_CALL), 1) * len(devices)
        self._known = _BlockPairs(known, len(targets), self._rows, self._columns)

    def count(self) -> tuple[Int64[np.ndarray, f"{BINS}"], Float32[np.ndarray, " E"]]:
        """Counts the scores by bin (see `bin_of`).

        Returns:
            counts: without the known pairs.
            known: the scores of the known pairs.
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
            if len(waiting) > 1:  # what is read is a step behind, so that the device never waits
                collect(*waiting.pop(0))
        for entry in waiting:
            collect(*entry)
        # What takes no part was counted too. Rows of zeros, those that fill up blocks among them, score zero.
        counts[bin_of(np.zeros(1, np.float32))] -= counts.sum() - int(self._present.sum()) * int(
            self._targets.present.sum()
        )
        return counts - np.bincount(bin_of(known), minlength=BINS), known

    def top_below(
        self, limit: float, k: int
    ) -> Iterator[tuple[int, Int64[np.ndarray, "R K"], Float32[np.ndarray, "R K"]]]:
        """The highest scores of each query strictly below a limit; of equal scores, the lower row of the target goes first.

        Args:
            limit: the limit, which is rounded to float32.
            k: K, results per query.

        Yields:
            start: the first query; they come in order.
            rows: rows of targets, highest score first; -1 where there are fewer than k.
            scores: -inf there.
        """
        best, step = None, self._blocks * self._rows
        for start, query, target, column, pairs, _ in self._steps("negatives"):
            if column == 0:
                best = self._nothing_found(k)
            previous, best = (
                best,
                _merge(query, target, pairs, best, np.float32(limit), np.int32(column), mesh=self._mesh),
            )
            jax.block_until_ready(previous)
            if column + self._columns >= len(self._targets):
                rows, scores = (np.array(part).reshape(step, k)[: len(self._queries) - start] for part in best)
                scores[~self._present[start : start + step]] = -np.inf
                yield start, np.where(np.isfinite(scores), rows, -1).astype(np.int64), scores

    def _nothing_found(self, k: int) -> tuple[jax.Array, jax.Array]:
        shape = (self._blocks, self._rows, k)
        return self._put(np.full(shape, -1, np.int32)), self._put(np.full(shape, -np.inf, np.float32))

    def _steps(self, doing: str) -> Iterator[tuple[int, jax.Array, jax.Array, int, tuple, np.ndarray]]:
        """(first query, queries [S, R, D], targets [C, D], first target, known pairs, their places), queries outermost."""
        stretch, width = self._blocks * self._rows, self._queries.shape[1]
        starts = [(q, t) for q in range(0, len(self._queries), stretch) for t in self._targets.starts]
        description = f"{self._what}: {doing}"
        query = None
        for start, column in track(starts, description=description, disable=not self._what):
            if column == 0:
                part = unit_rows(_filled_up(self._queries[start : start + stretch], stretch))
                query = self._put(part.reshape(self._blocks, self._rows, width))
            target = self._targets.at(column)
            row, place_in_block, places = self._known.of(start // self._rows, column // self._columns, self._blocks)
            yield start, query, target, column, (self._put(row), self._put(place_in_block)), places

    def _put(self, array: np.ndarray) -> jax.Array:
        return jax.device_put(array, NamedSharding(self._mesh, _BY_QUERY))


def bin_of(scores: Float32[np.ndarray, "*batch"]) -> Int64[np.ndarray, "*batch"]:
    """The bins of scores; no score is moved across an edge by rounding."""
    return np.clip(np.floor(scores / BIN), -(2**15), 2**15).astype(np.int64) + 2**15


def _even(total: int, most: int, multiple: int) -> int:
    """The size of as few equal parts as there are when none is larger than `most`, up to a multiple; one multiple of nothing."""
    size = -(-total // max(-(-total // most), 1)) or 1
    return -(-size // multiple) * multiple


def _filled_up(part: np.ndarray, rows: int) -> np.ndarray:
    """[rows, D] float32, with rows of zeros at the end; the very array where nothing is missing, as copies cost time."""
    part = np.asarray(part, np.float32)
    return part if len(part) == rows else np.pad(part, ((0, rows - len(part)), (0, 0)))


class _BlockPairs:
    """Known pairs by the block in which they lie.

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
        self._room = 1 << int(most - 1).bit_length()

    def __len__(self) -> int:
        return len(self._order)

    def of(self, first: int, across: int, blocks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pairs of `blocks` blocks of queries from `first` on, in one block of targets.

        Returns:
            row: [S, E] int32 within the block, filled up with a row that no block has.
            column: [S, E] int32 within the block.
            place: [S, E] int64 number of the known pair, or -1.
        """
        row = np.full((blocks, self._room), self._outside, np.int32)
        column = np.zeros((blocks, self._room), np.int32)
        place = np.full((blocks, self._room), -1, np.int64)
        wanted = (first + np.arange(blocks)) * self._across + across
        bounds = np.searchsorted(self._block, [wanted, wanted + 1])
        for i, (begin, end) in enumerate(bounds.T):
            row[i, : end - begin] = self._row[begin:end]
            column[i, : end - begin] = self._column[begin:end]
            place[i, : end - begin] = self._order[begin:end]
        return row, column, place


def _scores(query: jax.Array, target: jax.Array, length: jax.Array) -> jax.Array:
    """[R, C] float32. Dividing scores, in passing, costs less than to write targets of unit length first."""
    return jnp.matmul(query, target.T, precision=jax.lax.Precision.HIGHEST) / length


def _lengths(target: jax.Array) -> jax.Array:
    """[C] float32 lengths of the rows; one for rows of zeros."""
    length = jnp.sqrt(jnp.sum(target * target, axis=-1))
    return jnp.where(length > 0, length, 1)


@functools.partial(jax.jit, static_argnames="mesh")
def _count(
    queries: jax.Array, target: jax.Array, pairs: tuple[jax.Array, jax.Array], *, mesh: Mesh
) -> tuple[jax.Array, jax.Array]:
    """Counts of all scores by bin, [devices, BINS] int32, and the scores of the known pairs, [S, E] float32."""

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
    """The best so far, (rows of targets, scores), each [S, R, K], with what a block of targets adds to it."""

    def on_one_device(
        queries: jax.Array, target: jax.Array, pairs: tuple, best: tuple, limit: jax.Array, first: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        length, present = _lengths(target), target.any(axis=-1)

        def one_block(block: tuple) -> tuple[jax.Array, jax.Array]:
            query, (row, column), (best_rows, best_scores) = block
            scores = _scores(query, target, length)
            shown = jnp.where((scores < limit) & present, scores, -jnp.inf).at[row, column].set(-jnp.inf, mode="drop")
            return _with_higher(best_rows, best_scores, shown, first)

        return jax.lax.map(one_block, (queries, pairs, best))

    inputs = (_BY_QUERY, _COPIED, _BY_QUERY, _BY_QUERY, _COPIED, _COPIED)
    return _over_devices(on_one_device, mesh, inputs)(queries, target, pairs, best, limit, first)


def _over_devices(function: Callable, mesh: Mesh, inputs: tuple[PartitionSpec, ...]) -> Callable:
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=_BY_QUERY, check_vma=False)


def _with_higher(
    best_rows: jax.Array, best_scores: jax.Array, scores: jax.Array, first: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The best so far, (rows of targets, scores), each [R, K], with those of a block of scores [R, C] that are higher.

    Of equal scores the lower column goes first, and what was there before goes before. Once some blocks have passed, few scores are
    still among the best, so that only the chunks which hold them are sorted through.
    """
    k, chunks = best_rows.shape[-1], scores.shape[1] // _CHUNK
    maxima = scores.reshape(len(scores), chunks, _CHUNK).max(axis=-1)
    few = min(max(k // 3, 8), chunks)

    def merge(count: int) -> tuple[jax.Array, jax.Array]:
        found, at = _of_chunks(scores, maxima, count) if count < chunks // 2 else (scores, _columns(scores))
        merged, place = jax.lax.top_k(jnp.concatenate([best_scores, found], axis=1), k)
        return jnp.take_along_axis(jnp.concatenate([best_rows, at + first], axis=1), place, axis=1), merged

    fit = jnp.all(jnp.sum(maxima > best_scores[:, -1:], axis=-1) <= few)
    return jax.lax.cond(fit, lambda: merge(few), lambda: merge(k))


def _columns(scores: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(scores.shape[1], dtype=jnp.int32), scores.shape)


def _of_chunks(scores: jax.Array, maxima: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The scores of the chunks with the highest maxima, and their columns, in ascending order: the `count` highest are among them."""
    chunk = jnp.sort(jax.lax.top_k(maxima, count)[1], axis=-1)
    found = jnp.take_along_axis(scores.reshape(*maxima.shape, _CHUNK), chunk[:, :, None], axis=1)
    at = chunk[:, :, None] * _CHUNK + jnp.arange(_CHUNK, dtype=jnp.int32)
    return found.reshape(len(scores), -1), at.reshape(len(scores), -1)
