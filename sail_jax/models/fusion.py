"""The omni-modal embedder: the towers' tokens fused by a bidirectional LLM (arXiv 2510.12709, sec. 3.2).

Axes: B pairs, S sides, I = B * S items, F frames on a flat axis, C clips on a flat axis, P patches, N tokens, L latents,
D width, V views, G groups of pairs (data-parallel shards), M frame slots of an item.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sail_jax.items import OMNI, Batch, TokenType, shown_modalities
from sail_jax.model_config import ModelConfig
from sail_jax.models.clap import ClapAudio
from sail_jax.models.llm import Llm
from sail_jax.models.media import (
    TYPES,
    Views,
    by_view,
    filled,
    frames_to_slots,
    masked_mean,
    per_row,
    rows_of_views,
    sound_vectors,
)
from sail_jax.models.perceiver import Perceiver
from sail_jax.models.transformer import Dense
from sail_jax.models.vit import Vit


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

    def __call__(self, batch: Batch, views: Views = ((OMNI,), (OMNI,))) -> tuple[tuple[jax.Array, ...], dict[str, Any]]:
        """Embeds the items of a batch.

        The towers run once; the fusion runs once over all views of all sides. A position that a view does not show, or
        that stands for media the item lacks, takes no part in attention, in the positions, or in the mean.

        Args:
            batch: arrays of `items.Batch`.
            views: those of the query side and of the target side, for example (("VTA", "T"), ("VTA",)); each gives an
                embedding of its own. Hard negatives are seen as targets are. A batch with one side takes one tuple.

        Returns:
            z: ([V, B, D] of queries, [V, B, S - 1, D] of targets and hard negatives) float32, not normalised; zeros where
                a view shows nothing of the item but the prompt.
            out: in the layout of `z`: "filled" bool, whether the item has what the view asks for; "visual" and "textual",
                the means over the visual and over the text positions, zeros where there are none; "encoded", the
                mean of the vision tokens as the LLM receives them, where the view shows them. And "vision" [I, L, D], "audio" [I, D], "mask"
                [B, R, N] bool and "hidden" [B, R, N, D], with R rows per pair as `media.rows_of_views` lays them out.
        """
        pairs, sides, length = batch.tokens.shape
        items = pairs * sides
        tokens, types = (x.reshape(items, length) for x in (batch.tokens, batch.token_types))
        vision, has_vision = self._encode_frames(batch, items)
        sound, has_audio = sound_vectors(self.audio, batch, groups=self.groups)
        audio = self.audio_adapter(sound)
        embeddings = self.llm.embed(tokens)
        embeddings = _fill(embeddings, types == TokenType.VISION, vision)
        embeddings = _fill(embeddings, types == TokenType.AUDIO, audio[:, None])
        present = types != TokenType.PAD
        present &= (types != TokenType.VISION) | has_vision[:, None]
        present &= (types != TokenType.AUDIO) | has_audio[:, None]
        rows = rows_of_views(views, sides)
        types = per_row(types, rows, sides)
        mask = per_row(present, rows, sides)
        mask &= jnp.stack([_shown(types[:, row], view) for row, (_, view) in enumerate(rows)], axis=1)
        hidden = self._fuse(per_row(embeddings, rows, sides), mask)
        states = jnp.tanh(hidden.astype(jnp.float32))
        z = masked_mean(states, mask)
        # A prompt alone would give every such item the same vector, which search would find.
        z = jnp.where((mask & (types != TokenType.PROMPT)).any(-1)[..., None], z, 0.0)
        has = jnp.stack([(mask & (types == kind)).any(-1) for kind in TYPES.values()], axis=-1)
        of_rows = {
            "filled": filled(has, [view for _, view in rows]),
            "visual": masked_mean(states, mask & (types == TokenType.VISION)),
            "textual": masked_mean(states, mask & (types == TokenType.TEXT)),
            "encoded": per_row(vision.astype(jnp.float32).mean(1), rows, sides) * has[..., :1],
        }
        out = {name: by_view(value, views, sides) for name, value in of_rows.items()}
        out |= {"vision": vision, "audio": audio, "mask": mask, "hidden": hidden}
        return by_view(z, views, sides), out

    def _fuse(self, embeddings: jax.Array, mask: jax.Array) -> jax.Array:
        """Runs the LLM once over all rows: [B, R, N, D], [B, R, N] -> [B, R, N, D]."""
        flat_mask = mask.reshape(-1, mask.shape[-1])
        # Positions count valid tokens alone, so that what is left out leaves no gap.
        positions = jnp.maximum(jnp.cumsum(flat_mask, axis=-1) - 1, 0).astype(jnp.int32)
        hidden, _ = self.llm(embeddings.reshape(*flat_mask.shape, -1), positions, flat_mask)
        return hidden.reshape(*mask.shape, -1)

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


def _shown(types: jax.Array, view: str) -> jax.Array:
    """Positions that a view shows: the prompt and its modalities."""
    shown = types == TokenType.PROMPT
    for letter in shown_modalities((view,)):
        shown |= types == TYPES[letter]
    return shown


def _fill(embeddings: jax.Array, at: jax.Array, media: jax.Array) -> jax.Array:
    """Puts the k-th media token of an item at its k-th media position: [I, N, D], [I, N] bool, [I, L, D]."""
    # Positions before the first media token count -1; they are not filled, but the index has to be in range.
    order = jnp.clip(jnp.cumsum(at, axis=-1) - 1, 0, media.shape[1] - 1)
    filling = jnp.take_along_axis(media.astype(embeddings.dtype), order[..., None], axis=1)
    return jnp.where(at[..., None], filling, embeddings)
