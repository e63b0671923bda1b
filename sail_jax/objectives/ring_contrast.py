"""The contrastive loss by ring passes over the devices, in memory linear in the batch.

Every device keeps its queries. Chunks of targets (and of hard negatives) travel once around the ring of devices; each
device scores the chunk that it holds against its queries, block by block, and stores only the sums of exponentials. The
backward pass rotates the chunks again, together with their gradients, and recomputes the scores. So a device holds the
embeddings, their gradients and a few blocks of scores, whatever the size of the batch.

Axis letters: B pairs of the global batch, b pairs of a device, n rows of an array, M hard negatives of a pair, D width,
W Matryoshka slices, R rows and C columns of a block.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float32

from sail_jax.config import Config
from sail_jax.errors import SailError
from sail_jax.objectives.contrast import (
    Contrast,
    ContrastLoss,
    ContrastSettings,
    Metrics,
    false_negatives,
    plain_contrast,
)
from sail_jax.objectives.info_nce import Correction, correct_positives, mean_loss
from sail_jax.objectives.matryoshka import check_widths
from sail_jax.objectives.ring import (
    Ring,
    Rows,
    VisitCallbacks,
    block_side,
    rotate_columns,
    split_into_blocks,
    take_block,
)
from sail_jax.objectives.ring_masks import is_negative, mask_inputs
from sail_jax.vectors.unit import normalize

_MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class RingContrast:
    """Computes `objectives.contrast.plain_contrast` by ring passes, with equal values and gradients.

    Attributes:
        mesh: the ring spans all its axes if they divide the batch, else the data-parallel axes.
        block: largest side of a block of scores; blocks have the largest divisor of a device's rows up to it.
    """

    mesh: Mesh
    block: int

    def __call__(self, given: Contrast, settings: ContrastSettings) -> tuple[Float32[Array, ""], Metrics]:
        """Computes the loss of a global batch; see `plain_contrast`."""
        check_widths(settings.widths, given.query.shape[-1])
        ring, widths = self.ring(len(given.query)), tuple(sorted(settings.widths))
        query, target = (z[..., : widths[-1]] for z in (given.query, given.target))
        scale, (*sides, known) = 1 / given.temperature, mask_inputs(given)
        rows, columns, hard = (
            keys | more for keys, more in zip(sides, _correction_inputs(given.correction), strict=True)
        )
        form = _Form(widths, paired=True, both=settings.symmetric)
        positive, others, back, best, negatives = _sums(ring, form, query, target[:, 0], scale, rows, columns, known)
        if target.shape[1] > 1:
            if settings.share_hard:
                vectors = target[:, 1:].reshape(-1, target.shape[-1])
                form = _Form(widths, paired=False, both=False)
                _, more, _, highest, _ = _sums(ring, form, query, vectors, scale, rows, hard, known)
            else:
                more, highest = _own_hard_sums(widths, query, target[:, 1:], scale, rows, hard, known)
            others, best = jnp.logaddexp(others, more), jnp.maximum(best, highest)
        directions = [others, back] if settings.symmetric else [others]
        if given.correction is not None:
            directions, best = correct_positives(directions, best, given.correction)
        losses, accuracies = mean_loss(positive, directions, best, given.valid, given.weight)
        metrics = {"false_negatives": false_negatives(negatives, given.valid)}
        for width in settings.widths:
            at = widths.index(width)
            metrics |= {f"{width}/loss": losses[at], f"{width}/accuracy": accuracies[at]}
        return losses.sum(), metrics

    def ring(self, pairs: int) -> Ring:
        """Returns the ring for a batch of this many pairs."""
        axes = self.mesh.axis_names if pairs % self.mesh.size == 0 else ("data", "fsdp")
        return Ring(self.mesh, axes, self.block)


def choose_contrast(config: Config, mesh: Mesh) -> ContrastLoss:
    """Returns the plain loss if one block holds all scores of a batch, else the loss by ring passes.

    Raises:
        SailError: the pairs of a device can only be divided into very small blocks.
    """
    block, pairs = config.objective.score_block, config.data.batch_size
    if pairs <= block:
        return plain_contrast
    contrast = RingContrast(mesh, block)
    rows = pairs // contrast.ring(pairs).size
    side = block_side(rows, block)
    if side < min(rows, block) // 8:
        raise SailError(
            f"config.data.batch_size is {pairs}: the {rows} pairs of a device can only be cut in blocks of {side}, "
            f"which would be slow. Choose a multiple of {max(1, block // 2) * (pairs // rows)}, "
            "or raise config.objective.score_block."
        )
    return contrast


class _Form(NamedTuple):
    """The kind of scores that a ring pass computes.

    Attributes:
        widths: widths of the Matryoshka slices, ascending.
        paired: whether the candidates are the targets of the queries, else hard negatives.
        both: whether candidates are also scored against queries.
    """

    widths: tuple[int, ...]
    paired: bool
    both: bool


def _correction_inputs(correction: Correction | None) -> tuple[Rows, Rows, Rows]:
    """Returns what `_logits` reads of the correction, for queries, targets and hard negatives; nothing for None."""
    if correction is None:
        return {}, {}, {}
    return (
        {"strength": correction.strength, "log_frequency": correction.query},
        {"strength": correction.strength, "log_frequency": correction.target},
        {"log_frequency": correction.hard.reshape(-1)},
    )


# ----------------------------------------------------------------------------------------------------------- scores


def _inverse_norms(z: jax.Array, widths: Sequence[int]) -> jax.Array:
    """Returns the inverse norm of each slice, [n, D] -> [n, W]; 0 for a slice of zeros, so that its cosines are 0."""
    ends = [0, *widths]
    parts = [jnp.square(z[:, low:high]).sum(-1) for low, high in zip(ends, ends[1:], strict=False)]
    squares = jnp.cumsum(jnp.stack(parts, axis=-1), axis=-1)
    return jnp.where(squares == 0, 0.0, jax.lax.rsqrt(jnp.where(squares == 0, 1.0, squares)))


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    # Full precision: at a temperature of 0.01, the bfloat16 error of 0.004 shifts a logit by 0.4.
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def _cosines(rows: Rows, columns: Rows, widths: Sequence[int]) -> list[jax.Array]:
    """Returns the cosines of each slice, W arrays [R, C]; as slices are nested, all cost one product of the widest."""
    dots, scores = 0.0, []
    for at, (low, high) in enumerate(zip([0, *widths], widths, strict=False)):
        dots += _product(rows["vector"][:, low:high], columns["vector"][:, low:high].T)
        scores.append(dots * rows["inverse_norm"][:, None, at] * columns["inverse_norm"][None, :, at])
    return scores


def _logits(cosines: jax.Array, side: Rows, other: Rows, axis: int) -> jax.Array:
    """Returns a block's logits in the direction of rows (axis 1) or columns (axis 0), corrected as `side` says."""
    logits = cosines * jnp.expand_dims(side["scale"], axis)
    if "strength" in side:
        logits -= jnp.expand_dims(side["strength"], axis) * jnp.expand_dims(other["log_frequency"], 1 - axis)
    return logits


def _empty_sums(size: int, widths: Sequence[int]) -> Rows:
    """Returns empty sums of exponentials: the highest logit, and the sum relative to it, [n, W] each."""
    shape = (size, len(widths))
    return {"best": jnp.full(shape, _MASKED), "sum": jnp.zeros(shape)}


def _add_exponentials(state: Rows, at: int, logits: jax.Array, negative: jax.Array, axis: int) -> Rows:
    """Adds the exponentials of a block, summed along an axis, to the sums of slice `at`."""
    masked = jnp.where(negative, logits, _MASKED)
    old = state["best"][:, at]
    best = jnp.maximum(old, masked.max(axis))
    terms = jnp.where(negative, jnp.exp(logits - jnp.expand_dims(best, axis)), 0.0)
    total = state["sum"][:, at] * jnp.exp(old - best) + terms.sum(axis)
    return state | {"best": state["best"].at[:, at].set(best), "sum": state["sum"].at[:, at].set(total)}


def _log_sums(state: Rows) -> jax.Array:
    """Returns the logarithms of the sums, [n, W]; practically minus infinity for empty sums."""
    return state["best"] + jnp.log(jnp.maximum(state["sum"], 1e-30))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sums(
    ring: Ring,
    form: _Form,
    query: jax.Array,
    candidates: jax.Array,
    scale: jax.Array,
    rows: Rows,
    columns: Rows,
    known: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Reduces all scores of queries and candidates to the values that InfoNCE needs.

    Args:
        ring: the ring.
        form: the kind of scores.
        query: [B, D].
        candidates: [B, D] or [B * M, D].
        scale: [B] inverse temperatures.
        rows: keys of the queries, from `mask_inputs`.
        columns: keys of the candidates, from `mask_inputs`.
        known: the lists of targets, from `mask_inputs`.

    Returns:
        positive: [B, W] logits of the pairs; zeros unless `form.paired`.
        others: [B, W] log-sum-exp over the negatives of each query.
        back: [B, W] log-sum-exp over the queries that are negatives of each target; zeros unless `form.both`.
        best: [B, W] highest logit of a negative of each query; without gradient.
        negatives: [B] number of negatives of each query; without gradient.
    """
    return _sums_forward(ring, form, query, candidates, scale, rows, columns, known)[0]


def _sums_forward(
    ring: Ring,
    form: _Form,
    query: jax.Array,
    candidates: jax.Array,
    scale: jax.Array,
    rows: Rows,
    columns: Rows,
    known: jax.Array,
) -> tuple[tuple[jax.Array, ...], tuple]:
    def on_device(
        query: jax.Array, candidates: jax.Array, scale: jax.Array, rows: Rows, columns: Rows, known: jax.Array
    ) -> tuple[jax.Array, ...]:
        rows = rows | _vectors(query, form.widths) | {"scale": scale}
        columns = columns | _vectors(candidates, form.widths) | ({"scale": scale} if form.paired else {})
        row_state = _empty_sums(len(query), form.widths) | {"count": jnp.zeros(len(query))}

        def tile(rows: Rows, row_state: Rows, columns: Rows, column_state: Rows) -> tuple[Rows, Rows]:
            negative = is_negative(rows, _as_columns(columns), known)
            row_state = row_state | {"count": row_state["count"] + negative.sum(1)}
            for at, cosines in enumerate(_cosines(rows, columns, form.widths)):
                row_state = _add_exponentials(row_state, at, _logits(cosines, rows, columns, 1), negative, 1)
                if form.both:
                    logits = _logits(cosines, columns, rows, 0)
                    column_state = _add_exponentials(column_state, at, logits, negative, 0)
            return row_state, column_state

        def begin(columns: Rows) -> Rows:
            return _empty_sums(len(columns["vector"]), form.widths) if form.both else {}

        parts = (split_into_blocks(part, ring.block) for part in (rows, row_state, columns))
        row_state, column_state = rotate_columns(ring, *parts, VisitCallbacks(begin, tile))
        zeros = jnp.zeros_like(row_state["best"])
        positive = _paired_cosines(rows, columns, form.widths) * scale[:, None] if form.paired else zeros
        back = _log_sums(column_state) if form.both else zeros
        return positive, _log_sums(row_state), back, row_state["best"], row_state["count"]

    sums = ring.by_device(on_device, (query, candidates, scale, rows, columns), known)
    return sums, (query, candidates, scale, rows, columns, known, sums[:3])


def _sums_backward(ring: Ring, form: _Form, saved: tuple, gradients: tuple[jax.Array, ...]) -> tuple:
    *by_row, known, sums = saved

    def on_device(
        query: jax.Array,
        candidates: jax.Array,
        scale: jax.Array,
        rows: Rows,
        columns: Rows,
        sums: tuple[jax.Array, ...],
        gradients: tuple[jax.Array, ...],
        known: jax.Array,
    ) -> tuple[jax.Array, ...]:
        rows = rows | _vectors(query, form.widths) | {"scale": scale, "log_sum": sums[1], "gradient": gradients[1]}
        columns = columns | _vectors(candidates, form.widths)
        if form.both:
            columns |= {"scale": scale, "log_sum": sums[2], "gradient": gradients[2]}

        def tile(rows: Rows, row_state: Rows, columns: Rows, column_state: Rows) -> tuple[Rows, Rows]:
            negative = is_negative(rows, _as_columns(columns), known)
            by_dot = []
            for at, cosines in enumerate(_cosines(rows, columns, form.widths)):
                share = _logit_gradient(_logits(cosines, rows, columns, 1), negative, rows, at, 1)
                by_cosine = share * rows["scale"][:, None]
                row_state = row_state | {"scale": row_state["scale"] + (share * cosines).sum(1)}
                if form.both:
                    share = _logit_gradient(_logits(cosines, columns, rows, 0), negative, columns, at, 0)
                    by_cosine += share * columns["scale"]
                    column_state = column_state | {"scale": column_state["scale"] + (share * cosines).sum(0)}
                row_state = _accumulate(row_state, "along", at, (by_cosine * cosines).sum(1))
                column_state = _accumulate(column_state, "along", at, (by_cosine * cosines).sum(0))
                by_dot.append(by_cosine * rows["inverse_norm"][:, None, at] * columns["inverse_norm"][None, :, at])
            for low, high, of_section in _sections(by_dot, form.widths):
                section = slice(low, high)
                row_state = _accumulate(
                    row_state, "vector", section, _product(of_section, columns["vector"][:, section])
                )
                column_state = _accumulate(
                    column_state, "vector", section, _product(of_section.T, rows["vector"][:, section])
                )
            return row_state, column_state

        by_pair = {"by_cosine": gradients[0] * scale[:, None]} if form.paired else {}
        rows, columns = (split_into_blocks(side | by_pair, ring.block) for side in (rows, columns))

        def end(side: Rows, state: Rows, at: jax.Array, other: Rows) -> Rows:
            state = _add_pair_gradients(form.widths, side, take_block(other, at), state) if form.paired else state
            return state | {"vector": _orthogonal_gradient(side, state, form.widths)}

        visit = VisitCallbacks(
            _zero_gradients, tile, functools.partial(end, other=rows), functools.partial(end, other=columns)
        )
        row_state, column_state = rotate_columns(ring, rows, jax.vmap(_zero_gradients)(rows), columns, visit)
        of_scale = row_state["scale"] + (gradients[0] * sums[0]).sum(-1) / scale  # logit = cosine * scale
        of_scale += column_state["scale"] if form.both else 0.0
        return row_state["vector"], column_state["vector"], of_scale

    of_query, of_candidates, of_scale = ring.by_device(on_device, (*by_row, sums, gradients[:3]), known)
    return of_query, of_candidates, of_scale, None, None, None


_sums.defvjp(_sums_forward, _sums_backward)


def _vectors(z: jax.Array, widths: Sequence[int]) -> Rows:
    return {"vector": z, "inverse_norm": _inverse_norms(z, widths)}


def _as_columns(columns: Rows) -> Rows:
    """Adds a leading axis to the keys of columns, for broadcasting against rows."""
    return {name: columns[name][None] for name in ("content", "key", "exists")}


def _sections(of_slices: Sequence[jax.Array], widths: Sequence[int]) -> list[tuple[int, int, jax.Array]]:
    """Returns (begin, end, sum over the slices that contain it) of each section of D between two widths."""
    sums = [of_slices[-1]]
    for part in reversed(of_slices[:-1]):
        sums.insert(0, sums[0] + part)
    return list(zip([0, *widths], widths, sums, strict=False))


def _paired_cosines(rows: Rows, columns: Rows, widths: Sequence[int]) -> jax.Array:
    """Returns the cosines of row i and column i, [b, W]."""
    products = rows["vector"] * columns["vector"]
    parts = [products[:, low:high].sum(-1) for low, high in zip([0, *widths], widths, strict=False)]
    return jnp.cumsum(jnp.stack(parts, -1), -1) * rows["inverse_norm"] * columns["inverse_norm"]


# --------------------------------------------------------------------------------------------------------- gradients


def _logit_gradient(logits: jax.Array, negative: jax.Array, side: Rows, at: int, axis: int) -> jax.Array:
    """Returns the gradient of a block's logits in slice `at` through the sums of rows (axis 1) or columns (axis 0)."""
    log_sum, gradient = (jnp.expand_dims(side[name][:, at], axis) for name in ("log_sum", "gradient"))
    return jnp.where(negative, jnp.exp(logits - log_sum), 0.0) * gradient


def _zero_gradients(side: Rows) -> Rows:
    """Returns zero accumulators for the gradients of rows or columns.

    Returns:
        "vector": [n, D] gradient with the norms held constant; "along": [n, W] its component along the vector, which
        the gradient through the norms cancels; "scale": [n] gradient of the inverse temperature.
    """
    shape = side["inverse_norm"].shape
    return {"vector": jnp.zeros_like(side["vector"]), "along": jnp.zeros(shape), "scale": jnp.zeros(shape[0])}


def _accumulate(state: Rows, name: str, at: int | slice, value: jax.Array) -> Rows:
    return state | {name: state[name].at[:, at].add(value)}


def _add_pair_gradients(widths: Sequence[int], side: Rows, other: Rows, state: Rows) -> Rows:
    """Adds the gradient of one side through the cosines of the pairs, whose gradient is "by_cosine" [n, W]."""
    by_dot = _sum_per_dimension(side["by_cosine"] * side["inverse_norm"] * other["inverse_norm"], widths)
    return state | {
        "vector": state["vector"] + by_dot * other["vector"],
        "along": state["along"] + side["by_cosine"] * _paired_cosines(side, other, widths),
    }


def _orthogonal_gradient(side: Rows, state: Rows, widths: Sequence[int]) -> jax.Array:
    """Returns the gradient of vectors z [n, D] through z / |z|: the component orthogonal to z."""
    return state["vector"] - _sum_per_dimension(state["along"] * side["inverse_norm"] ** 2, widths) * side["vector"]


def _sum_per_dimension(of_slices: jax.Array, widths: Sequence[int]) -> jax.Array:
    """Returns for every dimension the sum over the slices that contain it, [n, W] -> [n, D]."""
    sections = _sections(list(of_slices.T), widths)
    return jnp.concatenate([jnp.broadcast_to(x[:, None], (len(x), high - low)) for low, high, x in sections], axis=1)


# ---------------------------------------------------------------------------------------- hard negatives of own query


def _own_hard_sums(
    widths: Sequence[int],
    query: jax.Array,
    hard: jax.Array,
    scale: jax.Array,
    rows: Rows,
    described: Rows,
    known: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns log-sum-exp and highest logit over a query's own hard negatives [B, M, D], [B, W] each."""
    by_pair = {name: value.reshape(*hard.shape[:2], *value.shape[1:]) for name, value in described.items()}
    negative = is_negative(rows, by_pair, known)
    logits = []
    for width in widths:
        left, right = normalize(query[:, :width]), normalize(hard[..., :width])
        logits.append((left[:, None] * right).sum(-1) * scale[:, None])
    if "strength" in rows:
        correction = rows["strength"][:, None] * by_pair["log_frequency"]
        logits = [of_width - correction for of_width in logits]
    masked = jnp.where(negative[..., None], jnp.stack(logits, axis=-1), _MASKED)
    return jax.nn.logsumexp(masked, axis=1), masked.max(axis=1)
