"""The error for a device that runs out of memory: which kind, and which settings lower it."""

import jax
import pytest

from sail_jax import config as config_lib
from sail_jax.errors import SailError
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
    held = memory.bytes_per_device(kept)
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


def test_cpus_do_not_tell_their_memory():
    assert memory.peak_memory() is None and memory.device_memory(jax.devices("cpu")[0]) is None


def test_the_peak_is_that_of_the_fullest_device(monkeypatch):
    class Device:
        def __init__(self, **stats):
            self.memory_stats = lambda: stats

    devices = [Device(peak_bytes_in_use=3), Device(peak_bytes_in_use=5, bytes_limit=9), Device()]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert memory.peak_memory() == 5 and memory.device_memory(devices[1]) == 9
