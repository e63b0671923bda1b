"""The CLIP-like baseline of arXiv 2510.12709: separate towers whose vectors are averaged.

Axis letters: B pairs, S sides, I = B * S items, F frames on a flat axis, C clips on a flat axis, P patches, N tokens,
D width, V views, R rows of a pair, G groups of pairs (data-parallel shards), E width of sound, H and W height and width
of a frame in pixels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int16, UInt8

from sail_jax.batch import Batch, Outputs, Parts, RowLayout, TokenType, Views
from sail_jax.config.model import ModelConfig
from sail_jax.models.bert import Bert
from sail_jax.models.clap import ClapAudio
from sail_jax.models.media import (
    Embeddings,
    Media,
    filled,
    masked_mean,
    mean_per_item,
    of_media_items,
    sound_vectors,
    tower_outputs,
)
from sail_jax.models.sequence import SequenceHead
from sail_jax.models.transformer import Dense
from sail_jax.models.vit import Vit
from sail_jax.patterns import MODALITIES, OMNI, shown_modalities
from sail_jax.vectors.unit import normalize

# What a tower returns per item: the vector, zero if the item lacks the modality, and whether the item has it.
Tower = tuple[Float32[Array, "I D"], Bool[Array, " I"]]


class DualTower(nn.Module):
    """Embeds items from any subset of frames, text and sound, without fusion.

    This is the baseline of arXiv 2510.12709, sec. 4. Every modality has its own tower; the mean of its output over
    patches, clips or tokens is projected to `config.llm.width`. The vector of an item is the mean of the unit vectors
    of its modalities, so vision and text are combined late and without parameters, as in CLIP.

    Attributes:
        config: sizes of the towers. Only the width of `config.llm` is used, and `config.perceiver` is not.
        groups: number of equal groups of pairs in the batch. The frames and clips of a pair are in the block of its
            group.
    """

    config: ModelConfig
    groups: int = 1

    def setup(self) -> None:
        """Declares the towers and the adapters."""
        config = self.config
        common = {"dtype": jnp.dtype(config.dtype), "remat": config.remat}
        self.vit = Vit(config.vit, **common)
        self.audio = ClapAudio(config.audio, **common)
        self.bert = Bert(config.bert, **common)
        adapter = {"features": config.llm.width, "use_bias": True, "dtype": common["dtype"]}
        self.vision_adapter = Dense(**adapter)
        self.audio_adapter = Dense(**adapter)
        self.text_adapter = Dense(**adapter)
        self.sequence = SequenceHead(config.sequence, config.llm.width, self.groups, common["dtype"])

    def __call__(
        self, batch: Batch, views: Views = ((OMNI,), (OMNI,)), room: int | None = None
    ) -> tuple[Embeddings, Outputs]:
        """Embeds the items of a batch, with the same interface as `OmniEmbedder`.

        The towers run once for all views; each view selects the vectors that are averaged.

        Args:
            batch: arrays of `batch.Batch`.
            views: the views of the query side and of the target side, for example (("VTA", "T"), ("VTA",)). Each view
                gives one embedding. Hard negatives get the views of targets. A batch with one side takes one tuple.
            room: None; this model does not pack.

        Returns:
            z: embeddings of the queries, and of the targets and hard negatives (K = S - 1). They are not normalised.
                Zero if a view shows only the prompt of an item.
            out: `batch.Outputs` without "mask" and "hidden"; its parts are the vectors of the towers.

        Raises:
            SailError: if the sequence is longer than `config.bert.max_positions`.
        """
        sides = batch.tokens.shape[1]
        towers = {"V": self._encode_frames(batch), "T": self._encode_text(batch), "A": self._encode_sound(batch)}
        vectors, has = (jnp.stack([towers[letter][n] for letter in MODALITIES], axis=1) for n in (0, 1))
        layout = RowLayout(views, sides)
        vectors, has = layout.of_items(vectors), layout.of_items(has)
        asked = [[letter in shown_modalities((view,)) for letter in MODALITIES] for _, view in layout.rows]
        shown = has & jnp.array(asked)
        visual, textual = (
            layout.split(vectors[:, :, at] * shown[:, :, at, None]) for at in map(MODALITIES.index, "VT")
        )
        is_filled = layout.split(filled(shown, [view for _, view in layout.rows]))
        parts = Parts(visual, textual, encoded=visual)
        out = Outputs(is_filled, parts, vision=towers["V"][0][:, None], audio=towers["A"][0])
        return self.sequence(layout.split(masked_mean(normalize(vectors), shown)), out, batch.members)

    def frame_outputs(self, frames: UInt8[Array, "F H W 3"]) -> Float32[Array, "F D"]:
        """Returns what the vision tower makes of frames, each by itself: all that the rest of the model reads."""
        return self.vit(frames)[0].mean(axis=1, dtype=jnp.float32)

    def clip_outputs(self, clips: Int16[Array, "C samples"]) -> Float[Array, "C E"]:
        """Returns what the audio tower makes of clips, each by itself: all that the rest of the model reads."""
        return self.audio(clips)[0]

    def _encode_frames(self, batch: Batch) -> Tower:
        items = batch.tokens.shape[0] * batch.tokens.shape[1]
        if batch.frames.shape[0] == 0:
            return jnp.zeros((items, self.config.llm.width)), jnp.zeros(items, bool)
        # All frames have the same number of patches, so the mean of their means is the mean of all patches.
        frames = tower_outputs(self.frame_outputs, batch.frames)
        mean, has = mean_per_item(frames, batch.frame_item, items=items, groups=self.groups)
        return self._shared(batch, self.vision_adapter(mean), has)

    def _encode_sound(self, batch: Batch) -> Tower:
        vector, has = sound_vectors(
            self.clip_outputs, Media.of(batch), groups=self.groups, normalized=self.config.audio.normalize
        )
        return self._shared(batch, self.audio_adapter(vector), has)

    def _shared(self, batch: Batch, vectors: jax.Array, has: jax.Array) -> Tower:
        """Returns the vectors of the items whose media each item has."""
        media_item = Media.of(batch).media_item
        return _present(*(of_media_items(part, media_item, self.groups) for part in (vectors, has)))

    def _encode_text(self, batch: Batch) -> Tower:
        """Embeds the prompt and text of items.

        An item with only a prompt has no text, since all such items would get the same vector.
        """
        tokens, types = (x.reshape(-1, x.shape[-1]) for x in (batch.tokens, batch.token_types))
        text = types == TokenType.TEXT
        tokens, mask = _compact(tokens, text | (types == TokenType.PROMPT))
        hidden, _ = self.bert(tokens, mask)
        return _present(self.text_adapter(masked_mean(hidden.astype(jnp.float32), mask)), text.any(axis=-1))


def _present(vectors: jax.Array, has: jax.Array) -> Tower:
    return jnp.where(has[:, None], vectors.astype(jnp.float32), 0.0), has


def _compact(tokens: jax.Array, keep: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Moves the kept tokens to the front in order, followed by zeros: [I, N], [I, N] bool -> the same shapes."""
    order = jnp.argsort(~keep, axis=-1, stable=True)
    tokens, keep = (jnp.take_along_axis(x, order, axis=-1) for x in (tokens, keep))
    return jnp.where(keep, tokens, 0), keep
