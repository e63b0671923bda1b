"""The memory of devices: its size, what takes it, and the error where it does not suffice."""

import math
from collections.abc import Mapping
from typing import Any

import jax

from sail_jax.errors import SailError


def peak_memory() -> int | None:
    """Returns the most bytes that a device of this process has had in use; None if it is a CPU."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max((found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found), default=None)


def device_memory(device: jax.Device) -> int | None:
    """Returns the bytes of a device that JAX may use; None if it does not tell."""
    return (device.memory_stats() or {}).get("bytes_limit")


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes that a tree of arrays, or of shapes with shardings, takes on each device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def show_bytes(count: float) -> str:
    """Returns a number of bytes in GiB, or in MiB if it is small."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.2f} MiB"


def is_out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Returns whether a device, or the compiler for it, ran out of memory."""
    return "RESOURCE_EXHAUSTED" in str(error)


def out_of_memory(
    error: jax.errors.JaxRuntimeError,
    held: Mapping[str, Any],
    memory: int | None,
    *,
    temporaries: str,
    remedy: str,
    remedy_of_held: str,
) -> SailError:
    """Returns the error for a user whose devices ran out of memory: which kind, and what to change.

    Args:
        error: XLA's error.
        held: trees of arrays that stay on the devices, or of shapes with shardings, by what they are.
        memory: bytes of a device, if known.
        temporaries: what else takes memory.
        remedy: what lowers the temporaries.
        remedy_of_held: what lowers what is held.
    """
    sizes = {name: bytes_per_device(tree) for name, tree in held.items()}
    shown = " and ".join(f"{name} ({show_bytes(size)} of each device)" for name, size in sizes.items())
    if memory is not None and sum(sizes.values()) > memory:
        kind, remedy = f"The {shown} are larger than its memory ({show_bytes(memory)}).", remedy_of_held
    else:
        kind = f"Beside {shown}, there is no room for temporaries: {temporaries}."
    return SailError(f"A device ran out of memory: {str(error).splitlines()[0]}\n{kind} {remedy}")
