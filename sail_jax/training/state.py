"""The training state: its initial values, shapes and shardings, and the split into trained and frozen."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from sail_jax.config import Config
from sail_jax.errors import SailError
from sail_jax.models.lora import init_lora
from sail_jax.models.model import init_params
from sail_jax.objectives.objective import LossValues, Objective
from sail_jax.sharding.parameters import abstract_on_mesh, first_match, frozen_rules


class TrainState(NamedTuple):
    """The state that a step reads and writes.

    Attributes:
        step: [] int32, steps done.
        params: {"model": ..., "objective": ...}, and "lora" if adapters are trained; float32.
        opt_state: the state of the optimiser, only for trained parameters.
    """

    step: Any
    params: Any
    opt_state: Any


def split(config: Config, params: Any) -> tuple[Any, Any]:
    """Splits the parameters by the rules table into (trained, frozen); `join` is the inverse.

    Raises:
        SailError: a pattern of the config is found in no path, or all parameters of the model are frozen.
    """
    flat = flatten_dict(params, sep="/")
    rules = frozen_rules(config, list(flatten_dict(params["model"], sep="/")))
    frozen = {name: leaf for name, leaf in flat.items() if first_match(rules, name.removeprefix("model/"))}
    trained = {name: leaf for name, leaf in flat.items() if name not in frozen}
    if not any(name.startswith(("model/", "lora/")) for name in trained):
        raise SailError("config.optimizer.freeze leaves no parameter of the model to be trained; narrow it.")
    return unflatten_dict(trained, sep="/"), unflatten_dict(frozen, sep="/")


def join(trained: Any, frozen: Any) -> Any:
    """Returns the parameters that `split` split."""
    return unflatten_dict(flatten_dict(trained) | flatten_dict(frozen))


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
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trained))


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
        state = state._replace(opt_state=abstract_on_mesh(shapes.opt_state, mesh, over_data=True))
    return state
