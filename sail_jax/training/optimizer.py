"""Learning rate and optimiser of a run (arXiv 2510.12709, sec. 4.1); their numbers are data of a step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float32, Int

from sail_jax.config.training import OptimizerConfig
from sail_jax.errors import SailError
from sail_jax.sharding.parameters import WEIGHT_DECAY, match, rate_rules


class Schedule(NamedTuple):
    """Linear warm-up from 0 to the peak, then cosine decay to the floor.

    It equals `optax.warmup_cosine_decay_schedule`, which takes no traced numbers.

    Attributes:
        begin: steps of the run before the first step of the schedule.
        warmup_steps: steps of warm-up.
        steps: all steps of the schedule, warm-up included.
        peak: learning rate after the warm-up.
        floor: learning rate at the end.
    """

    begin: ArrayLike
    warmup_steps: ArrayLike
    steps: ArrayLike
    peak: ArrayLike
    floor: ArrayLike

    def __call__(self, step: int | Int[Array, ""]) -> Float32[Array, ""]:
        """Returns the learning rate of a step of the run, counted from 0."""
        done = jnp.asarray(step - self.begin, jnp.float32)
        progress = jnp.clip((done - self.warmup_steps) / (self.steps - self.warmup_steps), 0, 1)
        cosine = self.floor + (self.peak - self.floor) * (1 + jnp.cos(jnp.pi * progress)) / 2
        return jnp.where(done < self.warmup_steps, self.peak * done / jnp.maximum(self.warmup_steps, 1), cosine)


def make_schedule(config: OptimizerConfig, steps: int, *, begin: int = 0, stage: str = "") -> Schedule:
    """Returns the schedule of a stage, or of a run without stages.

    Args:
        config: the settings.
        steps: number of steps, warm-up included.
        begin: steps of the run before the stage.
        stage: name of the stage, for messages; empty for a run without stages.

    Raises:
        SailError: the warm-up is not shorter than the run, or the floor is above the peak.
    """
    where = f"config.stages.{stage}" if stage else "config.optimizer"
    if config.warmup_steps >= steps:
        limit = f"{where}.steps" if stage else "config.train.steps"
        raise SailError(f"{where}.warmup_steps is {config.warmup_steps}; it must be less than {limit}, {steps}.")
    if not 0 <= config.floor <= config.peak:
        raise SailError(f"{where}.floor is {config.floor}; choose it between 0 and the peak, {config.peak}.")
    return Schedule(*map(np.int32, (begin, config.warmup_steps, steps)), *map(np.float32, (config.peak, config.floor)))


class OptimizerValues(NamedTuple):
    """The numbers of an optimiser; each is the setting of that name."""

    b1: ArrayLike
    b2: ArrayLike
    eps: ArrayLike
    weight_decay: ArrayLike
    clip_norm: ArrayLike
    temperature_rate: ArrayLike

    @classmethod
    def of(cls, config: OptimizerConfig) -> "OptimizerValues":
        """Returns the numbers of a config."""
        return cls(*(np.float32(getattr(config, name)) for name in cls._fields))


def make_optimizer(config: OptimizerConfig, values: OptimizerValues | None = None) -> optax.GradientTransformation:
    """Returns clipping by global norm, then AdamW with weight decay on matrices.

    The caller passes only the trained parameters. Updates have a learning rate of 1: the step scales them.

    Args:
        config: the settings.
        values: their numbers as data of a compiled step; None takes those of `config`.
    """
    values = values or OptimizerValues.of(config)
    adamw = optax.adamw(
        1.0,
        b1=values.b1,
        b2=values.b2,
        eps=values.eps,
        mu_dtype=config.first_moment,
        weight_decay=values.weight_decay,
        mask=lambda params: match(WEIGHT_DECAY, params),
    )
    rules = rate_rules(values.temperature_rate)
    rates = optax.stateless(
        lambda updates, _: jax.tree.map(lambda update, rate: rate * update, updates, match(rules, updates))
    )
    return optax.chain(optax.clip_by_global_norm(values.clip_norm), adamw, rates)
