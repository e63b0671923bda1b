"""A step in micro-batches equals the step on the whole batch: loss, metrics, and the state after it."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from sail_jax import config as config_lib
from sail_jax.config.training import MeshConfig
from sail_jax.data.batch_shapes import batch_shapes
from sail_jax.data.pipeline import BatchSource, HostShare
from sail_jax.objectives.ring_contrast import RingContrast
from sail_jax.sharding.mesh import data_shards, make_mesh
from sail_jax.sharding.parameters import path_name
from sail_jax.training.loop import make_step
from sail_jax.training.setup import TrainSetup, sharded_init


def run_steps(config, sizes, contrast=None):
    """The metrics of two steps, and the first moments of Adam after the first: the clipped gradients but for a factor."""
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    setup = dataclasses.replace(TrainSetup.of(config, mesh), schedule=lambda _: 1e-3)
    if contrast:
        setup = dataclasses.replace(setup, objective=dataclasses.replace(setup.objective, contrast=contrast(mesh)))
    step, objective = make_step(setup), setup.objective
    state, _ = sharded_init(setup)
    source = BatchSource(config, HostShare(0, config.data.batch_size, data_shards(mesh)))
    losses, moments = [], None
    for number in range(2):
        loaded = source[number]
        recipe = objective.recipe(loaded.datasets)._replace(room=loaded.room)
        state, metrics = step(state, step.put(loaded.parts), recipe)
        losses.append({name: float(value) for name, value in metrics.items()})
        moments = moments or jax.device_get(optax.tree.get(state.opt_state, "mu"))
    return losses, moments


def assert_same(left, right):
    for number, (one, other) in enumerate(zip(left[0], right[0], strict=True)):
        assert one.keys() == other.keys()
        for name in one:
            # In its first steps Adam divides by the size of the gradient, so that rounding shows in the second loss.
            np.testing.assert_allclose(one[name], other[name], rtol=[1e-4, 5e-3][number], atol=1e-6, err_msg=name)
    for (path, one), other in zip(
        jax.tree_util.tree_flatten_with_path(left[1])[0], jax.tree.leaves(right[1]), strict=True
    ):
        scale = max(np.abs(other).max(), 1e-4)
        np.testing.assert_allclose(one, other, atol=5e-4 * scale, err_msg=path_name(path))


@pytest.fixture(scope="module")
def whole():
    """The steps of one device on the whole batch, computed once."""
    found = []

    def steps(config):
        found.append(found[0] if found else run_steps(config, (1, 1, 1)))
        return found[0]

    return steps


def test_micro_batches_equal_the_whole_batch(everything, whole):
    """On a mesh with all axes, with texts packed, media in chunks, and the loss around the ring."""
    settings = config_lib.to_dict(everything)
    settings["train"]["micro_batches"] = 4
    settings["data"]["text_budget"] = 90.0
    settings["model"]["media_chunk"] = 1
    cached = run_steps(config_lib.build(settings), (2, 2, 2), lambda mesh: RingContrast(mesh, 3))
    assert_same(cached, whole(everything))


def test_gradients_are_summed_over_data_once_a_step(everything):
    settings = config_lib.to_dict(everything)
    settings["train"]["micro_batches"] = 2
    config = config_lib.build(settings)
    mesh = make_mesh(MeshConfig(4, 1, 1), jax.devices()[:4])
    setup = TrainSetup.of(config, mesh)
    part = batch_shapes(config, ("score",), 4)
    programs = make_step(setup).programs(setup.abstract, part, setup.objective.recipe([0]))
    assert [times for _, times in programs] == [2, 1, 2, 1]
    *_, backward, update = (traced for traced, _ in programs)
    reduced = {"backward": backward, "update": update}
    reduced = {name: "all-reduce" in traced.lower().compile().as_text() for name, traced in reduced.items()}
    assert reduced == {"backward": False, "update": True}


def test_the_optimizer_alone_may_be_split(everything, whole):
    settings = config_lib.to_dict(everything)
    settings["mesh"]["shard_optimizer"] = True
    split = config_lib.build(settings)
    assert_same(run_steps(split, (8, 1, 1)), whole(everything))
    mesh = make_mesh(MeshConfig(8, 1, 1))
    for path, leaf in jax.tree_util.tree_flatten_with_path(TrainSetup.of(split, mesh).abstract)[0]:
        name, spec = path_name(path), tuple(leaf.sharding.spec)
        if name.startswith("params"):
            assert "data" not in str(spec), name
        elif any(size and size % 8 == 0 for size in leaf.shape):
            assert "data" in str(spec), name
