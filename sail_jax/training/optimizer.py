"""Learning rate and optimiser of a run (arXiv 2510.12709, sec. 4.1); their numbers are data of a step."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jax.typing import ArrayLike
from jaxtyping import Array, Float32, Int

from sail_jax.config.training import OptimizerConfig
from sail_jax.errors import SailError
from sail_jax.sharding.parameters import path_name
from sail_jax.training.rates import HIDDEN_MATRIX, Rates, factors, weight_decay_mask

Mask = Callable[[Any], Any]


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
        raise SailError(
            f"{where}.warmup_steps is {config.warmup_steps}; it must be less than {limit}, {steps}: set it to "
            f"{steps // 10}, a tenth, or train for more steps."
        )
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
    ema: ArrayLike
    rates: Rates

    @classmethod
    def of(cls, config: OptimizerConfig) -> "OptimizerValues":
        """Returns the numbers of a config."""
        numbers = [np.float32(getattr(config, name)) for name in cls._fields[:-1]]
        return cls(*numbers, Rates.of(config))


def make_optimizer(config: OptimizerConfig, values: OptimizerValues | None = None) -> optax.GradientTransformation:
    """Returns clipping by global norm, then the optimiser of that name, then the factors of the parts.

    The caller passes only the trained parameters. Updates have a learning rate of 1: the step scales them.

    Args:
        config: the settings.
        values: their numbers as data of a compiled step; None takes those of `config`.
    """
    values = values or OptimizerValues.of(config)

    def scaled(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda update, rate: rate * update, updates, factors(config, values.rates, updates))

    named = _OPTIMIZERS[config.name](config, values, functools.partial(weight_decay_mask, config))
    return optax.chain(optax.clip_by_global_norm(values.clip_norm), named, optax.stateless(scaled))


def _moments_and_decay(config: OptimizerConfig, values: OptimizerValues, mask: Mask) -> dict[str, Any]:
    """Returns the arguments that AdamW and Lion share."""
    moments = {"b1": values.b1, "b2": values.b2, "mu_dtype": config.first_moment}
    return moments | {"weight_decay": values.weight_decay, "mask": mask}


def _adamw(config: OptimizerConfig, values: OptimizerValues, mask: Mask) -> optax.GradientTransformation:
    return optax.adamw(1.0, eps=values.eps, **_moments_and_decay(config, values, mask))


def _lion(config: OptimizerConfig, values: OptimizerValues, mask: Mask) -> optax.GradientTransformation:
    """Returns Lion (arXiv 2302.06675)."""
    return optax.lion(1.0, **_moments_and_decay(config, values, mask))


def _adafactor(config: OptimizerConfig, values: OptimizerValues, mask: Mask) -> optax.GradientTransformation:
    """Returns Adafactor (arXiv 1804.04235) with a first moment, and with rates that mean what they do for AdamW."""
    return optax.adafactor(
        1.0,
        multiply_by_parameter_scale=False,
        momentum=values.b1,
        dtype_momentum=config.first_moment,
        weight_decay_rate=values.weight_decay,
        weight_decay_mask=mask,
    )


def _muon(config: OptimizerConfig, values: OptimizerValues, mask: Mask) -> optax.GradientTransformation:
    """Returns Muon for the matrices of layers, and AdamW for all else.

    Updates have the root mean square that those of AdamW have, so that one learning rate fits both (arXiv 2502.16982).
    """

    def dimensions(params: Any) -> Any:
        """Returns the axes of each matrix, the last two; None for what AdamW trains."""
        axes = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
        return jax.tree_util.tree_map_with_path(
            lambda path, _: axes if HIDDEN_MATRIX.search(path_name(path)) else None, params
        )

    muon = optax.contrib.muon(
        1.0,
        beta=values.b1,
        eps=values.eps,
        mu_dtype=config.first_moment,
        adam_b1=values.b1,
        adam_b2=values.b2,
        muon_weight_dimension_numbers=dimensions,
        consistent_rms=0.2,
    )
    return optax.chain(muon, optax.add_decayed_weights(-values.weight_decay, mask))  # its updates are negative already


_OPTIMIZERS = {"adamw": _adamw, "adafactor": _adafactor, "lion": _lion, "muon": _muon}
