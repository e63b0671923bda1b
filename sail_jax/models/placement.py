"""How activations lie on the mesh: their rows stay split over the axes of data parallelism.

Left to itself, the compiler may split a product with a matrix whose inputs are split over `fsdp` along these inputs: it then
gathers the rows of the whole batch on every device, and sums products over devices, instead of gathering the matrix.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator

import jax
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


def split_rows(rows: jax.Array) -> jax.Array:
    """Keeps rows [T, D] split over `batch_axes`; their other axis is as the compiler likes. The same for their gradient.

    Without a mesh (`jax.set_mesh`), and where the rows do not split evenly, nothing is changed.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or len(rows) % math.prod(mesh.shape[axis] for axis in batch_axes()):
        return rows
    return jax.lax.with_sharding_constraint(rows, PartitionSpec(batch_axes(), PartitionSpec.UNCONSTRAINED))
