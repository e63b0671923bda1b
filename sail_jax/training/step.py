"""The train step: a pure function of (state, batch), compiled once per batch shape for the mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sail_jax.items import Batch
from sail_jax.models.fusion import OmniEmbedder
from sail_jax.objectives.objective import Objective
from sail_jax.parallel.mesh import BATCH_SPEC
from sail_jax.training.state import TrainState

Metrics = dict[str, jax.Array]


def make_loss(model: OmniEmbedder, objective: Objective) -> Callable[[Any, Batch], tuple[jax.Array, Metrics]]:
    """The loss of a batch as a function of the parameters."""

    def loss(params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
        z, _ = model.apply({"params": params["model"]}, batch)
        return objective(params["objective"], z[0], batch)

    return loss


def make_train_step(
    model: OmniEmbedder, objective: Objective, optimizer: optax.GradientTransformation, schedule: optax.Schedule
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """One optimiser step.

    Returns:
        A pure function (state, batch) -> (state, metrics); metrics are float32 scalars: the loss and its parts, the
        gradient's global norm before clipping, and the learning rate.
    """
    loss_and_gradient = jax.value_and_grad(make_loss(model, objective), has_aux=True)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        (loss, metrics), gradient = loss_and_gradient(state.params, batch)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params = params | {"objective": objective.project(params["objective"])}
        metrics = metrics | {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradient),
            "learning_rate": jnp.asarray(schedule(state.step)),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def compile_step(step: Callable, abstract: TrainState, mesh: Mesh) -> Callable[[TrainState, Batch], Any]:
    """Jits a step for a mesh: the state as it is sharded, the batch split over pairs, the state's memory reused."""
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(
        step,
        in_shardings=(state_shardings, NamedSharding(mesh, BATCH_SPEC)),
        out_shardings=(state_shardings, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
    )
