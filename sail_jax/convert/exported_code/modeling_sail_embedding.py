"""SAIL-Embedding in PyTorch (arXiv 2510.12709): one vector from any subset of frames, text and sound.

Vision Transformer and CLAP towers, a Visual Perceiver that summarises the frames, and a Qwen stack, with bidirectional
attention, that fuses the tokens of all modalities.

Axes: B items, N tokens, F frames on a flat axis, C audio clips on a flat axis, V items that have frames, M frame slots
of an item, P patches, L latents, D width, T spectrogram frames, K width of the audio embedding.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, ClapAudioModelWithProjection, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_sail_embedding import SailEmbeddingConfig, TokenType

_NORM_EPS = 1e-6  # of the perceiver


@dataclasses.dataclass
class SailEmbeddingOutput(ModelOutput):
    """What the model returns.

    Attributes:
        embedding: [B, D] float32, not normalised; zeros for an item that shows nothing but the prompt.
    """

    embedding: Tensor | None = None


class SailEmbeddingModel(PreTrainedModel):
    """Embeds what `SailEmbeddingProcessor` returns."""

    config: SailEmbeddingConfig
    main_input_name = "input_ids"
    input_modalities = ("text", "image", "audio")
    _supports_sdpa = True

    def __init__(self, config: SailEmbeddingConfig) -> None:
        super().__init__(config)
        width = config.llm_config.hidden_size
        self.llm = AutoModel.from_config(config.llm_config)
        self.vision = AutoModel.from_config(config.vision_config)
        self.audio = ClapAudioModelWithProjection(config.audio_config)
        self.perceiver = Perceiver(**config.perceiver_config)
        self.vision_adapter = nn.Linear(config.perceiver_config["width"], width)
        self.audio_adapter = nn.Linear(config.audio_config.projection_dim, width)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Perceiver):
            init.normal_(module.latents, std=0.02)
            init.normal_(module.temporal_embedding, std=0.02)

    def get_input_embeddings(self) -> nn.Module:
        """The table of token embeddings."""
        return self.llm.get_input_embeddings()

    def train(self, mode: bool = True) -> "SailEmbeddingModel":
        """Switches to training, but for the audio tower: its statistics are fixed, and it has no dropout."""
        super().train(mode)
        self.audio.eval()
        return self

    def forward(
        self,
        input_ids: Tensor,
        token_types: Tensor,
        pixel_values: Tensor | None = None,
        frame_item: Tensor | None = None,
        frame_slot: Tensor | None = None,
        input_features: Tensor | None = None,
        clip_item: Tensor | None = None,
        audio_vectors: Tensor | None = None,
        has_audio_vector: Tensor | None = None,
    ) -> SailEmbeddingOutput:
        """Embeds the items of a batch; arguments that are None stand for media that no item has.

        Args:
            input_ids: [B, N] token ids; those at positions that are no PROMPT and no TEXT are not looked at.
            token_types: [B, N] `TokenType`; padding may stand anywhere.
            pixel_values: [F, 3, H, W] normalised frames.
            frame_item: [F] row of the item that a frame belongs to.
            frame_slot: [F] temporal position of a frame within its item.
            input_features: [C, 1, T, mel bins] log-mel spectrograms, in dB.
            clip_item: [C] row of the item that a clip belongs to.
            audio_vectors: [B, K] precomputed audio embeddings, which take the place of an item's clips.
            has_audio_vector: [B] bool, the items that `audio_vectors` holds a vector for.
        """
        embeddings = self.llm.get_input_embeddings()(input_ids)
        present = token_types != TokenType.PAD
        vision, has_vision = self._encode_frames(len(input_ids), pixel_values, frame_item, frame_slot)
        embeddings = _fill(embeddings, token_types == TokenType.VISION, vision)
        present &= (token_types != TokenType.VISION) | has_vision[:, None]
        audio, has_audio = self._encode_sound(
            len(input_ids), input_features, clip_item, audio_vectors, has_audio_vector
        )
        embeddings = _fill(embeddings, token_types == TokenType.AUDIO, audio[:, None])
        present &= (token_types != TokenType.AUDIO) | has_audio[:, None]
        hidden = self._fuse(embeddings, present)
        # A prompt alone would give every such item the same vector, which search would find.
        content = present & (token_types != TokenType.PROMPT)
        mean = _masked_mean(hidden.float().tanh(), present if self.config.pool_prompt else content)
        return SailEmbeddingOutput(embedding=mean * content.any(dim=-1, keepdim=True))

    def _fuse(self, embeddings: Tensor, present: Tensor) -> Tensor:
        """Runs the LLM: [B, N, D] embeddings and [B, N] bool positions that take part -> [B, N, D]."""
        # Positions count present tokens alone, so that what is left out leaves no gap.
        positions = (present.cumsum(dim=-1) - 1).clamp(min=0)
        seen = present[:, None, None, :].expand(-1, 1, present.shape[1], -1)
        if self.config.causal:
            seen = seen.tril()
        # Given in full, the mask takes the place of the causal one that the LLM would make.
        mask = torch.zeros(seen.shape, dtype=embeddings.dtype, device=embeddings.device)
        mask = mask.masked_fill(~seen, torch.finfo(embeddings.dtype).min)
        output = self.llm(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False)
        return output.last_hidden_state

    def _encode_frames(
        self, items: int, pixel_values: Tensor | None, frame_item: Tensor | None, frame_slot: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Frames -> ([B, L, D] vision tokens, [B] bool whether the item has any frame)."""
        like = self.vision_adapter.weight
        vision = like.new_zeros(items, self.perceiver.latents.shape[0], like.shape[0])
        has_vision = torch.zeros(items, dtype=torch.bool, device=like.device)
        if pixel_values is None:
            return vision, has_vision
        patches = self.vision(pixel_values.to(like.dtype)).last_hidden_state
        if self.config.vision_config.model_type == "internvl_vision":
            patches = patches[:, 1:]  # without the class token
        rows, row = frame_item.unique(return_inverse=True)
        slots = patches.new_zeros(len(rows), int(frame_slot.max()) + 1, *patches.shape[1:])
        filled = torch.zeros(slots.shape[:2], dtype=torch.bool, device=slots.device)
        slots[row, frame_slot] = patches
        filled[row, frame_slot] = True
        vision[rows] = self.vision_adapter(self.perceiver(slots, filled)).to(vision.dtype)
        has_vision[rows] = True
        return vision, has_vision

    def _encode_sound(
        self,
        items: int,
        input_features: Tensor | None,
        clip_item: Tensor | None,
        audio_vectors: Tensor | None,
        has_audio_vector: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Clips and precomputed vectors -> ([B, D] audio tokens, [B] bool whether the item has sound)."""
        like = self.audio_adapter.weight
        vectors = torch.zeros(items, like.shape[1], device=like.device)
        heard = torch.zeros(items, dtype=torch.bool, device=like.device)
        if input_features is not None:
            clips = self.audio(input_features.to(like.dtype)).audio_embeds.float()
            count = torch.bincount(clip_item, minlength=items)
            vectors = vectors.index_add(0, clip_item, clips) / count.clamp(min=1)[:, None]
            heard = count > 0
        if audio_vectors is not None:
            if audio_vectors.shape != vectors.shape:
                raise ValueError(f"audio_vectors are {[*vectors.shape]}, not {[*audio_vectors.shape]}.")
            vectors = torch.where(has_audio_vector[:, None], audio_vectors.float(), vectors)
            heard = heard | has_audio_vector
        if self.config.normalize_sound:
            vectors = F.normalize(vectors, dim=-1) * vectors.shape[1] ** 0.5
        return self.audio_adapter(vectors.to(like.dtype)), heard


class Perceiver(nn.Module):
    """Learned latents that summarise the patches of all frames of an item, in pre-norm Transformer blocks.

    Args:
        latents: L.
        width: D.
        layers: number of blocks.
        heads: attention heads.
        mlp_width: inner width of the MLPs.
        max_frames: number of temporal positions.
        attention: "joint" or "latents", see `SailEmbeddingConfig`.
        vision_width: width of the patches.

    Raises:
        ValueError: on an unknown kind of attention.
    """

    def __init__(
        self,
        *,
        latents: int,
        width: int,
        layers: int,
        heads: int,
        mlp_width: int,
        max_frames: int,
        attention: str,
        vision_width: int,
    ) -> None:
        super().__init__()
        if attention not in ("joint", "latents"):
            raise ValueError(f"perceiver_config.attention is {attention!r}; choose 'joint' or 'latents'.")
        self.joint = attention == "joint"
        self.latents = nn.Parameter(torch.empty(latents, width))
        self.temporal_embedding = nn.Parameter(torch.empty(max_frames, width))
        self.input_projection = nn.Linear(vision_width, width)
        self.layers = nn.ModuleList(PerceiverBlock(width, heads, mlp_width) for _ in range(layers))
        self.final_norm = nn.LayerNorm(width, eps=_NORM_EPS)

    def forward(self, slots: Tensor, filled: Tensor) -> Tensor:
        """Summarises frames.

        Args:
            slots: [V, M, P, vision_width], the frame in slot m at temporal position m; M at most `max_frames`.
            filled: [V, M] bool, the slots that hold a frame.

        Returns:
            [V, L, D].
        """
        items, frames, patches, _ = slots.shape
        tokens = self.input_projection(slots) + self.temporal_embedding[:frames, None]
        tokens = tokens.flatten(1, 2)
        latents = self.latents.expand(items, -1, -1)
        count = latents.shape[1]
        mask = F.pad(filled.repeat_interleave(patches, dim=1), (count, 0), value=True)[:, None, None]
        updated = torch.cat([latents, tokens], dim=1) if self.joint else latents
        for layer in self.layers:
            updated = layer(updated, None if self.joint else tokens, mask)
        return self.final_norm(updated[:, :count])


class PerceiverBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.attention = PerceiverAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.mlp = PerceiverMlp(width, mlp_width)

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor) -> Tensor:
        """Updates x [V, N, D], with attention to itself and to `context`.

        `context` is [V, S - N, D]; `mask` [V, 1, 1, S] is true for allowed positions.
        """
        normed = self.attention_norm(x)
        source = normed if context is None else torch.cat([normed, self.attention_norm(context)], dim=1)
        x = x + self.attention(normed, source, mask)
        return x + self.mlp(self.mlp_norm(x))


class PerceiverAttention(nn.Module):
    """Multi-head attention with biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        """Lets x [V, N, D] attend to `source` [V, S, D] where `mask` [V, 1, 1, S] is True."""
        query, key, value = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.query(x), self.key(source), self.value(source))
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.output(mixed.transpose(1, 2).flatten(2))


class PerceiverMlp(nn.Module):
    """Two linear layers with the tanh approximation of GELU between them."""

    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, mlp_width)
        self.down = nn.Linear(mlp_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., D] to the same shape."""
        return self.down(F.gelu(self.up(x), approximate="tanh"))


def _fill(embeddings: Tensor, at: Tensor, media: Tensor) -> Tensor:
    """Puts the k-th media token of an item at its k-th media position: [B, N, D], [B, N] bool, [B, L, D]."""
    # Positions before the first media token count -1; they are not filled, but the index has to be in range.
    order = (at.cumsum(dim=-1) - 1).clamp(0, media.shape[1] - 1)
    filling = media.gather(1, order[..., None].expand(-1, -1, media.shape[-1]))
    return torch.where(at[..., None], filling, embeddings)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the positions of the mask: [B, N, D], [B, N] bool -> [B, D]; zeros where there is none."""
    weights = mask[..., None].to(values.dtype)
    return (values * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
