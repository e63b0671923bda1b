"""What a config computes at step 0; its first two steps on a mesh, and how those of two meshes are compared."""

import dataclasses
import functools

import jax
import numpy as np
import optax

from sail_jax.config.training import MeshConfig, OptimizerConfig
from sail_jax.data.pipeline import BatchSource, HostShare
from sail_jax.objectives.objective import make_objective
from sail_jax.sharding.mesh import data_shards, make_mesh
from sail_jax.sharding.parameters import path_name
from sail_jax.training.loop import make_step
from sail_jax.training.optimizer import make_optimizer, make_schedule
from sail_jax.training.setup import TrainSetup, sharded_init
from sail_jax.training.state import init_state


def untrained(config):
    """The objective, and the parameters at step 0."""
    objective = make_objective(config)
    return objective, jax.jit(lambda: init_state(config, objective, make_optimizer(config.optimizer)).params)()


def constant_rate(rate):
    """A schedule without warm-up and decay."""
    return make_schedule(OptimizerConfig(peak=rate, floor=rate, warmup_steps=0), 1)


@functools.partial(jax.jit, static_argnums=(0, 3))
def encode(model, params, batch, views):
    """What the model returns; compiled once per model and shape, for all tests of a file."""
    return model.apply({"params": params}, batch, views)


def call(objective, params, z, out, batch, recipe):
    """The loss and metrics of an objective, compiled as a whole."""
    return jax.jit(lambda *arrays: objective(*arrays, recipe))(params, z, out, batch)


def run_steps(config, sizes, contrast=None):
    """Returns the metrics of two steps and, after the first, Adam's first moments: the scaled clipped gradients."""
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    setup = dataclasses.replace(TrainSetup.of(config, mesh), schedule=constant_rate(1e-3))
    if contrast:
        setup = dataclasses.replace(setup, objective=dataclasses.replace(setup.objective, contrast=contrast(mesh)))
    step, objective = make_step(setup), setup.objective
    state, _ = sharded_init(setup)
    source = BatchSource(config, HostShare(0, config.data.batch_size, data_shards(mesh)))
    losses, moments = [], None
    for number in range(2):
        loaded = source[number]
        recipe = objective.recipe(loaded.datasets, loaded.room)
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
