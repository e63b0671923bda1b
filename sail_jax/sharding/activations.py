"""How activations lie on the mesh: their rows stay split over the axes of data parallelism.

Left to itself, the compiler may split a product with a matrix whose inputs are split over `fsdp` along these inputs: it then
gathers the rows of the whole batch on every device, and sums products over devices, instead of gathering the matrix. So with embeddings,
lookups and Fourier transforms.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

# Axes of the mesh that a `jax.vmap` around the model goes over: no array has a part of its own on them.
_MAPPED: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("mapped", default=frozenset())


@contextlib.contextmanager
def mapped_over(axis: str) -> Iterator[None]:
    """Says that what is traced within is mapped over an axis of the mesh, as by `jax.vmap(..., spmd_axis_name=axis)`."""
    before = _MAPPED.set(_MAPPED.get() | {axis})
    try:
        yield
    finally:
        _MAPPED.reset(before)


def batch_axes() -> tuple[str, ...]:
    """The axes of the mesh over which the first axis of activations is split."""
    return tuple(name for name in ("data", "fsdp") if name not in _MAPPED.get())


def split_rows(x: jax.Array) -> jax.Array:
    """Keeps the rows of [T, ...] split over `batch_axes`; other axes are as the compiler likes. The same for their gradient.

    Without a mesh (`jax.set_mesh`), and where the rows do not split evenly, nothing is changed.
    """
    if not _splits(len(x)):
        return x
    return _placed(x, batch_axes(), *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))


def look_up(table: jax.Array, tokens: jax.Array, dtype: Any) -> jax.Array:
    """Rows of a table of embeddings that may be split over `fsdp` along its width.

    Every device takes its part of the width for all tokens of its place on `data`, and the parts are then exchanged: the
    compiler's own choice, to gather the gradient of the whole batch on every device, grows with the mesh.

    Args:
        table: [vocabulary, D].
        tokens: [B, N] int32; those out of range give NaN.
        dtype: of the result.

    Returns:
        [B, N, D].
    """
    parts = _fsdp() if _splits(len(tokens)) else 1
    exchanged = parts > 1 and table.shape[1] % parts == 0
    places = tuple(name for name in batch_axes() if name != "fsdp")
    tokens = _placed(tokens, places) if exchanged else tokens
    # The rows are cast, not the table: it is the largest array of the model.
    rows = jnp.take(table, tokens, axis=0, mode="fill").astype(dtype)
    if not exchanged:
        return rows
    by_width, by_row = PartitionSpec(places, None, "fsdp"), PartitionSpec(batch_axes())
    return jax.shard_map(_exchange, in_specs=by_width, out_specs=by_row, check_vma=False)(_placed(rows, *by_width))


def _exchange(rows: jax.Array) -> jax.Array:
    """On each of n places on `fsdp`: [n B, N, D / n], a part of the width, -> [B, N, D], a part of the rows.

    One permutation after the other: for an all-to-all on a large slice, the compiler of TPUs plans the ways for minutes.
    """
    parts, place = _fsdp(), jax.lax.axis_index("fsdp")
    blocks = rows.reshape(parts, -1, *rows.shape[1:])
    found = [jax.lax.dynamic_index_in_dim(blocks, place, keepdims=False)]
    for away in range(1, parts):
        block = jax.lax.dynamic_index_in_dim(blocks, (place + away) % parts, keepdims=False)
        found.append(jax.lax.ppermute(block, "fsdp", [(i, (i + away) % parts) for i in range(parts)]))
    by_origin = jnp.stack(found)[(place - jnp.arange(parts)) % parts]  # the k-th came from k places before
    return jnp.moveaxis(by_origin, 0, -2).reshape(*by_origin.shape[1:-1], -1)


def on_shards(function: Callable[[jax.Array], jax.Array], rows: jax.Array) -> jax.Array:
    """Applies a function that works row by row to the rows [T, ...] of every device, where they split evenly.

    For operations that the compiler would run on the rows of the whole batch on every device, as it does with a Fourier transform.
    """
    if not _splits(len(rows)):
        return function(rows)
    split = PartitionSpec(batch_axes())
    return jax.shard_map(function, in_specs=split, out_specs=split, check_vma=False)(rows)


def _splits(rows: int) -> bool:
    """Whether there is a mesh over which so many rows split evenly."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and rows % math.prod(mesh.shape[axis] for axis in batch_axes()) == 0


def _fsdp() -> int:
    return jax.sharding.get_abstract_mesh().shape["fsdp"]


def _placed(x: jax.Array, *axes: Any) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))
