"""The Visual Perceiver: a few latents summarise the patches of all frames of an item.

The source is arXiv 2510.12709, sec. 3.2.

Axis letters: I items, F frames of all items on a flat axis, M frame slots of an item, P patches, L latents, D width, Dv
width of the vision tower, G groups of items (data-parallel shards), J = I / G items of a group, T places of a group on
the packed axis.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from sail_jax.config.model import PerceiverConfig
from sail_jax.errors import SailError
from sail_jax.models import packing, transformer

ATTENTION = ("joint", "latents")
NORM_EPS = 1e-6


class PerceiverOutputs(NamedTuple):
    """The intermediates of the Visual Perceiver.

    Attributes:
        tokens: the projected patches with temporal positions, the input of the blocks.
    """

    tokens: Float[Array, "F P D"]


class Perceiver(nn.Module):
    """Summarises the frames of items by learned latents and pre-norm Transformer blocks.

    The blocks read the latents concatenated with the patches of all frames. The report does not specify the blocks;
    these have LayerNorm, a GELU MLP and biases. Patches are always projected to `config.width`, even if the widths are
    equal, and both kinds of attention have the same parameters, so a checkpoint fits both. Frames have a learned
    temporal position, which the report does not mention.

    Attributes:
        config: sizes and variant.
        dtype: type of the computation.
        remat: "none", "dots" or "full", see `transformer.scan_layers`.
    """

    config: PerceiverConfig
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        patches: Float[Array, "F P Dv"],
        frame_slot: Int32[Array, " F"],
        frame_of: Int32[Array, "G J M"],
    ) -> tuple[Float[Array, "G*J L D"], PerceiverOutputs]:
        """Summarises the frames of every item.

        Frames are packed on a flat axis, so an item costs only as much as the frames it has.

        Args:
            patches: the patches of frames; the frames of each of the G groups form a block.
            frame_slot: temporal position of each frame, below `config.max_frames`.
            frame_of: index of the frame in each slot of an item, within the block of the group; F / G in empty slots.

        Returns:
            latents: in `dtype`, after the final norm; finite but without meaning for an item without frames.
            out: see `PerceiverOutputs`.

        Raises:
            SailError: if the kind of attention is unknown, there are too many frames, or the heads do not divide the
                width.
        """
        config = self.config
        if config.attention not in ATTENTION:
            raise SailError(f"model.perceiver.attention is {config.attention!r}; choose one of {', '.join(ATTENTION)}.")
        tokens = self._tokens(patches, frame_slot, frame_of.shape[2])
        groups, items, _ = frame_of.shape
        latents = self.param("latents", transformer.EMBEDDING_INIT, (config.latents, config.width), jnp.float32)
        latents = jnp.broadcast_to(latents.astype(self.dtype), (groups * items, *latents.shape))
        layout = _layout(frame_of, len(patches) // groups, patches.shape[1], config.latents)
        block = transformer.Block(
            heads=config.heads,
            kv_heads=config.heads,
            head_dim=transformer.split_width(config.width, config.heads, "model.perceiver"),
            mlp_width=config.mlp_width,
            norm=transformer.LayerNorm,
            mlp=transformer.GeluMlp,
            norm_eps=NORM_EPS,
            qkv_bias=True,
            bias=True,
            block_size=config.attention_block,
            dtype=self.dtype,
            name="layers",
        )
        flat = tokens.reshape(-1, config.width)
        if config.attention == "joint":
            updated, context = layout.join(latents, flat), None
        else:
            updated, context = latents, flat
        scanned = {"layers": config.layers, "remat": self.remat}
        updated, _ = transformer.scan_layers(block, updated, None, None, layout, context, **scanned)
        if config.attention == "joint":
            updated = updated.reshape(groups, -1, config.width)[:, : items * config.latents]
        norm = transformer.LayerNorm(epsilon=NORM_EPS, dtype=self.dtype, name="final_norm")
        latents = norm(updated.reshape(-1, config.latents, config.width))
        return latents, PerceiverOutputs(tokens)

    def _tokens(self, patches: jax.Array, frame_slot: jax.Array, slots: int) -> jax.Array:
        config = self.config
        if slots > config.max_frames:
            raise SailError(f"An item has {slots} frames; model.perceiver.max_frames allows {config.max_frames}.")
        times = self.param(
            "temporal_embedding", transformer.EMBEDDING_INIT, (config.max_frames, config.width), jnp.float32
        )
        tokens = transformer.Dense(config.width, True, self.dtype, name="input_projection")(patches)
        return tokens + times[frame_slot][:, None].astype(self.dtype)


def _layout(frame_of: jax.Array, frames: int, patches: int, latents: int) -> packing.Packing:
    """Returns the packing of items, whose sequences are the latents and then the frames of an item.

    The packed axis holds, for each group, the latents of all items and then all frames.
    """
    groups, items, slots = frame_of.shape
    room = items * latents + frames * patches
    of_latents = jnp.arange(items * latents, dtype=jnp.int32).reshape(items, latents)
    of_patches = items * latents + frame_of[..., None] * patches + jnp.arange(patches, dtype=jnp.int32)
    of_patches = jnp.where(frame_of[..., None] < frames, of_patches, room).reshape(groups, items, slots * patches)
    places = jnp.concatenate([jnp.broadcast_to(of_latents, (groups, items, latents)), of_patches], axis=2)
    return packing.from_places(places.reshape(groups, -1), room, latents + slots * patches).from_front()
