"""The train step: a pure function of (state, batch), compiled once per batch shape for the mesh."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sail_jax.config import Config, LoraConfig
from sail_jax.items import Batch
from sail_jax.models.lora import scaled
from sail_jax.objectives.matching import Recipe
from sail_jax.objectives.objective import Objective
from sail_jax.parallel.mesh import BATCH_SPEC
from sail_jax.training.state import TrainState, join, split

Metrics = dict[str, jax.Array]


def make_loss(
    model: nn.Module, objective: Objective, lora: LoraConfig
) -> Callable[[Any, Batch, Recipe], tuple[jax.Array, Metrics]]:
    """The loss of a batch as a function of the parameters; all patterns of the recipe in one forward pass."""

    def loss(params: Any, batch: Batch, recipe: Recipe) -> tuple[jax.Array, Metrics]:
        variables = {"params": params["model"], "lora": scaled(params.get("lora", {}), lora)}
        z, out = model.apply(variables, batch, recipe.views)
        return objective(params["objective"], z, out, batch, recipe)

    return loss


def make_train_step(
    config: Config,
    model: nn.Module,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
) -> Callable[[TrainState, Batch, Recipe], tuple[TrainState, Metrics]]:
    """One optimiser step.

    Frozen parameters are constants of the differentiated function: they get no gradient, no moments and no update.

    Args:
        config: the experiment.
        model: see `models.model.make_model`.
        objective: the losses.
        optimizer: it sees the trained parameters alone.
        schedule: learning rate by steps of the run; it scales the optimizer's updates.

    Returns:
        A pure function (state, batch, recipe) -> (state, metrics); metrics are float32 scalars: the loss and its parts, the
        gradient's global norm before clipping, and the learning rate.
    """
    loss_of = make_loss(model, objective, config.lora)

    def step(state: TrainState, batch: Batch, recipe: Recipe) -> tuple[TrainState, Metrics]:
        trained, frozen = split(config, state.params)
        loss_and_gradient = jax.value_and_grad(lambda part: loss_of(join(part, frozen), batch, recipe), has_aux=True)
        (loss, metrics), gradient = loss_and_gradient(trained)
        updates, opt_state = optimizer.update(gradient, state.opt_state, trained)
        rate = jnp.asarray(schedule(state.step))
        params = join(optax.apply_updates(trained, optax.tree.scale(rate, updates)), frozen)
        params = params | {"objective": objective.project(params["objective"])}
        metrics = metrics | {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradient),
            "learning_rate": rate,
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def compile_step(step: Callable, abstract: TrainState, mesh: Mesh) -> Callable[[TrainState, Batch, Recipe], Any]:
    """Jits a step for a mesh: the state as it is sharded, the batch split over pairs, the state's memory reused.

    It is compiled once for each recipe and batch shape.
    """
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(
        step,
        in_shardings=(state_shardings, NamedSharding(mesh, BATCH_SPEC)),
        out_shardings=(state_shardings, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
        static_argnums=2,
    )
