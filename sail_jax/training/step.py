"""The train step: a pure function of (state, batch), compiled once per recipe and batch shape."""

import copy
import os
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.stages import Compiled, Traced

from sail_jax.batch import Batch, BySide, Outputs
from sail_jax.config import Config
from sail_jax.config.training import LoraConfig
from sail_jax.models.lora import scaled
from sail_jax.models.model import make_model
from sail_jax.objectives.matching import Recipe
from sail_jax.objectives.objective import LossValues, Objective
from sail_jax.sharding.mesh import BATCH_SPEC, data_shards, shard_batch
from sail_jax.sharding.parameters import abstract_on_mesh, shardings_of
from sail_jax.training.optimizer import make_optimizer
from sail_jax.training.setup import StepValues, TrainSetup
from sail_jax.training.state import TrainState, join, next_average, split
from sail_jax.training.tower_scales import gradient_norms, input_scales

Metrics = dict[str, jax.Array]
Encode = Callable[[Any, Batch, Recipe], tuple[BySide, Outputs]]
Update = Callable[[TrainState, Any, jax.Array, Metrics, StepValues], tuple[TrainState, Metrics]]


def make_encode(model: nn.Module, lora: LoraConfig) -> Encode:
    """Returns the function (params, batch, recipe) -> outputs; one forward pass computes all views."""

    def encode(params: Any, batch: Batch, recipe: Recipe) -> tuple[BySide, Outputs]:
        variables = {"params": params["model"], "lora": scaled(params.get("lora", {}), lora)}
        return model.apply(variables, batch, recipe.views, recipe.room)

    return encode


def make_loss(model: nn.Module, objective: Objective, lora: LoraConfig) -> Callable[..., tuple[jax.Array, Metrics]]:
    """Returns the function (params, batch, recipe, values) -> (loss, metrics).

    Metrics are those of `Objective.__call__` and `input_scales`.
    """
    encode = make_encode(model, lora)

    def loss(params: Any, batch: Batch, recipe: Recipe, values: LossValues | None = None) -> tuple[jax.Array, Metrics]:
        z, out = encode(params, batch, recipe)
        value, metrics = objective(params["objective"], z, out, batch, recipe, values)
        return value, metrics | input_scales(out.power)

    return loss


def make_gradient(
    config: Config, model: nn.Module, objective: Objective
) -> Callable[..., tuple[tuple[jax.Array, Metrics], Any]]:
    """Returns the function (params, batch, recipe, values) -> ((loss, metrics), gradient).

    The gradient is that of the trained parameters; frozen ones are constants of the differentiated function.
    """
    loss = make_loss(model, objective, config.lora)

    def gradient(
        params: Any, batch: Batch, recipe: Recipe, values: LossValues | None = None
    ) -> tuple[tuple[jax.Array, Metrics], Any]:
        trained, frozen = split(config, params)
        return jax.value_and_grad(lambda part: loss(join(part, frozen), batch, recipe, values), has_aux=True)(trained)

    return gradient


def make_update(setup: TrainSetup) -> Update:
    """Returns the function that updates the state by a gradient.

    Returns:
        (state, gradient of the trained parameters, loss, metrics, values) -> (state, metrics). Metrics are float32
        scalars: the loss and its parts, the norms of the gradient before clipping, whole and by tower, the learning
        rate, and "nonfinite", 1 where the loss or the gradient is not finite. Then only the step is counted, and all
        else stays as it was.
    """
    config = setup.config

    def update(
        state: TrainState, gradient: Any, loss: jax.Array, metrics: Metrics, values: StepValues
    ) -> tuple[TrainState, Metrics]:
        trained, frozen = split(config, state.params)
        if config.mesh.shard_optimizer:
            # Split it like the moments: one collective sums and splits, and each device computes a part of the update.
            wanted = shardings_of(abstract_on_mesh(gradient, setup.mesh, over_data=True))
            gradient = jax.lax.with_sharding_constraint(gradient, wanted)
        norms = gradient_norms(gradient)
        optimizer = make_optimizer(config.optimizer, values.optimizer)
        updates, opt_state = optimizer.update(gradient, state.opt_state, trained)
        rate = values.schedule(state.step)
        trained = optax.apply_updates(trained, optax.tree.scale(rate, updates))
        ema = next_average(state, trained, values.optimizer.ema)
        params = join(trained, frozen)
        params = params | {"objective": setup.objective.project(params["objective"], values.losses)}
        finite = jnp.isfinite(loss) & jnp.isfinite(norms["gradient_norm"])
        metrics = metrics | {"loss": loss, "learning_rate": rate, "nonfinite": 1.0 - finite.astype(jnp.float32)} | norms
        after = TrainState(state.step, params, opt_state, ema)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)
        return kept._replace(step=state.step + 1), metrics

    return update


def make_train_step(setup: TrainSetup) -> Callable[[TrainState, Batch, Recipe, StepValues], tuple[TrainState, Metrics]]:
    """Returns the train step on a whole batch.

    Frozen parameters get no gradient, no moments and no update.

    Returns:
        A pure function (state, batch, recipe, values) -> (state, metrics); see `make_update`.
    """
    model = make_model(setup.config.model, groups=data_shards(setup.mesh))
    gradient_of, update = make_gradient(setup.config, model, setup.objective), make_update(setup)

    def step(state: TrainState, batch: Batch, recipe: Recipe, values: StepValues) -> tuple[TrainState, Metrics]:
        (loss, metrics), gradient = gradient_of(state.params, batch, recipe, values.losses)
        return update(state, gradient, loss, metrics, values)

    return step


def compile_step(setup: TrainSetup) -> Callable[[TrainState, Batch, Recipe, StepValues], Any]:
    """Returns the jitted train step; it is compiled once per recipe and batch shape, for all values.

    The state keeps its sharding, the batch is split over pairs, and the memory of the state is reused.
    """
    return jax.jit(
        make_train_step(setup),
        in_shardings=(setup.shardings, NamedSharding(setup.mesh, BATCH_SPEC), setup.replicated),
        out_shardings=(setup.shardings, setup.replicated),
        donate_argnums=0,
        static_argnums=2,
    )


class WholeStep:
    """A train step on batches that are encoded in one piece."""

    def __init__(self, setup: TrainSetup) -> None:
        self._mesh, self._step, self._values = setup.mesh, compile_step(setup), setup.values
        self._abstract = setup.abstract
        self._ahead: dict[Hashable, Future[Compiled]] = {}

    def for_stage(self, setup: TrainSetup) -> "WholeStep":
        """Returns the step of another stage of the run, with the same compiled programs."""
        step = copy.copy(self)
        step._values = setup.values
        return step

    def compile_ahead(self, first: tuple[Batch, Recipe], others: Sequence[tuple[Batch, Recipe]]) -> None:
        """Starts to compile the step for some kinds of batches in other threads.

        Meanwhile the first kind can be compiled and run. A step on a batch of another kind waits for its program.

        Args:
            first: shapes and recipe of the kind of batches that comes first; it is not compiled here.
            others: shapes and recipes of the other kinds.
        """
        known = {_kind(*first), *self._ahead}
        fresh = {_kind(*kind): kind for kind in others if _kind(*kind) not in known}
        if not fresh:
            return
        pool = ThreadPoolExecutor(max_workers=min(len(fresh), max(1, (os.cpu_count() or 1) - 1)))
        self._ahead |= {key: pool.submit(self._compile, *kind) for key, kind in fresh.items()}
        pool.shutdown(wait=False)

    def _compile(self, batch: Batch, recipe: Recipe) -> Compiled:
        with jax.set_mesh(self._mesh):
            return self._step.lower(self._abstract, batch, recipe, self._values).compile()

    def put(self, batches: tuple[Batch, ...]) -> Batch:
        """Starts the transfer of a batch of this process to its devices."""
        (batch,) = batches
        return shard_batch(batch, self._mesh)

    def __call__(self, state: TrainState, batch: Batch, recipe: Recipe) -> tuple[TrainState, Metrics]:
        """Takes one optimiser step on a batch from `put`; the memory of the given state is reused."""
        with jax.set_mesh(self._mesh):
            if ahead := self._ahead.get(_kind(batch, recipe)):
                return _result(ahead)(state, batch, self._values)
            return self._step(state, batch, recipe, self._values)

    def programs(self, state: TrainState, batch: Batch, recipe: Recipe) -> list[tuple[Traced, int]]:
        """Traces the programs of a step for abstract arguments; returns each with its number of runs."""
        return [(self._step.trace(state, batch, recipe, self._values), 1)]


def _result(ahead: Future[Compiled]) -> Compiled:
    """Waits for a program; the time counts as compiling, as if this thread compiled it."""
    if ahead.done():
        return ahead.result()
    began = time.monotonic()
    program = ahead.result()
    jax.monitoring.record_event_duration_secs("/jax/core/compile/ahead_duration", time.monotonic() - began)
    return program


def _kind(batch: Batch, recipe: Recipe) -> Hashable:
    """Returns what tells a compiled step from others."""
    return recipe, tuple((leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(batch))
