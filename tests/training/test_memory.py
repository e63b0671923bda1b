"""The error for a device that runs out of memory: which kind, and which settings lower it."""

import jax
import pytest

from sail_jax import config as config_lib
from sail_jax.errors import SailError
from sail_jax.sharding.device_memory import bytes_per_device
from sail_jax.sharding.mesh import make_mesh
from sail_jax.training import loop, memory
from sail_jax.training.loop import train
from sail_jax.training.setup import TrainSetup

REFUSAL = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 85899345920 bytes."


def test_the_kind_of_memory(settings):
    settings.optimizer.ema = 0.9  # counts too
    config = config_lib.build(settings)
    state = TrainSetup.of(config, make_mesh(config.mesh, jax.devices()[:1])).abstract
    kept = state.params, state.opt_state, state.ema
    held = bytes_per_device(kept)
    assert held == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    error = jax.errors.JaxRuntimeError(f"{REFUSAL}\nBufferAssignment ...")
    for limit in (None, 2 * held):
        said = str(memory.out_of_memory(error, state, limit))
        assert REFUSAL in said and "temporaries" in said and memory.REMEDY in said and "BufferAssignment" not in said
    said = str(memory.out_of_memory(error, state, held - 1))
    assert "larger than its memory" in said and "mesh.fsdp" in said and "micro_batches" not in said


@pytest.mark.parametrize(
    ("message", "raised"), [(REFUSAL, SailError), ("INTERNAL: no such kernel", jax.errors.JaxRuntimeError)]
)
def test_training_explains_it(settings, tmp_path, monkeypatch, one_device, message, raised):
    def fail(setup):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(loop, "sharded_init", fail)
    with pytest.raises(raised, match=message.split(" ", 1)[1]):
        train(config_lib.build(settings), tmp_path / "run")
