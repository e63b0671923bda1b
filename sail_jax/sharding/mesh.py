"""The (`data`, `fsdp`, `tensor`) mesh on the wiring of its chips, and how a batch is split over it.

A global batch is cut in equal blocks, one per data-parallel shard. Blocks are dealt to the processes in order, so that
each prepares a contiguous part of the batch; a process puts its blocks on its places of the mesh, wherever these lie.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sail_jax.batch import Batch
from sail_jax.config.training import MeshConfig
from sail_jax.errors import SailError

AXES = ("data", "fsdp", "tensor")
# Pairs are split over both data-parallel axes.
BATCH_SPEC = PartitionSpec(("data", "fsdp"))


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of some devices, arranged as (data, fsdp, tensor).

    `jax.experimental.mesh_utils` lays it out by the wiring: `tensor`, then `fsdp`, take the links within a TPU slice or
    a node of GPUs; slices and nodes are joined along `data`, as far as its size allows.

    Args:
        config: sizes of the axes; one may be -1 and takes the rest.
        devices: the devices; by default those of all processes.

    Raises:
        SailError: when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in AXES]
    fixed = math.prod(size for size in sizes if size != -1)
    impossible = sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes)
    if impossible or len(devices) % fixed or (-1 not in sizes and fixed != len(devices)):
        fitting = "; ".join(map(_shown, _nearest_sizes(sizes, len(devices))))
        raise SailError(
            f"The mesh ({_shown(sizes)}) does not fit {len(devices)} devices; change config.mesh. "
            f"These would fit: {fitting}."
        )
    return Mesh(_lay_out([len(devices) // fixed if size == -1 else size for size in sizes], devices), AXES)


def _shown(sizes: Sequence[int]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))


def _nearest_sizes(wanted: Sequence[int], devices: int) -> list[tuple[int, ...]]:
    """Returns up to three meshes that fit: first those with the fewest axes changed, then by the factors of change."""

    def change(sizes: tuple[int, ...]) -> tuple[int, float]:
        factors = [abs(math.log(size / want)) for size, want in zip(sizes, wanted, strict=True) if want > 0]
        return sum(factor > 0 for factor in factors), sum(factors)

    divisors = [size for size in range(devices, 0, -1) if devices % size == 0]
    fitting = [sizes for sizes in itertools.product(divisors, repeat=len(AXES)) if math.prod(sizes) == devices]
    return sorted(fitting, key=change)[:3]


def _lay_out(sizes: list[int], devices: list[jax.Device]) -> np.ndarray:
    """Returns the devices as an array of shape `sizes`, the axes with the most traffic on the shortest links."""
    slices = len({_slice(device) for device in devices})
    try:
        if slices == 1:
            return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        outer = _sizes_between(sizes, slices)
        inner = [size // count for size, count in zip(sizes, outer, strict=True)]
        return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    except (AssertionError, ValueError):  # the devices are a part of a slice that is no box, or parts of several
        return np.asarray(devices).reshape(sizes)


def _slice(device: jax.Device) -> int:
    """Returns the number of a device's TPU slice or node of GPUs; 0 where there are none."""
    # Newer releases of JAX have only the first name for GPUs; older ones, and TPUs, have the second.
    name = "partition_index" if hasattr(device, "partition_index") else "slice_index"
    return getattr(device, name, 0)


def _sizes_between(sizes: Sequence[int], slices: int) -> list[int]:
    """Returns the part of each axis that lies between slices: of `data` as much as possible, then of `fsdp`."""
    outer = []
    for size in sizes:
        outer.append(math.gcd(size, slices))
        slices //= outer[-1]
    return outer


def wiring_note(mesh: Mesh) -> str:
    """Returns a note on axes that leave their TPU slice or node of GPUs; empty if none does."""
    slices = np.vectorize(_slice)(mesh.devices)
    apart = [axis for at, axis in enumerate(AXES) if axis != "data" and np.any(np.diff(slices, axis=at))]
    if not apart:
        return ""
    named = " and ".join(f"config.mesh.{axis}={mesh.shape[axis]}" for axis in apart)
    return f"{named}: devices that do not share a TPU slice or a node of GPUs; a smaller size, within one, is faster."


def data_shards(mesh: Mesh) -> int:
    """Returns the number of shards into which the pairs of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(mesh: Mesh, batch_size: int, micro_batches: int = 1) -> None:
    """Raises SailError when a batch does not split evenly, over the mesh and then in micro-batches."""
    shards = data_shards(mesh)
    unit = shards * micro_batches
    if batch_size % unit:
        parts = f", and config.train.micro_batches each of these in {micro_batches}" if micro_batches > 1 else ""
        below = batch_size // unit * unit
        raise SailError(
            f"config.data.batch_size is {batch_size}; the mesh splits it in {shards} equal parts{parts}. "
            f"Choose a multiple of {unit}: {f'{below} or ' if below else ''}{below + unit}."
        )


def host_rows(mesh: Mesh, batch_size: int, micro_batches: int = 1) -> tuple[int, int]:
    """Returns the rows (start, stop) of the global batch that this process provides.

    Processes that differ only in their place on the tensor axis provide the same rows.

    Args:
        mesh: the mesh.
        batch_size: pairs of the global batch.
        micro_batches: parts into which each shard is cut.

    Raises:
        SailError: when the batch does not split evenly, or this process's rows would not be contiguous.
    """
    check_batch(mesh, batch_size, micro_batches)
    blocks, rows = _host_blocks(mesh, jax.process_index()), batch_size // data_shards(mesh)
    return blocks.start * rows, blocks.stop * rows


def shard_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Builds the global arrays of a batch from the rows of this process, without waiting for the transfer.

    The rows of the global arrays lie in the order of the mesh's places; `in_batch_order` undoes that.

    Raises:
        SailError: the rows do not split evenly.
    """
    sharding, shards = NamedSharding(mesh, BATCH_SPEC), data_shards(mesh)
    blocks, block_at = _host_blocks(mesh, jax.process_index()), _blocks(mesh)

    def put(local: np.ndarray) -> jax.Array:
        size, left = divmod(len(local), len(blocks))
        if left:
            raise SailError(
                f"An array of {len(local)} rows does not split over the {len(blocks)} data shards of this process: "
                "choose a batch of equal parts, and load it by the share that `host_share` gives."
            )

        def of_place(index: tuple[slice, ...]) -> np.ndarray:
            place = (index[0].start or 0) // max(size, 1)  # without rows, as of frames in texts, every place is alike
            first = (block_at[place] - blocks.start) * size
            return local[first : first + size]

        return jax.make_array_from_callback((size * shards, *local.shape[1:]), sharding, of_place)

    return jax.tree.map(put, batch)


def abstract_batch(shapes: Batch, mesh: Mesh) -> Batch:
    """Returns a global batch of abstract arrays, split over the mesh as `shard_batch` splits it."""
    sharding = NamedSharding(mesh, BATCH_SPEC)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)


def in_batch_order(rows: np.ndarray, mesh: Mesh, axis: int = 0) -> np.ndarray:
    """Returns what was computed for the rows of a `shard_batch`, in the order of the batch.

    Args:
        rows: an array on the host, with all rows of the batch along `axis`.
        mesh: the mesh of the batch.
        axis: the axis that counts rows.
    """
    places = np.argsort(_blocks(mesh))
    at = np.arange(rows.shape[axis]).reshape(len(places), -1)[places]
    return rows.take(at.ravel(), axis)


@functools.cache
def _blocks(mesh: Mesh) -> tuple[int, ...]:
    """Returns the block of the batch that lies on each place of the mesh, row by row over (`data`, `fsdp`)."""
    owners = _owners(mesh)
    places = sorted(range(len(owners)), key=lambda place: (owners[place], place))
    return tuple(np.argsort(places).tolist())


def _owners(mesh: Mesh) -> list[tuple[int, ...]]:
    """Returns the processes that have devices of each place; several if `tensor` spans processes."""
    by_place = mesh.devices.reshape(data_shards(mesh), -1)
    return [tuple(sorted({device.process_index for device in devices})) for devices in by_place]


@functools.cache
def _host_blocks(mesh: Mesh, process: int) -> range:
    """Returns the blocks of the batch that a process provides."""
    owned = zip(_blocks(mesh), _owners(mesh), strict=True)
    blocks = sorted(block for block, owners in owned if process in owners)
    if blocks[-1] - blocks[0] != len(blocks) - 1:
        raise SailError(
            f"With config.mesh.tensor={mesh.shape['tensor']}, process {process} would provide parts of the batch that "
            "do not adjoin; choose a divisor or a multiple of the number of devices of a process."
        )
    return range(blocks[0], blocks[-1] + 1)
