"""AdamW with warm-up and a cosine to a floor (arXiv 2510.12709, sec. 4.1)."""

import optax

from sail_jax.config import OptimizerConfig
from sail_jax.errors import SailError
from sail_jax.parallel.rules import WEIGHT_DECAY, match


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up from 0 to the peak, then a cosine down to the floor at the last of `steps`.

    Raises:
        SailError: when the warm-up is not shorter than the run, or the floor lies above the peak.
    """
    if config.warmup_steps >= steps:
        raise SailError(
            f"config.optimizer.warmup_steps is {config.warmup_steps}; it must be less than config.train.steps, {steps}."
        )
    if not 0 <= config.floor <= config.peak:
        raise SailError(f"config.optimizer.floor is {config.floor}; choose it between 0 and the peak, {config.peak}.")
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if config.warmup_steps else config.peak,
        peak_value=config.peak,
        warmup_steps=config.warmup_steps,
        decay_steps=steps,
        end_value=config.floor,
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW with decay on matrices alone; it is given the trained parameters only."""
    adamw = optax.adamw(
        learning_rate(config, steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=lambda params: match(WEIGHT_DECAY, params),
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
