"""The operations that a training step needs, without those that are repeated to save memory."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from sail_jax.config import Config
from sail_jax.data.batch_shapes import batch_shapes
from sail_jax.data.tower_outputs import NO_ENCODINGS, Encodings
from sail_jax.models.model import make_model
from sail_jax.objectives.matching import Recipe
from sail_jax.objectives.objective import make_objective
from sail_jax.training.flops import executed_flops
from sail_jax.training.step import make_gradient


def model_flops(
    config: Config,
    names: Sequence[str],
    params: Any,
    recipe: Recipe,
    shards: int,
    encodings: Encodings = NO_ENCODINGS,
) -> int:
    """Counts the operations of the loss and its gradient on a global batch, without recomputation.

    Args:
        config: the experiment, or a stage of it.
        names: the training sets that may occur in the batch, one of `batch_kinds`.
        params: the parameters of the training state, or their shapes.
        recipe: the recipe of the batch, or of a micro-batch.
        shards: data-parallel shards.
        encodings: outputs that batches hold in place of pixels and of sound.
    """
    perceiver = dataclasses.replace(config.model.perceiver, attention_block=0)  # blocks are recomputed
    plain = dataclasses.replace(config.model, remat="none", media_chunk=0, perceiver=perceiver)
    whole = dataclasses.replace(config, model=plain, train=dataclasses.replace(config.train, micro_batches=1))
    room = recipe.room and recipe.room * config.train.micro_batches
    gradient = make_gradient(config, make_model(plain, groups=shards), make_objective(config))
    given = recipe._replace(room=room)
    shapes = batch_shapes(whole, names, shards, encodings)
    return executed_flops(lambda params, batch: gradient(params, batch, given), params, shapes)
