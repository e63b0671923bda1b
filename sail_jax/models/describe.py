"""Counts the parameters of a model without allocating them."""

import math

import jax

from sail_jax.config.model import ModelConfig
from sail_jax.models.model import init_params


def parameter_table(config: ModelConfig) -> list[tuple[str, int]]:
    """Returns rows (tower, number of parameters), and last the total, without allocating parameters."""
    shapes = jax.eval_shape(lambda: init_params(config, 0))
    rows = [
        (name, sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tower))) for name, tower in sorted(shapes.items())
    ]
    return [*rows, ("total", sum(count for _, count in rows))]
