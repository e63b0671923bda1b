"""The state of training, and how it comes to lie on the mesh."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from sail_jax.config import Config
from sail_jax.models.fusion import init_params
from sail_jax.objectives.objective import Objective
from sail_jax.parallel.rules import abstract_on_mesh


class TrainState(NamedTuple):
    """All that a step reads and writes.

    Attributes:
        step: [] int32, steps done.
        params: {"model": ..., "objective": ...}, float32.
        opt_state: the optimiser's.
    """

    step: Any
    params: Any
    opt_state: Any


def init_state(config: Config, objective: Objective, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state; trace or jit it."""
    params = {"model": init_params(config.model, config.seed), "objective": objective.init()}
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def abstract_state(
    config: Config, objective: Objective, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes, types and shardings of the state, without computing anything."""
    shapes = jax.eval_shape(lambda: init_state(config, objective, optimizer))
    return abstract_on_mesh(shapes, mesh)


def sharded_init(
    config: Config, objective: Objective, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """A fresh state, each leaf created on its shards; no host ever holds the whole."""
    abstract = abstract_state(config, objective, optimizer, mesh)
    out = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(lambda: init_state(config, objective, optimizer), out_shardings=out)()
