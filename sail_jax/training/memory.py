"""The memory of devices: its peak, and what to change where it does not suffice."""

import math
from typing import Any

import jax

from sail_jax.errors import SailError
from sail_jax.training.state import TrainState

REMEDY = (
    "Set config.model.remat='full', config.model.media_chunk, config.data.text_budget or config.train.micro_batches, "
    "raise config.mesh.fsdp or config.mesh.tensor, set config.mesh.shard_optimizer, lower config.data.batch_size, or "
    "take more devices."
)
_REMEDY_OF_STATE = (
    "Raise config.mesh.fsdp or config.mesh.tensor, set config.mesh.shard_optimizer or "
    "config.optimizer.first_moment='bfloat16', or take more devices."
)


def peak_memory() -> int | None:
    """Returns the most bytes that a device of this process has had in use; None if it is a CPU."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max((found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found), default=None)


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes that a tree of arrays, or of shapes with shardings, takes on each device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def is_out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Returns whether a device, or the compiler for it, ran out of memory."""
    return "RESOURCE_EXHAUSTED" in str(error)


def out_of_memory(error: jax.errors.JaxRuntimeError, state: TrainState, memory: int | None) -> SailError:
    """Returns the error for a user whose devices ran out of memory while training.

    Args:
        error: XLA's error.
        state: shapes and shardings of the training state.
        memory: bytes of a device, if known.
    """
    parameters, optimizer = bytes_per_device(state.params), bytes_per_device((state.opt_state, state.ema))
    held = f"parameters ({show_bytes(parameters)} of each device) and optimizer state ({show_bytes(optimizer)})"
    if memory is not None and parameters + optimizer > memory:
        kind, remedy = f"The {held} are larger than its memory ({show_bytes(memory)}).", _REMEDY_OF_STATE
    else:
        kind = f"Beside {held}, there is no room for temporaries: activations, gradients and buffers."
        remedy = REMEDY
    return SailError(f"A device ran out of memory: {str(error).splitlines()[0]}\n{kind} {remedy}")


def device_memory(device: jax.Device) -> int | None:
    """Returns the bytes of a device that JAX may use; None if it does not tell."""
    return (device.memory_stats() or {}).get("bytes_limit")


def show_bytes(count: float) -> str:
    """Returns a number of bytes in GiB, or in MiB if it is small."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.2f} MiB"
