"""The training state: its initial values, shapes and shardings, and the split into trained and frozen."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from sail_jax.config import Config
from sail_jax.models.lora import init_lora
from sail_jax.models.model import init_params
from sail_jax.objectives.objective import LossValues, Objective
from sail_jax.sharding.parameters import abstract_on_mesh, join, split


class TrainState(NamedTuple):
    """The state that a step reads and writes.

    Attributes:
        step: [] int32, steps done.
        params: {"model": ..., "objective": ...}, and "lora" if adapters are trained; float32.
        opt_state: the state of the optimiser, only for trained parameters.
        ema: running average of the trained parameters of the model and of its adapters; None without `optimizer.ema`.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any = None


def averaged(state: TrainState) -> Any:
    """Returns the parameters with the running average in place of the trained ones, where there is one."""
    return state.params if state.ema is None else join(state.params, state.ema)


def first_state(
    config: Config,
    model: Any,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    seed: int | jax.Array,
    values: LossValues | None = None,
) -> TrainState:
    """Returns the state at step 0 for given parameters; the last two are as in `Objective.init`."""
    params = {"model": model, "objective": objective.init(seed, values)}
    if config.lora.rank:
        params["lora"] = init_lora(model, config.lora, seed)
    trained, _ = split(config, params)
    ema = _of_model(trained) if config.optimizer.ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trained), ema)


def next_average(state: TrainState, trained: Any, decay: jax.Array) -> Any:
    """Returns the running average after a step; None if the state has none.

    So that it forgets the start, the decay of step t, counted from 0, is at most (1 + t) / (10 + t), as in
    TensorFlow's ExponentialMovingAverage.

    Args:
        state: the state before the step.
        trained: the trained parameters after it.
        decay: `optimizer.ema`.
    """
    if state.ema is None:
        return None
    decay = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
    return optax.incremental_update(_of_model(trained), state.ema, 1 - decay)


def _of_model(trained: Any) -> Any:
    return {name: tree for name, tree in trained.items() if name != "objective"}


def init_state(config: Config, objective: Objective, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns a randomly initialised state; trace or jit it."""
    return first_state(config, init_params(config.model, config.seed), objective, optimizer, config.seed)


def abstract_state(
    config: Config, objective: Objective, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Returns shapes, types and shardings of the state, without computing anything."""
    shapes = jax.eval_shape(lambda: init_state(config, objective, optimizer))
    state = abstract_on_mesh(shapes, mesh)
    if config.mesh.shard_optimizer:
        opt_state, ema = (abstract_on_mesh(tree, mesh, over_data=True) for tree in (shapes.opt_state, shapes.ema))
        state = state._replace(opt_state=opt_state, ema=ema)
    return state
