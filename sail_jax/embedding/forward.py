"""The programs that embed on the devices, and the mesh on which parameters stay split as in training.

Axis letters: V views, B rows of a batch, D width, L items of a history.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jax.stages import Traced

from sail_jax.batch import Batch
from sail_jax.config import Config
from sail_jax.config.training import MeshConfig
from sail_jax.data.batch_shapes import blank_pair, shapes_of_batch
from sail_jax.models.model import abstract_params, make_model
from sail_jax.models.sequence import SequenceHead
from sail_jax.sharding.mesh import AXES, abstract_batch, data_shards, make_mesh


def inference_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh that splits the parameters as in training, as far as the number of devices allows.

    Args:
        config: the mesh of the training. An axis whose size does not divide the devices gets their greatest common
            divisor, and `data` the devices that are left over.
        devices: the devices; by default those of all processes.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes, left = {}, len(devices)
    for axis in ("tensor", "fsdp", "data"):
        if (wanted := getattr(config, axis)) != -1:
            sizes[axis] = math.gcd(wanted, left)
            left //= sizes[axis]
    if len(sizes) == len(AXES):
        sizes["data"] *= left
    return make_mesh(dataclasses.replace(config, **sizes), devices)


def inference_model(config: Config, mesh: Mesh) -> nn.Module:
    """Returns the model as it embeds: without a backward pass there are no activations to bound."""
    return make_model(dataclasses.replace(config.model, media_chunk=0), groups=data_shards(mesh))


@functools.partial(jax.jit, static_argnames=("model", "views"))
def forward(model: nn.Module, params: Any, batch: Batch, views: tuple[str, ...]) -> jax.Array:
    """Returns the embeddings [V, B, D] of a batch with one item per pair; compiled once per model."""
    (z,), _ = model.apply({"params": params}, batch, (views,))
    return z


@functools.partial(jax.jit, static_argnames=("model",))
def pool_histories(model: nn.Module, params: Any, vectors: jax.Array) -> jax.Array:
    """Pools histories, [B, L, D] -> [B, D]."""
    head = SequenceHead(model.config.sequence, model.config.llm.width, dtype=jnp.dtype(model.config.dtype))
    return head.apply({"params": params.get("sequence", {})}, vectors, (vectors != 0).any(-1), method="pool")


@jax.jit
def on_every_device(vectors: jax.Array) -> jax.Array:
    """Copies vectors to every device of the mesh that is set, so that every process can read all of them."""
    return jax.lax.with_sharding_constraint(vectors, PartitionSpec())


def traced_forward(
    config: Config, mesh: Mesh, *, rows: int, length: int, frames: int, clips: int, views: tuple[str, ...]
) -> Traced:
    """Returns the program that embeds one batch, traced for abstract parameters.

    Args:
        config: the experiment.
        mesh: the devices; for a program compiled ahead of time, those of a topology.
        rows: items of the batch, a multiple of the data-parallel shards.
        length: token positions of an item.
        frames: capacity for frames of the batch, a multiple of the data-parallel shards.
        clips: capacity for clips, likewise.
        views: modality sets, each embedded separately.
    """
    one = blank_pair(config, sides=1)
    one = one._replace(tokens=one.tokens[..., :length], token_types=one.token_types[..., :length])
    batch = abstract_batch(shapes_of_batch(one, rows, frames, clips), mesh)
    with jax.set_mesh(mesh):
        return forward.trace(inference_model(config, mesh), abstract_params(config, mesh), batch, views)
