"""The programs that embed: where their parameters lie, and how much a device holds."""

import math

import jax
import pytest
import tiny

from sail_jax import config as config_lib
from sail_jax.config.training import MeshConfig
from sail_jax.embedding.forward import inference_mesh, traced_forward
from sail_jax.models.model import abstract_params


@pytest.mark.parametrize(
    ("training", "devices", "expected"),
    [
        (MeshConfig(), 8, (8, 1, 1)),
        (MeshConfig(data=2, fsdp=4), 8, (2, 4, 1)),
        (MeshConfig(data=2, fsdp=4), 1, (1, 1, 1)),
        (MeshConfig(data=8, fsdp=4, tensor=2), 8, (1, 4, 2)),
        (MeshConfig(data=2, fsdp=2), 8, (4, 2, 1)),
        (MeshConfig(data=1, fsdp=-1), 8, (1, 8, 1)),
        (MeshConfig(data=16, fsdp=-1, tensor=2), 8, (4, 1, 2)),
        (MeshConfig(fsdp=3), 8, (8, 1, 1)),
    ],
)
def test_parameters_stay_split_as_in_training_as_far_as_devices_allow(training, devices, expected):
    assert tuple(inference_mesh(training, jax.devices()[:devices]).shape.values()) == expected


@pytest.mark.slow
def test_a_model_that_does_not_fit_a_device_embeds_on_eight(tmp_path):
    """A device holds its eighth of the parameters, and one layer at a time."""
    settings = tiny.experiment(tmp_path)
    settings.model.llm.update(width=256, layers=8, heads=8, kv_heads=8, head_dim=32, mlp_width=1024)
    settings.mesh.update(data=1, fsdp=8)
    config = config_lib.build(settings)
    mesh = inference_mesh(config.mesh)
    traced = traced_forward(config, mesh, rows=8, length=16, frames=0, clips=0, views=("T",))
    used = traced.lower().compile().memory_analysis()
    leaves = jax.tree.leaves(abstract_params(config, mesh))
    model = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    assert used.argument_size_in_bytes < model / 8 * 1.1
    assert used.argument_size_in_bytes + used.temp_size_in_bytes < model / 3
