"""The omni-modal embedder: a bidirectional LLM fuses the tokens of the towers.

The source is arXiv 2510.12709, sec. 3.2.

Axis letters: B pairs, S sides, I = B * S items, F frames on a flat axis, C clips on a flat axis, P patches, N tokens, L
latents, D width, V views, R rows of a pair in the fusion, G groups of pairs (data-parallel shards), T places of a group
on the packed axis, E width of sound, H and W height and width of a frame in pixels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int16, UInt8

from sail_jax.batch import Batch, Outputs, Parts, RowLayout, TokenType, Views
from sail_jax.config.model import ModelConfig
from sail_jax.models.clap import ClapAudio
from sail_jax.models.llm import Llm
from sail_jax.models.media import (
    TYPES,
    Embeddings,
    Media,
    chunks_of,
    filled,
    frames_of_items,
    joined_chunks,
    masked_mean,
    of_media_items,
    sound_vectors,
    tower_outputs,
)
from sail_jax.models.packing import pack
from sail_jax.models.perceiver import Perceiver
from sail_jax.models.sequence import SequenceHead
from sail_jax.models.transformer import Dense
from sail_jax.models.vit import Vit
from sail_jax.patterns import OMNI, shown_modalities


class OmniEmbedder(nn.Module):
    """Embeds items from any subset of frames, text and sound, fused by an LLM.

    Attributes:
        config: sizes of the towers.
        groups: number of equal groups of pairs in the batch. The frames and clips of a pair are in the block of its
            group or, if `config.media_chunk` splits groups into chunks, in the block of its chunk.
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
        # What the adapters read has a root mean square of about 1.
        drawn = nn.initializers.variance_scaling(config.media_scale**2, "fan_in", "truncated_normal")
        adapter = {"use_bias": True, "dtype": common["dtype"], "kernel_init": drawn}
        self.vision_adapter = Dense(config.llm.width, **adapter)
        self.audio_adapter = Dense(config.llm.width, **adapter)
        self.sequence = SequenceHead(config.sequence, config.llm.width, self.groups, common["dtype"])

    def __call__(
        self, batch: Batch, views: Views = ((OMNI,), (OMNI,)), room: int | None = None
    ) -> tuple[Embeddings, Outputs]:
        """Embeds the items of a batch.

        The towers run once; the fusion runs once over all views of all sides. Attention, positions and the mean skip
        positions that a view does not show, and those reserved for media that the item lacks.

        Args:
            batch: arrays of `batch.Batch`.
            views: the views of the query side and of the target side, for example (("VTA", "T"), ("VTA",)). Each view
                gives one embedding. Hard negatives get the views of targets. A batch with one side takes one tuple.
            room: T, the number of tokens of a group that the fusion has room for; the rows of a group are packed on one
                axis. A group with more tokens gives NaN. With None, every row has N positions.

        Returns:
            z: embeddings of the queries, and of the targets and hard negatives (K = S - 1). They are not normalised.
                Zero if a view shows only the prompt of an item.
            out: `batch.Outputs` with all fields.
        """
        pairs, sides, length = batch.tokens.shape
        items = pairs * sides
        tokens, types = (x.reshape(items, length) for x in (batch.tokens, batch.token_types))
        vision, has_vision, audio, has_audio = self._encode_media(Media.of(batch), pairs // self.groups)
        embeddings = self.llm.embed(tokens)
        embeddings = _fill(embeddings, types == TokenType.VISION, vision)
        embeddings = _fill(embeddings, types == TokenType.AUDIO, audio[:, None])
        present = types != TokenType.PAD
        present &= (types != TokenType.VISION) | has_vision[:, None]
        present &= (types != TokenType.AUDIO) | has_audio[:, None]
        power = _power(embeddings, types, present).reshape(pairs, sides, len(TYPES), 2).sum(1)
        layout = RowLayout(views, sides)
        types, mask = layout.of_items(types), layout.of_items(present)
        mask &= jnp.stack([_shown(types[:, row], view) for row, (_, view) in enumerate(layout.rows)], axis=1)
        hidden = self._fuse(layout.of_items(embeddings), mask, room)
        states = jnp.tanh(hidden.astype(jnp.float32))
        content = mask & (types != TokenType.PROMPT)
        z = masked_mean(states, mask if self.config.pool_prompt else content)
        # With only a prompt, all such items would get the same vector, and search would return them.
        z = jnp.where(content.any(-1)[..., None], z, 0.0)
        has = jnp.stack([(mask & (types == kind)).any(-1) for kind in TYPES.values()], axis=-1)
        parts = Parts(
            visual=layout.split(masked_mean(states, mask & (types == TokenType.VISION))),
            textual=layout.split(masked_mean(states, mask & (types == TokenType.TEXT))),
            encoded=layout.split(layout.of_items(vision.astype(jnp.float32).mean(1)) * has[..., :1]),
        )
        is_filled = layout.split(filled(has, [view for _, view in layout.rows]))
        out = Outputs(is_filled, parts, vision=vision, audio=audio, mask=mask, hidden=hidden, power=power)
        return self.sequence(layout.split(z), out, batch.members)

    def _fuse(self, embeddings: jax.Array, mask: jax.Array, room: int | None) -> jax.Array:
        """Runs the LLM once over all rows: [B, R, N, D], [B, R, N] -> [B, R, N, D]."""
        flat_mask = mask.reshape(-1, mask.shape[-1])
        # Positions count only valid tokens, so that masked tokens leave no gaps.
        positions = jnp.maximum(jnp.cumsum(flat_mask, axis=-1) - 1, 0).astype(jnp.int32)
        embeddings = embeddings.reshape(*flat_mask.shape, -1)
        if room is None:
            hidden, _ = self.llm(embeddings, positions, flat_mask)
            return hidden.reshape(*mask.shape, -1)
        packing, fits = pack(flat_mask, room, self.groups)
        hidden, _ = self.llm(packing.to_flat(embeddings), packing.to_flat(positions), None, packing)
        hidden = packing.to_rows(hidden).reshape(self.groups, -1, *mask.shape[1:], hidden.shape[-1])
        # NaN makes it visible that tokens were dropped.
        return jnp.where(fits[:, None, None, None, None], hidden, jnp.nan).reshape(*mask.shape, -1)

    def _encode_media(self, media: Media, pairs: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Returns vision tokens [I, L, D] and audio tokens [I, D], each with [I] bool: whether the item has it.

        If groups are split into chunks of pairs, the towers encode one chunk after the other, and recompute each in the
        backward pass, so that memory holds the activations of one chunk at a time.
        """
        chunks = self.config.media_chunks(pairs)
        if chunks == 1:
            return self._encode_chunk(media)

        def step(model: "OmniEmbedder", carry: tuple, chunk: Media) -> tuple[tuple, tuple]:
            return carry, model._encode_chunk(chunk)

        broadcast = {"variable_broadcast": ("params", "lora"), "split_rngs": {"params": False}}
        step = nn.remat(step, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False)
        _, encoded = nn.scan(step, **broadcast)(self, (), chunks_of(media, self.groups, chunks))
        return tuple(joined_chunks(part, self.groups) for part in encoded)

    def _encode_chunk(self, media: Media) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        vision, has_vision = self._encode_frames(media)
        normalized = self.config.audio.normalize
        sound, has_sound = sound_vectors(self.clip_outputs, media, groups=self.groups, normalized=normalized)
        encoded = vision, has_vision, self.audio_adapter(sound), has_sound
        return tuple(of_media_items(part, media.media_item, self.groups) for part in encoded)

    def frame_outputs(self, frames: UInt8[Array, "F H W 3"]) -> Float[Array, "F P D"]:
        """Returns what the vision tower makes of frames, each by itself: all that the rest of the model reads."""
        return self.vit(frames)[0]

    def clip_outputs(self, clips: Int16[Array, "C samples"]) -> Float[Array, "C E"]:
        """Returns what the audio tower makes of clips, each by itself: all that the rest of the model reads."""
        return self.audio(clips)[0]

    def _encode_frames(self, media: Media) -> tuple[jax.Array, jax.Array]:
        """Returns the vision tokens [I, L, D] of the frames, and [I] bool: whether the item has any frame."""
        config, width, items = self.config.perceiver, self.config.llm.width, len(media.has_audio_vector)
        if media.frames.shape[0] == 0:
            return jnp.zeros((items, config.latents, width), jnp.dtype(self.config.dtype)), jnp.zeros(items, bool)
        patches = tower_outputs(self.frame_outputs, media.frames)
        frame_of = frames_of_items(
            media.frame_item, media.frame_slot, items=items, slots=config.max_frames, groups=self.groups
        )
        latents, _ = self.perceiver(patches, media.frame_slot, frame_of)
        has_vision = (frame_of < len(media.frames) // self.groups).any(axis=-1).reshape(-1)
        return self.vision_adapter(latents), has_vision


def _power(embeddings: jax.Array, types: jax.Array, present: jax.Array) -> jax.Array:
    """Returns the summed mean squares and the number of the positions of each modality of items, [I, 3, 2]."""
    squares = jnp.square(jax.lax.stop_gradient(embeddings).astype(jnp.float32)).mean(-1)
    at = jnp.stack([present & (types == kind) for kind in TYPES.values()], axis=1)  # [I, 3, N]
    return jnp.stack([jnp.where(at, squares[:, None], 0.0).sum(-1), at.sum(-1, dtype=jnp.float32)], axis=-1)


def _shown(types: jax.Array, view: str) -> jax.Array:
    """Returns which positions a view shows: the prompt and its modalities."""
    shown = types == TokenType.PROMPT
    for letter in shown_modalities((view,)):
        shown |= types == TYPES[letter]
    return shown


def _fill(embeddings: jax.Array, at: jax.Array, media: jax.Array) -> jax.Array:
    """Puts the k-th media token of an item at its k-th media position: [I, N, D], [I, N] bool, [I, L, D]."""
    # Positions before the first media token have index -1; they are not filled, but the index must be in range.
    order = jnp.clip(jnp.cumsum(at, axis=-1) - 1, 0, media.shape[1] - 1)
    filling = jnp.take_along_axis(media.astype(embeddings.dtype), order[..., None], axis=1)
    return jnp.where(at[..., None], filling, embeddings)
