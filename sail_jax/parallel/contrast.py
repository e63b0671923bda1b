"""The contrastive loss of a batch that is split over devices, in memory linear in the batch: blocks of scores, around a ring.

Every device keeps its queries. Its targets (and hard negatives) leave in chunks that travel once around the ring of all devices; each
device scores the chunk that is with it against its queries, block by block, and keeps the sums of exponentials alone. The
backward pass sends the chunks around again, with the gradients that they collect, and computes the scores anew. So beside
the embeddings and their gradients a device holds a few blocks, however large the batch.

Axes: B pairs of the global batch, b those of a device, M hard negatives of a pair, D width, W Matryoshka slices, R and C rows and
columns of a block.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from sail_jax.config import Config
from sail_jax.errors import SailError
from sail_jax.objectives.contrast import Contrast, ContrastLoss, ContrastSettings, Metrics, plain_contrast
from sail_jax.objectives.info_nce import mean_loss
from sail_jax.objectives.matryoshka import check_widths
from sail_jax.vectors import normalize

_MASKED = -1e30

# Arrays whose leading axis is that of queries, targets or hard negatives.
Rows = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class RingContrast:
    """`objectives.contrast.plain_contrast` around a ring; equal in value and gradient.

    Attributes:
        mesh: the ring goes over all its axes where they divide the batch, else over those of data parallelism.
        block: greatest side of a block of scores; the largest divisor of a device's rows up to it is taken.
    """

    mesh: Mesh
    block: int

    def __call__(self, given: Contrast, settings: ContrastSettings) -> tuple[jax.Array, Metrics]:
        """The loss of a global batch; see `plain_contrast`."""
        check_widths(settings.widths, given.query.shape[-1])
        ring = self._ring(len(given.query), tuple(sorted(settings.widths)), settings.symmetric)
        query, target = (z[..., : ring.widths[-1]] for z in (given.query, given.target))
        scale, (rows, columns, hard) = 1 / given.temperature, _describe(given)
        positive, others, back, best = _sums(ring, True, query, target[:, 0], scale, rows, columns)
        if target.shape[1] > 1:
            if settings.share_hard:
                vectors = target[:, 1:].reshape(-1, target.shape[-1])
                _, more, _, highest = _sums(ring, False, query, vectors, scale, rows, hard)
            else:
                more, highest = _own_hard_sums(ring.widths, query, target[:, 1:], scale, rows, hard)
            others, best = jnp.logaddexp(others, more), jnp.maximum(best, highest)
        directions = [others, back] if settings.symmetric else [others]
        losses, accuracies = mean_loss(positive, directions, best, given.valid, given.weight)
        metrics = {}
        for width in settings.widths:
            at = ring.widths.index(width)
            metrics |= {f"{width}/loss": losses[at], f"{width}/accuracy": accuracies[at]}
        return losses.sum(), metrics

    def size_for(self, pairs: int) -> int:
        """Devices on the ring of a batch."""
        return self._ring(pairs, (), True).size

    def _ring(self, pairs: int, widths: tuple[int, ...], symmetric: bool) -> "_Ring":
        axes = self.mesh.axis_names if pairs % self.mesh.size == 0 else ("data", "fsdp")
        return _Ring(self.mesh, axes, self.block, widths, symmetric)


def choose_contrast(config: Config, mesh: Mesh) -> ContrastLoss:
    """All scores at once where a block holds them, else the ring.

    Raises:
        SailError: when the pairs of a device have no divisor that makes blocks of a fair size.
    """
    block, pairs = config.objective.score_block, config.data.batch_size
    if pairs <= block:
        return plain_contrast
    ring = RingContrast(mesh, block)
    rows = pairs // ring.size_for(pairs)
    side = _side(rows, block)
    if side < min(rows, block) // 8:
        raise SailError(
            f"config.data.batch_size is {pairs}: the {rows} pairs of a device can only be cut in blocks of {side}, which would be "
            f"slow. Choose a multiple of {max(1, block // 2) * (pairs // rows)}, or raise config.objective.score_block."
        )
    return ring


class _Ring(NamedTuple):
    """What is fixed when a step is compiled."""

    mesh: Mesh
    axes: tuple[str, ...]
    block: int
    widths: tuple[int, ...]
    symmetric: bool

    @property
    def size(self) -> int:
        return int(np.prod([self.mesh.shape[axis] for axis in self.axes]))

    def by_device(self, function: Callable, rows: Rows, *by_row: Any) -> Any:
        """Runs a function of (arrays split by rows ..., `rows`, the list of known targets) on every device."""
        described = {name: value for name, value in rows.items() if name != "known"}
        split, copied = PartitionSpec(self.axes), PartitionSpec()
        specs = ((split,) * len(by_row), split, copied)
        run = jax.shard_map(
            lambda arrays, *rest: function(*arrays, *rest),
            mesh=self.mesh,
            in_specs=specs,
            out_specs=split,
            check_vma=False,
        )
        return run(by_row, described, rows["known"])


# ------------------------------------------------------------------------------------------------ which are negatives


def _describe(given: Contrast) -> tuple[Rows, Rows, Rows]:
    """What the masks are made of, as `objectives.negatives.find_negatives` defines them: for queries, targets, hard negatives.

    A candidate is no negative of a query that has the same content, nor of one that has it as a target in any pair of the batch: as
    the pair of that query and target is one of them, this covers pairs that share a query or a target too.
    """
    batch, pattern = given.batch, given.pattern

    def keys(side: int | slice, by_text: bool) -> jax.Array:
        """What makes two contents of a side the same, any of them: [n, 1 or 2, 2], the item, and the text where it counts."""
        both = [batch.item_keys[:, side], batch.text_keys[:, side]] if by_text else [batch.item_keys[:, side]]
        return jnp.stack([part.reshape(-1, 2) for part in both], axis=1)

    texts, across, hard_side = pattern.target == "T", pattern.query == pattern.target == "T", slice(2, None)
    target = keys(1, texts)
    queries = jnp.moveaxis(keys(0, pattern.query == "T"), 1, 0)
    start, count, known = jax.vmap(_targets_by_query, in_axes=(0, None))(queries, target)
    count = jnp.where(given.valid, count, 0)  # a query that does not count, such as a blank, has nothing to look up
    rows = {"content": keys(0, across), "valid": given.valid, "start": start.T, "count": count.T}
    columns = {"content": keys(1, across), "key": target, "exists": given.valid}
    exists = (given.valid_hard & given.valid[:, None]).reshape(-1)
    hard = {"content": keys(hard_side, across), "key": keys(hard_side, texts), "exists": exists}
    return rows | {"known": known}, columns, hard


def _targets_by_query(query: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Lists the targets of each query.

    Args:
        query: [B, 2] uint32 keys.
        target: [B, k, 2] uint32 keys, k of each target.

    Returns:
        start, count: [B] int32; the targets of pair i's query stand at start[i] and the count[i] - 1 places after it.
        known: [B, k, 2] uint32 keys of targets, sorted by query.
    """
    place = jnp.arange(len(query), dtype=jnp.int32)
    high, low, order = jax.lax.sort((*query.T, place), num_keys=3)
    begins = jnp.append(True, (high[1:] != high[:-1]) | (low[1:] != low[:-1]))
    start = jax.lax.cummax(jnp.where(begins, place, 0))
    # The first place after a run is the next one that begins another.
    following = jnp.append(jnp.where(begins, place, len(query))[1:], len(query))
    count = jax.lax.cummin(following, reverse=True) - start
    known = target[order]
    _, start, count = jax.lax.sort((order, start, count), num_keys=1)
    return start, count, known


def _is_negative(rows: Rows, columns: Rows, known: jax.Array) -> jax.Array:
    """[R, C] bool; columns stand on an axis of their own, [1, C, ...], or belong to their row, [R, C, ...].

    `known` [l, B, k, 2] are lists of targets: by the item of the query, and by its text where that counts.
    """
    found = _same(rows["content"][:, None], columns["content"])
    for targets, start, count in zip(known, rows["start"].T, rows["count"].T, strict=True):
        found |= _is_listed(targets, start, count, columns["key"])
    return ~found & columns["exists"] & rows["valid"][:, None]


def _is_listed(targets: jax.Array, start: jax.Array, count: jax.Array, keys: jax.Array) -> jax.Array:
    """[R, C] bool, whether a candidate is among the targets of a row's query."""

    def look(step: int, found: jax.Array) -> jax.Array:
        key = targets[jnp.minimum(start + step, len(targets) - 1)]
        return found | (_same(key[:, None], keys) & (step < count)[:, None])

    # As many rounds as the query of a row that has most targets in the batch; one, as a rule.
    nothing = jnp.zeros((len(start), keys.shape[1]), bool)
    return jax.lax.fori_loop(0, count.max(), look, nothing)


def _same(left: jax.Array, right: jax.Array) -> jax.Array:
    """[..., k, 2] keys of two contents -> [...]: whether any of the k agree."""
    return (left == right).all(-1).any(-1)


# ------------------------------------------------------------------------------------------------------------- ring


class _Visit(NamedTuple):
    """What happens when chunks of columns go around; rows, columns and what they collect are arrays by name.

    Attributes:
        begin: columns -> what a chunk has collected when it leaves.
        tile: (rows, row_state, columns, column_state) of a block -> (row_state, column_state).
        end_columns: (columns, column_state, their number among the chunks) -> the result of a chunk that is home again.
        end_rows: (rows, row_state, their number among the blocks) -> the same of rows; of the shapes of `row_state`.
    """

    begin: Callable[[Rows], Rows]
    tile: Callable[[Rows, Rows, Rows, Rows], tuple[Rows, Rows]]
    end_columns: Callable[[Rows, Rows, jax.Array], Rows] = lambda _, state, __: state
    end_rows: Callable[[Rows, Rows, jax.Array], Rows] = lambda _, state, __: state


def _around(ring: _Ring, rows: Rows, row_state: Rows, columns: Rows, visit: _Visit) -> tuple[Rows, Rows]:
    """Shows all columns of all devices to the rows of each, and brings them home.

    Large arrays are only ever changed a block at a time, so that they stay where they are.

    Args:
        ring: the ring.
        rows: arrays of this device's rows, in blocks [n, R, ...].
        row_state: what the rows have collected before, [n, R, ...].
        columns: arrays of this device's columns, in chunks [m, C, ...].
        visit: what is done.

    Returns:
        What rows and columns have in the end, [n * R, ...] and [m * C, ...].
    """
    steps = [(i, (i + 1) % ring.size) for i in range(ring.size)]
    blocks, chunks = (len(jax.tree.leaves(part)[0]) for part in (rows, columns))

    def send(part: Rows) -> Rows:
        return part if ring.size == 1 else jax.tree.map(lambda x: jax.lax.ppermute(x, ring.axes, steps), part)

    def one_chunk(row_state: Rows, chunk: tuple[jax.Array, Rows]) -> tuple[Rows, Rows]:
        number, columns = chunk

        def one_stop(_: int, carry: tuple[Rows, Rows, Rows]) -> tuple[Rows, Rows, Rows]:
            row_state, columns, column_state = carry
            coming = send(columns)  # needed at the next stop alone, so it travels while this one computes

            def one_block(at: int, carry: tuple[Rows, Rows]) -> tuple[Rows, Rows]:
                row_state, column_state = carry
                here, column_state = visit.tile(_at(rows, at), _at(row_state, at), columns, column_state)
                return _put(row_state, at, here), column_state

            row_state, column_state = jax.lax.fori_loop(0, blocks, one_block, (row_state, column_state))
            return row_state, coming, send(column_state)

        carry = (row_state, columns, visit.begin(columns))
        row_state, columns, column_state = jax.lax.fori_loop(0, ring.size, one_stop, carry)
        return row_state, visit.end_columns(columns, column_state, number)

    row_state, column_state = jax.lax.scan(one_chunk, row_state, (jnp.arange(chunks), columns))

    def end_block(at: int, row_state: Rows) -> Rows:
        return _put(row_state, at, visit.end_rows(_at(rows, at), _at(row_state, at), at))

    row_state = jax.lax.fori_loop(0, blocks, end_block, row_state)
    return tuple(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), part) for part in (row_state, column_state))


def _at(part: Rows, at: jax.Array) -> Rows:
    return jax.tree.map(lambda x: x[at], part)


def _put(part: Rows, at: jax.Array, block: Rows) -> Rows:
    return jax.tree.map(lambda x, new: x.at[at].set(new), part, block)


def _blocked(part: Rows, most: int) -> Rows:
    """[n, ...] -> [n / size, size, ...] with the largest size up to `most` that divides n."""

    return jax.tree.map(lambda x: x.reshape(-1, _side(len(x), most), *x.shape[1:]), part)


def _side(rows: int, most: int) -> int:
    return next(size for size in range(min(most, rows), 0, -1) if rows % size == 0)


# ----------------------------------------------------------------------------------------------------------- scores


def _inverse_norms(z: jax.Array, widths: Sequence[int]) -> jax.Array:
    """[n, D] -> [n, W], of each slice; zero for a slice of zeros, whose cosines are then zero."""
    ends = [0, *widths]
    parts = [jnp.square(z[:, low:high]).sum(-1) for low, high in zip(ends, ends[1:], strict=False)]
    squares = jnp.cumsum(jnp.stack(parts, axis=-1), axis=-1)
    return jnp.where(squares == 0, 0.0, jax.lax.rsqrt(jnp.where(squares == 0, 1.0, squares)))


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    # At a temperature of 0.01 an error of 0.004, bfloat16's, would move a logit by 0.4.
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def _cosines(rows: Rows, columns: Rows, widths: Sequence[int]) -> list[jax.Array]:
    """The cosines of each slice, W arrays [R, C]; the slices are nested, so all together cost one product of the widest."""
    dots, scores = 0.0, []
    for at, (low, high) in enumerate(zip([0, *widths], widths, strict=False)):
        dots += _product(rows["vector"][:, low:high], columns["vector"][:, low:high].T)
        scores.append(dots * rows["inverse_norm"][:, None, at] * columns["inverse_norm"][None, :, at])
    return scores


def _nothing(size: int, widths: Sequence[int]) -> Rows:
    """A sum of no exponentials, kept as its greatest logit and the sum relative to it: [n, W] each."""
    shape = (size, len(widths))
    return {"best": jnp.full(shape, _MASKED), "sum": jnp.zeros(shape)}


def _add(state: Rows, at: int, logits: jax.Array, negative: jax.Array, axis: int) -> Rows:
    """Adds the exponentials of a block to the sums of slice `at`, along an axis of the block."""
    masked = jnp.where(negative, logits, _MASKED)
    old = state["best"][:, at]
    best = jnp.maximum(old, masked.max(axis))
    terms = jnp.where(negative, jnp.exp(logits - jnp.expand_dims(best, axis)), 0.0)
    total = state["sum"][:, at] * jnp.exp(old - best) + terms.sum(axis)
    return {"best": state["best"].at[:, at].set(best), "sum": state["sum"].at[:, at].set(total)}


def _logarithm(state: Rows) -> jax.Array:
    """[n, W] log of the sums; as good as minus infinity where nothing was added."""
    return state["best"] + jnp.log(jnp.maximum(state["sum"], 1e-30))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sums(
    ring: _Ring, paired: bool, query: jax.Array, candidates: jax.Array, scale: jax.Array, rows: Rows, columns: Rows
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """What InfoNCE needs of all scores of queries and candidates.

    Args:
        ring: the ring.
        paired: whether the candidates are the targets of the queries, else hard negatives, which are scored one way.
        query: [B, D].
        candidates: [B, D] or [B * M, D].
        scale: [B] inverse temperatures.
        rows: what `_describe` says of the queries.
        columns: what it says of the candidates.

    Returns:
        positive: [B, W] logits of the pairs; zeros where not paired.
        others: [B, W] logarithms of the sums over the negatives of each query.
        back: [B, W] the same of each target over the queries; zeros unless paired and the ring is symmetric.
        best: [B, W] highest logit of a negative; without gradient.
    """
    return _sums_forward(ring, paired, query, candidates, scale, rows, columns)[0]


def _sums_forward(
    ring: _Ring, paired: bool, query: jax.Array, candidates: jax.Array, scale: jax.Array, rows: Rows, columns: Rows
) -> tuple[tuple[jax.Array, ...], tuple]:
    both = paired and ring.symmetric

    def on_device(
        query: jax.Array, candidates: jax.Array, scale: jax.Array, columns: Rows, rows: Rows, known: jax.Array
    ) -> tuple[jax.Array, ...]:
        rows = rows | _vectors(query, ring.widths) | {"scale": scale}
        columns = columns | _vectors(candidates, ring.widths) | ({"scale": scale} if paired else {})
        row_state = _nothing(len(query), ring.widths)

        def tile(rows: Rows, row_state: Rows, columns: Rows, column_state: Rows) -> tuple[Rows, Rows]:
            negative = _is_negative(rows, _across(columns), known)
            for at, cosines in enumerate(_cosines(rows, columns, ring.widths)):
                row_state = _add(row_state, at, cosines * rows["scale"][:, None], negative, 1)
                if both:
                    column_state = _add(column_state, at, cosines * columns["scale"], negative, 0)
            return row_state, column_state

        def begin(columns: Rows) -> Rows:
            return _nothing(len(columns["vector"]), ring.widths) if both else {}

        blocked = (_blocked(part, ring.block) for part in (rows, row_state, columns))
        row_state, column_state = _around(ring, *blocked, _Visit(begin, tile))
        zeros = jnp.zeros_like(row_state["best"])
        positive = _paired_cosines(rows, columns, ring.widths) * scale[:, None] if paired else zeros
        back = _logarithm(column_state) if both else zeros
        return positive, _logarithm(row_state), back, row_state["best"]

    sums = ring.by_device(on_device, rows, query, candidates, scale, columns)
    return sums, (query, candidates, scale, rows, columns, *sums[1:3])


def _sums_backward(ring: _Ring, paired: bool, saved: tuple, gradients: tuple[jax.Array, ...]) -> tuple:
    query, candidates, scale, rows, columns, others, back = saved
    both = paired and ring.symmetric

    def on_device(
        query: jax.Array,
        candidates: jax.Array,
        scale: jax.Array,
        columns: Rows,
        sums: tuple[jax.Array, ...],
        gradients: tuple[jax.Array, ...],
        rows: Rows,
        known: jax.Array,
    ) -> tuple[jax.Array, ...]:
        rows = rows | _vectors(query, ring.widths) | {"scale": scale, "log_sum": sums[0], "gradient": gradients[1]}
        columns = columns | _vectors(candidates, ring.widths)
        if both:
            columns |= {"scale": scale, "log_sum": sums[1], "gradient": gradients[2]}

        def tile(rows: Rows, row_state: Rows, columns: Rows, column_state: Rows) -> tuple[Rows, Rows]:
            negative = _is_negative(rows, _across(columns), known)
            by_dot = []
            for at, cosines in enumerate(_cosines(rows, columns, ring.widths)):
                share = _softmax(cosines, negative, rows, at, 1)
                by_cosine = share * rows["scale"][:, None]
                row_state = _collect(row_state, "scale", None, (share * cosines).sum(1))
                if both:
                    share = _softmax(cosines, negative, columns, at, 0)
                    by_cosine += share * columns["scale"]
                    column_state = _collect(column_state, "scale", None, (share * cosines).sum(0))
                row_state = _collect(row_state, "along", at, (by_cosine * cosines).sum(1))
                column_state = _collect(column_state, "along", at, (by_cosine * cosines).sum(0))
                by_dot.append(by_cosine * rows["inverse_norm"][:, None, at] * columns["inverse_norm"][None, :, at])
            for low, high, of_section in _sections(by_dot, ring.widths):
                section = slice(low, high)
                row_state = _collect(row_state, "vector", section, _product(of_section, columns["vector"][:, section]))
                column_state = _collect(
                    column_state, "vector", section, _product(of_section.T, rows["vector"][:, section])
                )
            return row_state, column_state

        gradient_of_pairs = {"positive": gradients[0]} if paired else {}
        rows, columns = (_blocked(side | gradient_of_pairs, ring.block) for side in (rows, columns))

        def end(side: Rows, state: Rows, at: jax.Array, other: Rows) -> Rows:
            state = _add_pairs(ring.widths, side, _at(other, at), state) if paired else state
            return state | {"vector": _across_direction(side, state, ring.widths)}

        visit = _Visit(_no_gradient, tile, functools.partial(end, other=rows), functools.partial(end, other=columns))
        row_state, column_state = _around(ring, rows, jax.vmap(_no_gradient)(rows), columns, visit)
        of_scale = row_state["scale"] + (column_state["scale"] if both else 0.0)
        return row_state["vector"], column_state["vector"], of_scale

    of_query, of_candidates, of_scale = ring.by_device(
        on_device, rows, query, candidates, scale, columns, (others, back), gradients[:3]
    )
    return of_query, of_candidates, of_scale, None, None


_sums.defvjp(_sums_forward, _sums_backward)


def _vectors(z: jax.Array, widths: Sequence[int]) -> Rows:
    return {"vector": z, "inverse_norm": _inverse_norms(z, widths)}


def _across(columns: Rows) -> Rows:
    """The columns of a block on an axis of their own."""
    return {name: columns[name][None] for name in ("content", "key", "exists")}


def _sections(of_slices: Sequence[jax.Array], widths: Sequence[int]) -> list[tuple[int, int, jax.Array]]:
    """(begin, end, sum over the slices that hold it) of the stretches of D between the widths."""
    sums = [of_slices[-1]]
    for part in reversed(of_slices[:-1]):
        sums.insert(0, sums[0] + part)
    return list(zip([0, *widths], widths, sums, strict=False))


def _paired_cosines(rows: Rows, columns: Rows, widths: Sequence[int]) -> jax.Array:
    """[b, W] cosines of row i and column i."""
    products = rows["vector"] * columns["vector"]
    parts = [products[:, low:high].sum(-1) for low, high in zip([0, *widths], widths, strict=False)]
    return jnp.cumsum(jnp.stack(parts, -1), -1) * rows["inverse_norm"] * columns["inverse_norm"]


# --------------------------------------------------------------------------------------------------------- gradients


def _softmax(cosines: jax.Array, negative: jax.Array, side: Rows, at: int, axis: int) -> jax.Array:
    """What each logit of a block gets of the gradient of its row's (axis 1) or column's (axis 0) sum in slice `at`."""
    scale, log_sum, gradient = (
        jnp.expand_dims(x, axis) for x in (side["scale"], side["log_sum"][:, at], side["gradient"][:, at])
    )
    return jnp.where(negative, jnp.exp(cosines * scale - log_sum), 0.0) * gradient


def _no_gradient(side: Rows) -> Rows:
    """What is collected: the gradient of the vectors as far as cosines are products, "along" [n, W] the part of it along the
    vector, which normalisation takes away again, and the gradient of the inverse temperature."""
    shape = side["inverse_norm"].shape
    return {"vector": jnp.zeros_like(side["vector"]), "along": jnp.zeros(shape), "scale": jnp.zeros(shape[0])}


def _collect(state: Rows, name: str, at: int | slice | None, value: jax.Array) -> Rows:
    updated = state[name] + value if at is None else state[name].at[:, at].add(value)
    return state | {name: updated}


def _add_pairs(widths: Sequence[int], side: Rows, other: Rows, state: Rows) -> Rows:
    """Adds to the gradients of queries or targets what comes from the positive logits, whose gradient is "positive" [n, W].

    Of the inverse temperature, the query's side alone takes it.
    """
    cosines = _paired_cosines(side, other, widths)
    by_cosine = side["positive"] * (side if "start" in side else other)["scale"][:, None]
    if "start" in side:
        state = _collect(state, "scale", None, (side["positive"] * cosines).sum(-1))
    state = _collect(state, "along", slice(None), by_cosine * cosines)
    by_dot = _spread(by_cosine * side["inverse_norm"] * other["inverse_norm"], widths)
    return state | {"vector": state["vector"] + by_dot * other["vector"]}


def _across_direction(side: Rows, state: Rows, widths: Sequence[int]) -> jax.Array:
    """The gradient of vectors [n, D]: through z / |z| nothing along z is left."""
    return state["vector"] - _spread(state["along"] * side["inverse_norm"] ** 2, widths) * side["vector"]


def _spread(of_slices: jax.Array, widths: Sequence[int]) -> jax.Array:
    """[n, W] of nested slices -> [n, D], at every place the sum over the slices that hold it."""
    sections = _sections(list(of_slices.T), widths)
    return jnp.concatenate([jnp.broadcast_to(x[:, None], (len(x), high - low)) for low, high, x in sections], axis=1)


# ------------------------------------------------------------------------------------------- hard negatives unshared


def _own_hard_sums(
    widths: Sequence[int], query: jax.Array, hard: jax.Array, scale: jax.Array, rows: Rows, described: Rows
) -> tuple[jax.Array, jax.Array]:
    """The logarithm of the sums over a query's own hard negatives [B, M, D], and the highest logit, [B, W] each."""
    by_pair = {name: value.reshape(*hard.shape[:2], *value.shape[1:]) for name, value in described.items()}
    negative = _is_negative(rows, by_pair, rows["known"])
    logits = []
    for width in widths:
        left, right = normalize(query[:, :width]), normalize(hard[..., :width])
        logits.append((left[:, None] * right).sum(-1) * scale[:, None])
    masked = jnp.where(negative[..., None], jnp.stack(logits, axis=-1), _MASKED)
    return jax.nn.logsumexp(masked, axis=1), masked.max(axis=1)
