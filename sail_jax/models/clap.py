"""The audio tower: CLAP's HTSAT, a Swin Transformer on a log-mel spectrogram folded into a square.

Matches `transformers.ClapAudioModelWithProjection`, except for sizes that no published checkpoint has. If the windows
do not tile a map, the reference pads the map; this module rejects it. If a window is larger than its map, the
reference fails; this module shrinks the window and its bias table to the map, as LAION's HTSAT does.

Checkpoints with feature fusion (`enable_fusion`) treat only clips beyond their input length differently. Our clips are
never longer, so we match the reference with `is_longer` False and omit the fusion layers. transformers' feature
extractor marks a random clip as longer if a batch has no longer clip; we do not.

Axis letters: C audio clips, T frames of the spectrogram, M mel bins, R chunks of time, S side of a square map of
patches, W side of a window, A = W * W patches of a window, N windows, D width, H heads, K head width.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32, Int, Int16

from sail_jax.config.model import ClapConfig
from sail_jax.errors import SailError
from sail_jax.models.bicubic import bicubic_matrix
from sail_jax.models.log_mel import log_mel, num_frames
from sail_jax.models.transformer import EMBEDDING_INIT, REMAT_POLICIES, Dense
from sail_jax.sharding.activations import on_shards

# Statistics of the input for training from scratch, in dB and dB^2: sound at common levels is around -30 dB, and
# silence at -100 dB is then within three standard deviations. Imported checkpoints have their own, per mel bin.
INITIAL_MEAN = -30.0
INITIAL_VAR = 30.0**2
# Deviation of the offsets per mel bin. Swin knows only relative positions: with one offset for all bins, nothing would
# tell a patch of low frequencies from one of high frequencies.
INITIAL_OFFSET = 0.5


class ClapOutputs(NamedTuple):
    """The intermediates of the audio tower.

    Attributes:
        log_mel: the spectrograms, in decibels.
        patches: the patch embeddings.
        stages: the output maps of the stages, after merging.
        pooled: the mean over the last map.
    """

    log_mel: Float32[Array, "C T M"]
    patches: Float[Array, "C S S D"]
    stages: tuple[Float[Array, "C _ _ _"], ...]
    pooled: Float[Array, "C _"]


class ClapAudio(nn.Module):
    """Embeds sound clips (arXiv 2510.12709, sec. 3.2).

    Attributes:
        config: sizes, and settings of the spectrogram; all norms use `norm_eps`.
        dtype: type of the computation; the spectrogram, norms and softmax are always float32.
        remat: what each block keeps for the backward pass: "none" keeps all activations, "dots" only the outputs of
            dense layers, "full" nothing.
    """

    config: ClapConfig
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(
        self, clips: Int16[Array, "C samples"] | Float32[Array, "C samples"]
    ) -> tuple[Float[Array, "C {self.config.projection}"], ClapOutputs]:
        """Embeds clips.

        Args:
            clips: int16, or float32 in [-1, 1]; `samples` is the config's `clip_samples`.

        Returns:
            embedding: in `dtype`; matches the reference's `audio_embeds`. It is not normalised; the reference
                normalises it in `ClapModel`.
            out: see `ClapOutputs`.

        Raises:
            SailError: if the sizes of the config do not fit together, or `clips` does not fit the config.
        """
        config = self.config
        check_sizes(config)
        if self.remat not in ("none", *REMAT_POLICIES):
            raise SailError(f"model.remat is {self.remat!r}; use 'none', 'dots' or 'full'.")
        if clips.ndim != 2 or clips.shape[1] != config.clip_samples:
            raise SailError(
                f"Clips are [clips, {config.clip_samples}], not {clips.shape}; see model.audio.clip_seconds."
            )
        mel = on_shards(functools.partial(log_mel, config=config), clips)
        image = fold(InputNorm(config.norm_eps, name="input_norm")(mel), config)
        x = Dense(config.width, True, self.dtype, name="patch_embed")(_patchify(image, config.patch_size))
        x = patches = _layer_norm(config, "patch_norm")(x).astype(self.dtype)
        stages = []
        for index in range(len(config.depths)):
            x = Stage(config, index, self.dtype, self.remat, name=f"stages_{index}")(x)
            stages.append(x)
        x = _layer_norm(config, "norm")(x)
        pooled = x.mean(axis=(1, 2)).astype(self.dtype)
        out = ClapOutputs(mel, patches, tuple(stages), pooled)
        return Projection(config.projection, self.dtype, name="projection")(pooled), out


class InputNorm(nn.Module):
    """Batch normalisation over mel bins with fixed statistics.

    Computes (x - mean) / sqrt(var + eps) * scale + bias.

    `mean` and `var` are parameters, so they are stored, sharded and imported like all others, but they get no gradient.
    Thus a step is a pure function of state and batch, training and inference compute the same function, and clips of a
    batch do not affect each other. Weight decay would still change them, so it must exclude vectors.
    """

    eps: float

    @nn.compact
    def __call__(self, x: Float32[Array, "C T M"]) -> Float32[Array, "C T M"]:
        """Normalises spectrograms."""
        mean = self.param("mean", nn.initializers.constant(INITIAL_MEAN), x.shape[-1:])
        var = self.param("var", nn.initializers.constant(INITIAL_VAR), x.shape[-1:])
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.normal(INITIAL_OFFSET), x.shape[-1:])
        mean, var = jax.lax.stop_gradient((mean, var))
        return (x - mean) * (jax.lax.rsqrt(var + self.eps) * scale) + bias


class Stage(nn.Module):
    """Blocks on one map of patches; then, except in the last stage, patch merging.

    Merging turns each 2 x 2 patches into one of twice the width. The blocks are a Python loop, not a scan, since every
    other block shifts its windows, a stage has few blocks, and all stages differ in shape.
    """

    config: ClapConfig
    index: int
    dtype: Any
    remat: str

    @nn.compact
    def __call__(self, x: Float[Array, "C S S D"]) -> Float[Array, "C _ _ _"]:
        """Returns a map of half the side S and twice the width D; in the last stage, of the same shape."""
        config = self.config
        # A window larger than the map shrinks to the map; a window that covers the map is not shifted.
        window = min(config.window, x.shape[1])
        block_class = Block
        if self.remat != "none":
            block_class = nn.remat(Block, policy=REMAT_POLICIES[self.remat])
        for index in range(config.depths[self.index]):
            shift = window // 2 if index % 2 and window < x.shape[1] else 0
            x = block_class(config, config.heads[self.index], window, shift, self.dtype, name=f"blocks_{index}")(x)
        if self.index == len(config.depths) - 1:
            return x
        # The reference orders the four neighbours column by column.
        x = jnp.concatenate([x[:, row::2, column::2] for column in range(2) for row in range(2)], axis=-1)
        x = _layer_norm(config, "merge_norm")(x)
        return Dense(x.shape[-1] // 2, False, self.dtype, name="merge")(x)


class Block(nn.Module):
    """A pre-norm Transformer block with attention within windows of the map."""

    config: ClapConfig
    heads: int
    window: int
    shift: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "C S S D"]) -> Float[Array, "C S S D"]:
        """Updates the patches of a map."""
        clips, side, _, width = x.shape
        y = _layer_norm(self.config, "attention_norm")(x).astype(self.dtype)
        y = jnp.roll(y, (-self.shift, -self.shift), axis=(1, 2))
        attention = WindowAttention(self.heads, self.window, self.dtype, name="attention")
        mask = shift_mask(side, self.window, self.shift) if self.shift else None
        y = _unpartition(attention(_partition(y, self.window), mask), side, self.window)
        x = x + jnp.roll(y, (self.shift, self.shift), axis=(1, 2))
        y = _layer_norm(self.config, "mlp_norm")(x).astype(self.dtype)
        return x + Mlp(int(width * self.config.mlp_ratio), self.dtype, name="mlp")(y)


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with a learned bias per head and relative position."""

    heads: int
    window: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "C N A D"], mask: Float32[np.ndarray, "N A A"] | None
    ) -> Float[Array, "C N A D"]:
        """Attends within windows.

        Args:
            x: the patches of the windows.
            mask: added to the logits, or None.
        """
        width = x.shape[-1]
        split = (*x.shape[:-1], self.heads, width // self.heads)
        query, key, value = (
            Dense(width, True, self.dtype, name=name)(x).reshape(split) for name in ("query", "key", "value")
        )
        logits = jnp.einsum("cnqhk,cnthk->cnhqt", query, key, preferred_element_type=jnp.float32)
        table = self.param(
            "relative_position_bias", EMBEDDING_INIT, ((2 * self.window - 1) ** 2, self.heads), jnp.float32
        )
        bias = table[relative_position_index(self.window)].transpose(2, 0, 1)
        if mask is not None:
            bias = bias + mask[:, None]
        weights = jax.nn.softmax(logits / np.sqrt(split[-1]) + bias, axis=-1).astype(self.dtype)
        mixed = jnp.einsum("cnhqt,cnthk->cnqhk", weights, value).reshape(x.shape)
        return Dense(width, True, self.dtype, name="output")(mixed)


class Mlp(nn.Module):
    """Two dense layers with an exact GELU between them."""

    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Maps the last axis."""
        hidden = nn.gelu(Dense(self.hidden, True, self.dtype, name="up")(x), approximate=False)
        return Dense(x.shape[-1], True, self.dtype, name="down")(hidden)


class Projection(nn.Module):
    """The reference's `ClapProjectionLayer`: two dense layers with a ReLU between them."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "C D"]) -> Float[Array, "C {self.width}"]:
        """Maps pooled maps to embeddings."""
        hidden = nn.relu(Dense(self.width, True, self.dtype, name="up")(x))
        return Dense(self.width, True, self.dtype, name="down")(hidden)


def check_sizes(config: ClapConfig) -> None:
    """Checks that the sizes of the audio tower fit together.

    The spectrogram must fold into the image, the windows must tile every map, and the heads must divide the widths.

    Raises:
        SailError: if they do not; the message names the settings.
    """
    if not config.depths or len(config.depths) != len(config.heads):
        raise SailError(
            f"model.audio.depths {config.depths} and heads {config.heads} need one entry per stage, and at least one."
        )
    if config.spec_size % config.mel_bins:
        raise SailError(
            f"model.audio.spec_size {config.spec_size} must be a multiple of mel_bins {config.mel_bins}: the "
            "spectrogram is cut into spec_size / mel_bins chunks of time, which are stacked into a square."
        )
    frames, room = num_frames(config.clip_samples, config), config.spec_size**2 // config.mel_bins
    if frames > room:
        raise SailError(
            f"A clip has {frames} frames, but its image has room for {room}; lower model.audio.clip_seconds, or "
            f"raise hop to {config.clip_samples // room + 1}."
        )
    merges = 2 ** (len(config.depths) - 1)
    if config.spec_size % (config.patch_size * merges):
        raise SailError(
            f"model.audio.spec_size {config.spec_size} must be a multiple of patch_size {config.patch_size} times "
            f"{merges}, since each of the {len(config.depths)} stages halves the map of the one before."
        )
    for index, heads in enumerate(config.heads):
        side, width = config.spec_size // config.patch_size // 2**index, config.width * 2**index
        if side % min(config.window, side):
            raise SailError(
                f"Stage {index} of the audio tower has {side} x {side} patches, which windows of model.audio.window "
                f"{config.window} don't tile; choose a window that divides {side}."
            )
        if width % heads:
            raise SailError(f"model.audio.heads[{index}] is {heads}, which doesn't divide the stage's width {width}.")


def fold(mel: Float32[Array, "C T M"], config: ClapConfig) -> Float32[Array, "C {config.spec_size} {config.spec_size}"]:
    """Stretches spectrograms in time and stacks chunks of time into square images, low frequencies first.

    Args:
        mel: spectrograms, T <= spec_size^2 / M.
        config: the size of the image.

    Returns:
        Images; axis 1 is (R, M) merged, axis 2 is time within a chunk.
    """
    clips, frames, bins = mel.shape
    chunks = config.spec_size // bins
    room = config.spec_size * chunks
    if frames < room:
        matrix = bicubic_matrix(frames, room, align_corners=True)
        mel = jnp.einsum("ot,ctm->com", matrix, mel, precision=jax.lax.Precision.HIGHEST)
    mel = mel.reshape(clips, chunks, config.spec_size, bins).transpose(0, 1, 3, 2)
    return mel.reshape(clips, config.spec_size, config.spec_size)


def relative_position_index(window: int) -> Int[np.ndarray, "A A"]:
    """Returns the row of the bias table for each pair of positions in a window."""
    rows, columns = np.divmod(np.arange(window**2), window)
    row_offset = rows[:, None] - rows + window - 1
    column_offset = columns[:, None] - columns + window - 1
    return row_offset * (2 * window - 1) + column_offset


def shift_mask(side: int, window: int, shift: int) -> Float32[np.ndarray, "N A A"]:
    """Returns what is added to the logits of shifted windows.

    It is -100 between patches that only the cyclic shift made neighbours, else 0.
    """
    position = np.arange(side)
    region = (position >= side - window).astype(int) + (position >= side - shift)
    regions = _partition((region[:, None] * 3 + region)[None, :, :, None], window)[0, :, :, 0]
    return np.where(regions[:, None] == regions[:, :, None], 0.0, -100.0).astype(np.float32)


def _partition(x: jax.Array | np.ndarray, window: int) -> jax.Array | np.ndarray:
    """Cuts maps [C, S, S, D] into windows [C, N, W * W, D]."""
    clips, side, _, width = x.shape
    x = x.reshape(clips, side // window, window, side // window, window, width)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(clips, -1, window**2, width)


def _unpartition(x: jax.Array, side: int, window: int) -> jax.Array:
    """Joins windows [C, N, W * W, D] into maps [C, S, S, D]."""
    clips, width = x.shape[0], x.shape[-1]
    x = x.reshape(clips, side // window, side // window, window, window, width)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(clips, side, side, width)


def _patchify(image: jax.Array, patch: int) -> jax.Array:
    """Cuts images [C, side, side] into patches [C, S, S, patch * patch].

    A dense layer on the patches equals the reference's strided convolution.
    """
    clips, side, _ = image.shape
    image = image.reshape(clips, side // patch, patch, side // patch, patch)
    return image.transpose(0, 1, 3, 2, 4).reshape(clips, side // patch, side // patch, patch**2)


def _layer_norm(config: ClapConfig, name: str) -> nn.LayerNorm:
    # The fast variance, E[x^2] - E[x]^2, loses digits.
    return nn.LayerNorm(epsilon=config.norm_eps, dtype=jnp.float32, use_fast_variance=False, name=name)
