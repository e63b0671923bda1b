"""AdamW with warm-up and a cosine to a floor (arXiv 2510.12709, sec. 4.1)."""

import itertools
from collections.abc import Sequence

import jax
import optax

from sail_jax.config.training import OptimizerConfig
from sail_jax.errors import SailError
from sail_jax.sharding.parameters import WEIGHT_DECAY, match, rate_rules


def learning_rate(config: OptimizerConfig, steps: int, *, stage: str = "") -> optax.Schedule:
    """Linear warm-up from 0 to the peak, then a cosine down to the floor at the last of `steps`.

    Args:
        config: the settings.
        steps: all steps.
        stage: the stage whose settings they are, for messages; empty for a run without stages.

    Raises:
        SailError: when the warm-up is not shorter than the run, or the floor lies above the peak.
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
    """The learning rate by steps of a whole run, stage after stage.

    Args:
        stages: name, settings and steps of each.

    Raises:
        SailError: as `learning_rate`.
    """
    ends = list(itertools.accumulate(steps for *_, steps in stages))
    parts = [learning_rate(config, steps, stage=name) for name, config, steps in stages]
    return optax.join_schedules(parts, ends[:-1])


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW with decay on matrices alone; it is given the trained parameters only.

    Its updates are those of a learning rate of one: the step scales them, so that all stages of a run share one compiled
    step.
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
