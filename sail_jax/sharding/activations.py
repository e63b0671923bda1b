"""Keeps the rows of activations split over the data-parallel axes of the mesh.

Without these constraints the compiler may multiply by a matrix that is split over `fsdp` by gathering the rows of the
whole batch on every device, not the matrix. The same happens with embeddings, lookups and Fourier transforms.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

# Axes of the mesh that a `jax.vmap` around the model maps over: no array is split over them.
_MAPPED: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("mapped", default=frozenset())


@contextlib.contextmanager
def mapped_over(axis: str) -> Iterator[None]:
    """Marks a mesh axis as mapped over by `jax.vmap(..., spmd_axis_name=axis)` within the context."""
    before = _MAPPED.set(_MAPPED.get() | {axis})
    try:
        yield
    finally:
        _MAPPED.reset(before)


def batch_axes() -> tuple[str, ...]:
    """Returns the mesh axes over which the rows of activations are split."""
    return tuple(name for name in ("data", "fsdp") if name not in _MAPPED.get())


def split_rows(x: jax.Array) -> jax.Array:
    """Keeps the rows of an array [T, ...] and of its gradient split over `batch_axes`.

    The compiler decides about the other axes.
    Does nothing without a mesh (`jax.set_mesh`), or where the rows do not split evenly.
    """
    if not splits(len(x)):
        return x
    return _placed(x, batch_axes(), *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))


def look_up(table: jax.Array, tokens: jax.Array, dtype: Any) -> jax.Array:
    """Looks up rows of an embedding table whose width may be split over `fsdp`.

    Every device looks up its part of the width for all tokens of its place on `data`; then devices exchange the parts.
    The compiler's own choice gathers the gradient of the whole batch on every device, which grows with the mesh.

    Args:
        table: [vocabulary, D].
        tokens: [B, N] int32; tokens out of range give NaN.
        dtype: of the result.

    Returns:
        [B, N, D].
    """
    parts = _fsdp() if splits(len(tokens)) else 1
    exchanged = parts > 1 and table.shape[1] % parts == 0
    places = tuple(name for name in batch_axes() if name != "fsdp")
    tokens = _placed(tokens, places) if exchanged else tokens
    # Cast the rows, not the table, which is the largest array of the model.
    rows = jnp.take(table, tokens, axis=0, mode="fill").astype(dtype)
    if not exchanged:
        return rows
    by_width, by_row = PartitionSpec(places, None, "fsdp"), PartitionSpec(batch_axes())
    return jax.shard_map(_exchange, in_specs=by_width, out_specs=by_row, check_vma=False)(_placed(rows, *by_width))


def _exchange(rows: jax.Array) -> jax.Array:
    """Turns a part of the width into a part of the rows: [n B, N, D / n] -> [B, N, D] on each of n places on `fsdp`.

    It uses one permutation after another, since the TPU compiler takes minutes to plan an all-to-all on a large slice.
    """
    parts, place = _fsdp(), jax.lax.axis_index("fsdp")
    blocks = rows.reshape(parts, -1, *rows.shape[1:])
    found = [jax.lax.dynamic_index_in_dim(blocks, place, keepdims=False)]
    for away in range(1, parts):
        block = jax.lax.dynamic_index_in_dim(blocks, (place + away) % parts, keepdims=False)
        found.append(jax.lax.ppermute(block, "fsdp", [(i, (i + away) % parts) for i in range(parts)]))
    by_origin = jnp.stack(found)[(place - jnp.arange(parts)) % parts]  # the k-th block came from k places before
    return jnp.moveaxis(by_origin, 0, -2).reshape(*by_origin.shape[1:-1], -1)


def on_shards(function: Callable[[jax.Array], jax.Array], rows: jax.Array) -> jax.Array:
    """Applies a row-wise function to the rows [T, ...] that each device holds.

    For operations such as a Fourier transform, which the compiler would run on the whole batch on every device. Where
    the rows do not split evenly, the function is applied to all of them.
    """
    if not splits(len(rows)):
        return function(rows)
    split = PartitionSpec(batch_axes())
    return jax.shard_map(function, in_specs=split, out_specs=split, check_vma=False)(rows)


def splits(rows: int) -> bool:
    """Returns whether there is a mesh over which so many rows split evenly."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and rows % math.prod(mesh.shape[axis] for axis in batch_axes()) == 0


def _fsdp() -> int:
    return jax.sharding.get_abstract_mesh().shape["fsdp"]


def _placed(x: jax.Array, *axes: Any) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))
