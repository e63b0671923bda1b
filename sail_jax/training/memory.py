"""The error for a user whose devices run out of memory while training."""

import jax

from sail_jax.errors import SailError
from sail_jax.sharding import device_memory
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


def out_of_memory(error: jax.errors.JaxRuntimeError, state: TrainState, memory: int | None) -> SailError:
    """Returns the error for a user whose devices ran out of memory while training.

    Args:
        error: XLA's error.
        state: shapes and shardings of the training state.
        memory: bytes of a device, if known.
    """
    return device_memory.out_of_memory(
        error,
        {"parameters": state.params, "optimizer state": (state.opt_state, state.ema)},
        memory,
        temporaries="activations, gradients and buffers",
        remedy=REMEDY,
        remedy_of_held=_REMEDY_OF_STATE,
    )
