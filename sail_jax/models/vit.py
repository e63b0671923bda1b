"""The vision tower: embeds every frame as a grid of patches (arXiv 2510.12709, sec. 3.2).

Axis letters: F frames, H and W height and width in pixels, C channels, P patches, D width.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from sail_jax.config.model import VitConfig
from sail_jax.errors import SailError
from sail_jax.models import transformer

# How the published towers differ, besides their sizes.
KINDS = {
    "aimv2": {"norm": transformer.RMSNorm, "mlp": transformer.SwiGluMlp, "qkv_bias": False, "bias": False},
    "siglip": {"norm": transformer.LayerNorm, "mlp": transformer.GeluMlp, "qkv_bias": True, "bias": True},
    "internvit": {
        "norm": transformer.LayerNorm,
        "mlp": transformer.ExactGeluMlp,
        "qkv_bias": True,
        "bias": True,
        "layer_scale": True,
    },
}


def patchify(pixels: Float[Array, "F H W C"], patch_size: int) -> Float[Array, "F P {patch_size}*{patch_size}*C"]:
    """Cuts frames into patches, row by row.

    Pixels that do not fill a patch are dropped, as in a strided convolution.

    Args:
        pixels: the frames.
        patch_size: side of a patch in pixels.

    Returns:
        Patches, whose values are ordered by row, column, channel.
    """
    frames, height, width, channels = pixels.shape
    rows, columns = height // patch_size, width // patch_size
    pixels = pixels[:, : rows * patch_size, : columns * patch_size]
    grid = pixels.reshape(frames, rows, patch_size, columns, patch_size, channels).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(frames, rows * columns, patch_size * patch_size * channels)


class Vit(nn.Module):
    """A Vision Transformer without a pooling head.

    `config.kind` "aimv2" matches the last hidden state of transformers' Aimv2VisionModel (`is_native=False`), "siglip"
    that of SiglipVisionModel, "internvit" that of InternVLVisionModel (`attention_bias=True`, `use_qk_norm=False`,
    `use_mean_pooling=True`, as in InternViT-300M) without its class token, as InternVL uses it.

    Attributes:
        config: sizes and variant.
        dtype: type of the computation.
        remat: "none", "dots" or "full", see `transformer.scan_layers`.
        keep_layers: whether `out` holds the outputs of all layers, which takes memory; for inspection.
    """

    config: VitConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    keep_layers: bool = False

    @nn.compact
    def __call__(self, frames: UInt8[Array, "F H W C"]) -> tuple[Float[Array, "F P D"], transformer.StackOutputs]:
        """Embeds the patches of each frame.

        Args:
            frames: RGB, C = 3, H = W = `config.image_size`.

        Returns:
            patches: in `dtype`, row by row from the top left, after the final norm ("internvit" has none).
            out: see `transformer.StackOutputs`; for "internvit", the class token precedes the patches in both fields.

        Raises:
            SailError: if the kind is unknown, the frames have another size or hold no patch, the pixel statistics are
                not for three channels, or the heads do not divide the width.
        """
        config = self.config
        if config.kind not in KINDS:
            raise SailError(f"model.vit.kind is {config.kind!r}; choose one of {', '.join(KINDS)}.")
        block = transformer.Block(
            heads=config.heads,
            kv_heads=config.heads,
            head_dim=transformer.split_width(config.width, config.heads, "model.vit"),
            mlp_width=config.mlp_width,
            norm_eps=config.norm_eps,
            dtype=self.dtype,
            name="layers",
            **KINDS[config.kind],
        )
        embedded = self._embed(frames)
        patches, layers = transformer.scan_layers(
            block, embedded, layers=config.layers, remat=self.remat, keep_layers=self.keep_layers
        )
        patches = patches[:, 1:] if config.kind == "internvit" else self._norm("final_norm")(patches)
        return patches, transformer.StackOutputs(embedded, layers)

    def _embed(self, frames: jax.Array) -> jax.Array:
        config = self.config
        if frames.shape[1:] != (config.image_size, config.image_size, 3):
            raise SailError(
                f"The vision tower takes RGB frames of {config.image_size} x {config.image_size} pixels "
                f"(model.vit.image_size), not an array of shape {frames.shape}."
            )
        if config.image_size < config.patch_size:
            raise SailError(
                f"model.vit.image_size is {config.image_size}, which holds no patch of model.vit.patch_size, "
                f"{config.patch_size}."
            )
        if not len(config.image_mean) == len(config.image_std) == 3:
            raise SailError("model.vit.image_mean and image_std need one value per channel, three each.")
        mean, std = (np.asarray(value, np.float32) for value in (config.image_mean, config.image_std))
        pixels = (frames.astype(jnp.float32) / 255 - mean) / std
        embedded = transformer.Dense(config.width, True, self.dtype, name="patch_embedding")(
            patchify(pixels.astype(self.dtype), config.patch_size)
        )
        if config.kind == "aimv2":
            embedded = self._norm("patch_norm")(embedded)
        embedded += self._table("position_embedding", (config.patches, config.width))
        if config.kind == "internvit":
            # The class token's position is a separate parameter, since the other positions form a grid that is resized.
            token = self._table("class_token", (config.width,)) + self._table("class_position", (config.width,))
            token = jnp.broadcast_to(token, (len(embedded), 1, config.width))
            embedded = jnp.concatenate([token, embedded], axis=1)
        return embedded

    def _table(self, name: str, shape: tuple[int, ...]) -> jax.Array:
        return self.param(name, transformer.EMBEDDING_INIT, shape, jnp.float32).astype(self.dtype)

    def _norm(self, name: str) -> nn.Module:
        return KINDS[self.config.kind]["norm"](epsilon=self.config.norm_eps, dtype=self.dtype, name=name)
