"""The omni-modal embedder: the towers' tokens fused by a bidirectional LLM (arXiv 2510.12709, sec. 3.2).

Axes: B pairs, S sides, I = B * S items, F frames on a flat axis, C clips on a flat axis, P patches, N tokens, L latents,
D width, V views, G groups of pairs (data-parallel shards), M frame slots of an item.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sail_jax.config import ModelConfig
from sail_jax.items import Batch, TokenType
from sail_jax.models.clap import ClapAudio
from sail_jax.models.llm import Llm
from sail_jax.models.perceiver import Perceiver
from sail_jax.models.transformer import Dense
from sail_jax.models.vit import Vit

_TYPES = {"V": TokenType.VISION, "T": TokenType.TEXT, "A": TokenType.AUDIO}
ALL = ("VTA",)


class OmniEmbedder(nn.Module):
    """One vector per item from any subset of frames, text and sound.

    Attributes:
        config: sizes of the towers.
        groups: equal groups of pairs in the batch; the frames and clips of a pair lie in the block of its group.
    """

    config: ModelConfig
    groups: int = 1

    def setup(self) -> None:
        """Declares the towers and the adapters."""
        config = self.config
        common = {"dtype": jnp.dtype(config.dtype), "remat": config.remat}
        self.vit = Vit(config.vit, **common)
        self.perceiver = Perceiver(config.perceiver, **common)
        self.audio = ClapAudio(config.audio, **common)
        self.llm = Llm(config.llm, **common)
        self.vision_adapter = Dense(config.llm.width, use_bias=True, dtype=common["dtype"])
        self.audio_adapter = Dense(config.llm.width, use_bias=True, dtype=common["dtype"])

    def __call__(self, batch: Batch, views: Sequence[str] = ALL) -> tuple[jax.Array, dict[str, Any]]:
        """Embeds the items of a batch.

        The towers run once; the fusion runs once over all views. A position that a view does not show, or that stands
        for media the item lacks, takes no part in attention, in the positions, or in the mean.

        Args:
            batch: arrays of `items.Batch`.
            views: modality sets, for example ("VTA", "T"); each gives an embedding of its own.

        Returns:
            z: [V, B, S, D] float32, not normalised; zeros where a view shows nothing of the item but the prompt.
            out: "vision" [I, L, D], "audio" [I, D], "mask" [V, I, N] bool, "hidden" [V, I, N, D].
        """
        pairs, sides, length = batch.tokens.shape
        items = pairs * sides
        tokens, types = (x.reshape(items, length) for x in (batch.tokens, batch.token_types))
        vision, has_vision = self._encode_frames(batch, items)
        audio, has_audio = self._encode_sound(batch, items)
        embeddings = self.llm.embed(tokens)
        embeddings = _fill(embeddings, types == TokenType.VISION, vision)
        embeddings = _fill(embeddings, types == TokenType.AUDIO, audio[:, None])
        present = types != TokenType.PAD
        present &= (types != TokenType.VISION) | has_vision[:, None]
        present &= (types != TokenType.AUDIO) | has_audio[:, None]
        mask = jnp.stack([present & _shown(types, view) for view in views])
        hidden = self._fuse(embeddings, mask)
        z = masked_mean(jnp.tanh(hidden.astype(jnp.float32)), mask)
        # A prompt alone would give every such item the same vector, which search would find.
        z = jnp.where((mask & (types != TokenType.PROMPT)).any(-1)[..., None], z, 0.0)
        out = {"vision": vision, "audio": audio, "mask": mask, "hidden": hidden}
        return z.reshape(len(views), pairs, sides, -1), out

    def _fuse(self, embeddings: jax.Array, mask: jax.Array) -> jax.Array:
        """Runs the LLM once over the stacked views: [I, N, D], [V, I, N] -> [V, I, N, D]."""
        views, items, length = mask.shape
        flat_mask = mask.reshape(views * items, length)
        # Positions count valid tokens alone, so that what is left out leaves no gap.
        positions = jnp.maximum(jnp.cumsum(flat_mask, axis=-1) - 1, 0).astype(jnp.int32)
        hidden, _ = self.llm(jnp.tile(embeddings, (views, 1, 1)), positions, flat_mask)
        return hidden.reshape(views, items, length, -1)

    def _encode_frames(self, batch: Batch, items: int) -> tuple[jax.Array, jax.Array]:
        """Frames -> ([I, L, D] vision tokens, [I] bool whether the item has any frame)."""
        config, width = self.config.perceiver, self.config.llm.width
        dtype = jnp.dtype(self.config.dtype)
        if batch.frames.shape[0] == 0:
            return jnp.zeros((items, config.latents, width), dtype), jnp.zeros(items, bool)
        patches, _ = self.vit(batch.frames)
        slots, filled = frames_to_slots(
            patches, batch.frame_item, batch.frame_slot, items=items, slots=config.max_frames, groups=self.groups
        )
        latents, _ = self.perceiver(slots, filled)
        return self.vision_adapter(latents), filled.any(axis=-1)

    def _encode_sound(self, batch: Batch, items: int) -> tuple[jax.Array, jax.Array]:
        """Clips or precomputed vectors -> ([I, D] audio tokens, [I] bool whether the item has sound)."""
        given = batch.has_audio_vector.reshape(items)
        vector = batch.audio_vectors.reshape(items, -1)
        heard = jnp.zeros(items, bool)
        if batch.clips.shape[0] > 0:
            clips, _ = self.audio(batch.clips)
            mean, heard = mean_per_item(clips, batch.clip_item, items=items, groups=self.groups)
            vector = jnp.where(given[:, None], vector, mean)
        return self.audio_adapter(vector), given | heard


def example_batch(config: ModelConfig, pairs: int = 1, tokens: int = 8) -> Batch:
    """A batch of zeros with every modality, for initialisation and abstract evaluation; sides of `tokens` positions."""
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
        valid=jnp.ones((pairs, 2), bool),
        dataset=jnp.zeros(pairs, jnp.int32),
    )


def init_params(config: ModelConfig, seed: int) -> Any:
    """Fresh parameters, float32, a function of the seed alone; trace or jit it, as it computes at full size."""
    return OmniEmbedder(config).init(jax.random.key(seed), example_batch(config))["params"]


def _shown(types: jax.Array, view: str) -> jax.Array:
    """Positions that a view shows: the prompt and its modalities."""
    shown = types == TokenType.PROMPT
    for letter in view:
        shown |= types == _TYPES[letter]
    return shown


def _fill(embeddings: jax.Array, at: jax.Array, media: jax.Array) -> jax.Array:
    """Puts the k-th media token of an item at its k-th media position: [I, N, D], [I, N] bool, [I, L, D]."""
    # Positions before the first media token count -1; they are not filled, but the index has to be in range.
    order = jnp.clip(jnp.cumsum(at, axis=-1) - 1, 0, media.shape[1] - 1)
    filling = jnp.take_along_axis(media.astype(embeddings.dtype), order[..., None], axis=1)
    return jnp.where(at[..., None], filling, embeddings)


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the valid positions: [..., N, D], [..., N] bool -> [..., D]; zeros where nothing is valid."""
    weights = mask[..., None].astype(values.dtype)
    return (values * weights).sum(-2) / jnp.maximum(weights.sum(-2), 1)


def frames_to_slots(
    patches: jax.Array, frame_item: jax.Array, frame_slot: jax.Array, *, items: int, slots: int, groups: int
) -> tuple[jax.Array, jax.Array]:
    """Brings the flat frames to their items.

    Args:
        patches: [F, P, D].
        frame_item: [F] int32 index of the item within the group, -1 at padding.
        frame_slot: [F] int32 slot within the item.
        items: I.
        slots: M, slots per item.
        groups: G.

    Returns:
        [I, M, P, D] with zeros in empty slots, and [I, M] bool, the filled slots.
    """
    per_group, block = items // groups * slots, patches.shape[0] // groups

    def one_group(block_patches: jax.Array, item: jax.Array, slot: jax.Array) -> tuple[jax.Array, jax.Array]:
        place = jnp.where(item >= 0, item * slots + slot, per_group)
        source = jnp.full(per_group, block, jnp.int32).at[place].set(jnp.arange(block, dtype=jnp.int32), mode="drop")
        return jnp.take(block_patches, source, axis=0, mode="fill", fill_value=0), source < block

    grouped = [x.reshape(groups, block, *x.shape[1:]) for x in (patches, frame_item, frame_slot)]
    placed, filled = jax.vmap(one_group)(*grouped)
    return placed.reshape(items, slots, *patches.shape[1:]), filled.reshape(items, slots)


def mean_per_item(
    vectors: jax.Array, vector_item: jax.Array, *, items: int, groups: int
) -> tuple[jax.Array, jax.Array]:
    """Mean of the vectors of each item: [C, K], [C] index within the group or -1 -> ([I, K], [I] bool any)."""
    per_group, block = items // groups, vectors.shape[0] // groups

    def one_group(block_vectors: jax.Array, item: jax.Array) -> tuple[jax.Array, jax.Array]:
        place = jnp.where(item >= 0, item, per_group)
        total = jax.ops.segment_sum(block_vectors.astype(jnp.float32), place, per_group + 1)[:-1]
        count = jax.ops.segment_sum(jnp.ones(block), place, per_group + 1)[:-1]
        return total / jnp.maximum(count, 1)[:, None], count > 0

    mean, heard = jax.vmap(one_group)(vectors.reshape(groups, block, -1), vector_item.reshape(groups, block))
    return mean.reshape(items, -1), heard.reshape(items)
