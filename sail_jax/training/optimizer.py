"""AdamW with linear warm-up and cosine decay to a floor (arXiv 2510.12709, sec. 4.1)."""

import itertools
from collections.abc import Sequence

import jax
import optax

from sail_jax.config.training import OptimizerConfig
from sail_jax.errors import SailError
from sail_jax.sharding.parameters import WEIGHT_DECAY, match, rate_rules


def learning_rate(config: OptimizerConfig, steps: int, *, stage: str = "") -> optax.Schedule:
    """Returns the schedule: linear warm-up from 0 to the peak, then cosine decay to the floor.

    Args:
        config: the settings.
        steps: number of steps, warm-up included.
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
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if config.warmup_steps else config.peak,
        peak_value=config.peak,
        warmup_steps=config.warmup_steps,
        decay_steps=steps,
        end_value=config.floor,
    )


def run_learning_rate(stages: Sequence[tuple[str, OptimizerConfig, int]]) -> optax.Schedule:
    """Returns the schedule of a whole run, stage after stage.

    Args:
        stages: name, settings and number of steps of each stage.

    Raises:
        SailError: as `learning_rate`.
    """
    ends = list(itertools.accumulate(steps for *_, steps in stages))
    parts = [learning_rate(config, steps, stage=name) for name, config, steps in stages]
    return optax.join_schedules(parts, ends[:-1])


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Returns clipping by global norm, then AdamW with weight decay on matrices.

    The caller passes only the trained parameters. Updates have a learning rate of 1: the step scales them, so that all
    stages of a run share one compiled step.
    """
    adamw = optax.adamw(
        1.0,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        mu_dtype=config.first_moment,
        weight_decay=config.weight_decay,
        mask=lambda params: match(WEIGHT_DECAY, params),
    )
    rates = optax.stateless(
        lambda updates, _: jax.tree.map(lambda update, rate: rate * update, updates, match(rate_rules(config), updates))
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw, rates)
