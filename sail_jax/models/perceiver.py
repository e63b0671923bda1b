"""The Visual Perceiver: a few latents that summarise the patches of all frames (arXiv 2510.12709, sec. 3.2).

Axis letters: B batch, F frames, P patches, L latents, D width, Dv width of the vision tower.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sail_jax.errors import SailError
from sail_jax.model_config import PerceiverConfig
from sail_jax.models import transformer

ATTENTION = ("joint", "latents")
NORM_EPS = 1e-6


class Perceiver(nn.Module):
    """Learned latents, concatenated with the patches of all frames and run through pre-norm Transformer blocks.

    The report leaves the blocks open; these have LayerNorm, a GELU MLP and biases. Patches are always projected to
    `config.width`, also where the widths agree, and both kinds of attention use the same parameters, so that a
    checkpoint fits either. Frames get a learned temporal position (ours: the report does not say).

    Attributes:
        config: sizes and variant.
        dtype: type of the computation.
        remat: "none", "dots" or "full", see `transformer.scan_layers`.
    """

    config: PerceiverConfig
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, patches: jax.Array, frame_mask: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Summarises the frames of every item.

        Args:
            patches: [B, F, P, Dv], the frame at index f at temporal position f; F at most `config.max_frames`.
            frame_mask: [B, F] bool, False at padding, which does not change the result.

        Returns:
            latents: [B, L, D] in `dtype`, after the final norm; finite, and without meaning, for an item without frames.
            out: "latents", and "tokens" [B, F * P, D], the patches as the blocks see them.

        Raises:
            SailError: on an unknown kind of attention, too many frames, or a width that the heads do not divide.
        """
        config = self.config
        if config.attention not in ATTENTION:
            raise SailError(f"model.perceiver.attention is {config.attention!r}; choose one of {', '.join(ATTENTION)}.")
        tokens = self._tokens(patches)
        latents = self.param("latents", transformer.EMBEDDING_INIT, (config.latents, config.width), jnp.float32)
        latents = jnp.broadcast_to(latents.astype(self.dtype), (patches.shape[0], config.latents, config.width))
        key_mask = jnp.pad(
            jnp.repeat(frame_mask, patches.shape[2], axis=1), ((0, 0), (config.latents, 0)), constant_values=True
        )
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
        if config.attention == "joint":
            updated, arguments = jnp.concatenate([latents, tokens], axis=1), (key_mask,)
        else:
            updated, arguments = latents, (key_mask, None, tokens)
        updated, _ = transformer.scan_layers(block, updated, *arguments, layers=config.layers, remat=self.remat)
        norm = transformer.LayerNorm(epsilon=NORM_EPS, dtype=self.dtype, name="final_norm")
        latents = norm(updated[:, : config.latents])
        return latents, {"latents": latents, "tokens": tokens}

    def _tokens(self, patches: jax.Array) -> jax.Array:
        config, (batch, frames, count, _) = self.config, patches.shape
        if frames > config.max_frames:
            raise SailError(f"An item has {frames} frames; model.perceiver.max_frames allows {config.max_frames}.")
        times = self.param(
            "temporal_embedding", transformer.EMBEDDING_INIT, (config.max_frames, config.width), jnp.float32
        )
        tokens = transformer.Dense(config.width, True, self.dtype, name="input_projection")(patches)
        tokens += times[:frames, None].astype(self.dtype)
        return tokens.reshape(batch, frames * count, config.width)
