"""Builds the model of a config and its initial parameters."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int32

from sail_jax.batch import Batch
from sail_jax.config import Config
from sail_jax.config.model import ModelConfig
from sail_jax.models.baselines import DualTower
from sail_jax.models.fusion import OmniEmbedder
from sail_jax.sharding.parameters import abstract_on_mesh


def make_model(config: ModelConfig, groups: int = 1) -> nn.Module:
    """Returns the model of `config.kind`.

    Both kinds have the interface of `OmniEmbedder`: they take (batch, views, room).

    Args:
        config: kind and sizes.
        groups: number of equal groups of pairs in the batch, one per data-parallel shard.
    """
    kinds = {"fusion": OmniEmbedder, "dual_tower": DualTower}
    return kinds[config.kind](config, groups=groups)


def example_batch(config: ModelConfig, pairs: int = 1, tokens: int = 8) -> Batch:
    """Returns a batch of zeros with every modality, for initialisation and abstract evaluation."""
    size, items = config.vit.image_size, 2 * pairs
    return Batch(
        tokens=jnp.zeros((pairs, 2, tokens), jnp.int32),
        token_types=jnp.zeros((pairs, 2, tokens), jnp.int8),
        frames=jnp.zeros((items, size, size, 3), jnp.uint8),
        frame_item=jnp.arange(items, dtype=jnp.int32),
        frame_slot=jnp.zeros(items, jnp.int32),
        clips=jnp.zeros((items, config.audio.clip_samples), jnp.int16),
        clip_item=jnp.arange(items, dtype=jnp.int32),
        audio_vectors=jnp.zeros((pairs, 2, config.audio.projection), jnp.float32),
        has_audio_vector=jnp.zeros((pairs, 2), bool),
        item_keys=jnp.zeros((pairs, 2, 2), jnp.uint32),
        text_keys=jnp.zeros((pairs, 2, 2), jnp.uint32),
        valid=jnp.ones((pairs, 2), bool),
        scores=jnp.full(pairs, jnp.nan, jnp.float32),
        dataset=jnp.zeros(pairs, jnp.int32),
    )


@functools.partial(jax.jit, static_argnums=0)  # traced once per config, however many functions call it
def init_params(config: ModelConfig, seed: int | Int32[Array, ""]) -> Any:
    """Returns initial parameters in float32, which depend only on the config and the seed.

    To place them on a mesh, call this within a jit.
    """
    return make_model(config).init(jax.random.key(seed), example_batch(config))["params"]


def abstract_params(config: Config, mesh: Mesh) -> Any:
    """Returns the shapes, types and shardings of the model's parameters, without allocating them."""
    shapes = jax.eval_shape(lambda: init_params(config.model, config.seed))
    return abstract_on_mesh(shapes, mesh)
