"""The (`data`, `fsdp`, `tensor`) mesh, and how a global batch is split over it."""

import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sail_jax.batch import Batch
from sail_jax.config.training import MeshConfig
from sail_jax.errors import SailError

AXES = ("data", "fsdp", "tensor")
# Pairs are split over both data-parallel axes.
BATCH_SPEC = PartitionSpec(("data", "fsdp"))


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of some devices, arranged as (data, fsdp, tensor).

    Args:
        config: sizes of the axes; one may be -1 and takes the rest.
        devices: the devices; by default those of all processes.

    Raises:
        SailError: when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in AXES]
    fixed = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or fixed < 1 or len(devices) % fixed or (-1 not in sizes and fixed != len(devices)):
        shape = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        raise SailError(f"The mesh ({shape}) does not fit {len(devices)} devices; change config.mesh.")
    sizes = [len(devices) // fixed if size == -1 else size for size in sizes]
    return Mesh(np.asarray(devices).reshape(sizes), AXES)


def data_shards(mesh: Mesh) -> int:
    """Returns the number of shards into which the pairs of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(mesh: Mesh, batch_size: int, micro_batches: int = 1) -> None:
    """Raises SailError when a batch does not split evenly, over the mesh and then in micro-batches."""
    shards = data_shards(mesh)
    if batch_size % (shards * micro_batches):
        parts = f", and config.train.micro_batches each of these in {micro_batches}" if micro_batches > 1 else ""
        raise SailError(
            f"config.data.batch_size is {batch_size}; the mesh splits it in {shards} equal parts{parts}. "
            f"Choose a multiple of {shards * micro_batches}."
        )


def host_rows(mesh: Mesh, batch_size: int, micro_batches: int = 1) -> tuple[int, int]:
    """Returns the rows (start, stop) of the global batch that this process provides.

    Processes that differ only in their place on the tensor axis provide the same rows.

    Args:
        mesh: the mesh.
        batch_size: pairs of the global batch.
        micro_batches: parts into which each shard is cut.

    Raises:
        SailError: when the batch does not split evenly, or this process's rows are not contiguous.
    """
    check_batch(mesh, batch_size, micro_batches)
    indices = NamedSharding(mesh, BATCH_SPEC).addressable_devices_indices_map((batch_size,))
    ranges = sorted({index[0].indices(batch_size)[:2] for index in indices.values()})
    if any(left[1] != right[0] for left, right in zip(ranges, ranges[1:], strict=False)):
        raise SailError("The devices of a process hold rows that are not contiguous; reorder the axes of config.mesh.")
    return ranges[0][0], ranges[-1][1]


def shard_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Builds the global arrays of a batch from the rows of this process, without waiting for the transfer."""
    sharding = NamedSharding(mesh, BATCH_SPEC)
    return jax.tree.map(lambda local: jax.make_array_from_process_local_data(sharding, local), batch)
