"""What training holds in memory, and the error for a user whose devices run out of it."""

import jax

from sail_jax.config import Config
from sail_jax.config.training import MeshConfig
from sail_jax.errors import SailError
from sail_jax.sharding import device_memory
from sail_jax.sharding.mesh import make_mesh
from sail_jax.sharding.parameters import split
from sail_jax.training.setup import TrainSetup
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


def held_by_training(config: Config) -> str:
    """Returns a line with the bytes that training holds all the time, of all devices together.

    Raises:
        SailError: a setting is wrong.
    """
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    state = TrainSetup.of(config, mesh).abstract
    trained, _ = split(config, state.params)
    sizes = {
        "parameters": device_memory.bytes_per_device(state.params),
        "gradients": device_memory.bytes_per_device(trained),
        "optimizer": device_memory.bytes_per_device((state.opt_state, state.ema)),
    }
    parts = ", ".join(f"{name} {device_memory.show_bytes(size)}" for name, size in sizes.items())
    whole = device_memory.show_bytes(sum(sizes.values()))
    return (
        f"Training holds {whole} ({parts}), split over config.mesh.fsdp and tensor; activations come on top: "
        "--topology h100:8 or v5e:16x16 compiles the step and says how much."
    )
