"""A step in micro-batches equals the step on the whole batch: loss, metrics, and the state after it."""

import jax
import pytest
from mesh_steps import assert_same, run_steps

from sail_jax import config as config_lib
from sail_jax.config.training import MeshConfig
from sail_jax.data.batch_shapes import batch_shapes
from sail_jax.objectives.ring_contrast import RingContrast
from sail_jax.sharding.mesh import make_mesh
from sail_jax.training.loop import make_step
from sail_jax.training.setup import TrainSetup


@pytest.mark.slow
def test_micro_batches_equal_the_whole_batch(everything, whole, scattered_blocks):
    """On a mesh with all axes, moments split over it, texts packed, media in chunks and encoded once, around a ring."""
    settings = config_lib.to_dict(everything)
    settings["train"]["micro_batches"] = 4
    settings["mesh"]["shard_optimizer"] = True
    settings["data"].update(text_budget=90.0, encode_once=True)
    settings["model"]["media_chunk"] = 1
    cached = run_steps(config_lib.build(settings), (2, 2, 2), lambda mesh: RingContrast(mesh, 3))
    assert_same(cached, whole)


@pytest.mark.slow
def test_gradients_are_summed_over_data_once_a_step(everything):
    settings = config_lib.to_dict(everything)
    settings["train"]["micro_batches"] = 2
    settings["data"]["datasets"]["score"]["patterns"] = ("T->VT",)  # of all that makes no other sums
    settings["objective"]["weights"] = {"nce": 1.0}
    config = config_lib.build(settings)
    mesh = make_mesh(MeshConfig(4, 1, 1), jax.devices()[:4])
    setup = TrainSetup.of(config, mesh)
    part = batch_shapes(config, ("score",), 4)
    programs = make_step(setup).programs(setup.abstract, part, setup.objective.recipe([0]))
    assert [times for _, times in programs] == [2, 1, 2, 1]
    _, loss, backward, update = (traced for traced, _ in programs)
    loss.lower()  # its arguments are split as the step splits them
    reduced = {"backward": backward, "update": update}
    reduced = {name: "all-reduce" in traced.lower().compile().as_text() for name, traced in reduced.items()}
    assert reduced == {"backward": False, "update": True}
