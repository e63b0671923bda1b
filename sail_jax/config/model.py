"""Declares the settings of the model: kinds and sizes of its towers."""

import dataclasses

from sail_jax.config.schema import section, setting
from sail_jax.errors import SailError


@dataclasses.dataclass(frozen=True)
class LlmConfig:
    """Settings of the fusion backbone: a Qwen2 or Qwen3 style decoder stack, used as an encoder."""

    vocab_size: int = setting(151936, "rows of the token embedding table; at least the size of the tokenizer", low=1)
    width: int = setting(1536, "hidden width, and width of the embedding", low=1)
    layers: int = setting(28, "number of blocks", low=1)
    heads: int = setting(12, "query heads", low=1)
    kv_heads: int = setting(2, "key and value heads (grouped-query attention)", low=1)
    head_dim: int = setting(128, "width of a head", low=1)
    mlp_width: int = setting(8960, "inner width of the SwiGLU", low=1)
    rope_theta: float = setting(1_000_000.0, "base of the rotary position embedding", above=0)
    norm_eps: float = setting(1e-6, "epsilon of RMSNorm", low=0)
    qkv_bias: bool = setting(True, "bias on query, key and value (Qwen2: True, Qwen3: False)")
    qk_norm: bool = setting(False, "RMSNorm on the heads of query and key (Qwen2: False, Qwen3: True)")
    causal: bool = setting(False, "causal instead of bidirectional attention (an ablation)")


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """Settings of the vision tower, which encodes every frame separately."""

    kind: str = setting(
        "aimv2",
        "'aimv2' (RMSNorm, SwiGLU, no bias), 'siglip' (LayerNorm, GELU, biases) or 'internvit' (as 'siglip', with "
        "LayerScale and a class token, and without a final norm)",
    )
    image_size: int = setting(448, "side in pixels to which frames are resized", low=1)
    patch_size: int = setting(14, "side of a patch in pixels", low=1)
    width: int = setting(1024, "hidden width", low=1)
    layers: int = setting(24, "number of blocks", low=1)
    heads: int = setting(8, "attention heads", low=1)
    mlp_width: int = setting(2816, "inner width of the MLP", low=1)
    norm_eps: float = setting(1e-5, "epsilon of the norms", low=0)
    image_mean: tuple[float, ...] = setting(
        (0.48145466, 0.4578275, 0.40821073), "mean of the pixels in [0, 1], per channel"
    )
    image_std: tuple[float, ...] = setting(
        (0.26862954, 0.26130258, 0.27577711), "deviation of the pixels, per channel", above=0
    )

    @property
    def patches(self) -> int:
        """Returns the number of patches per frame."""
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class PerceiverConfig:
    """Settings of the Visual Perceiver, whose latents summarise the patches of all frames of an item."""

    latents: int = setting(16, "number of latent query tokens, which are the vision tokens of the LLM", low=1)
    width: int = setting(1024, "latent width", low=1)
    layers: int = setting(6, "number of blocks", low=1)
    heads: int = setting(16, "attention heads", low=1)
    mlp_width: int = setting(4096, "inner width of the MLP", low=1)
    max_frames: int = setting(8, "frames of an item that are used; also the number of temporal positions", low=1)
    attention: str = setting(
        "joint",
        "'joint': latents and patches attend to each other; 'latents': only the latents attend, patches stay fixed",
    )
    attention_block: int = setting(
        0, "queries per block of the attention, to bound its memory; 0 computes all at once", low=0, may_change=True
    )


@dataclasses.dataclass(frozen=True)
class ClapConfig:
    """Settings of the audio tower: CLAP's HTSAT on a log-mel spectrogram computed on the device."""

    sample_rate: int = setting(48_000, "samples per second", low=1)
    clip_seconds: float = setting(
        10.0, "seconds of a clip; shorter sound is repeated and padded, longer sound is cut into clips", above=0
    )
    n_fft: int = setting(1024, "samples of the Fourier window", low=2)
    hop: int = setting(480, "samples between two windows", low=1)
    mel_bins: int = setting(64, "mel filters", low=1)
    f_min: float = setting(50.0, "lowest frequency of the filters in Hz")
    f_max: float = setting(14_000.0, "highest frequency of the filters in Hz")
    mel_scale: str = setting(
        "slaney",
        "'slaney': filters of unit area on Slaney's scale (unfused CLAP); 'htk': of height one on HTK's (fused CLAP)",
        choices=("slaney", "htk"),
    )
    spec_size: int = setting(256, "side of the square image into which the spectrogram is folded", low=1)
    patch_size: int = setting(4, "side of a patch of that image", low=1)
    width: int = setting(96, "width of the first stage; doubled at each of the others", low=1)
    depths: tuple[int, ...] = setting((2, 2, 6, 2), "blocks per stage", low=1)
    heads: tuple[int, ...] = setting((4, 8, 16, 32), "attention heads per stage", low=1)
    window: int = setting(8, "side of an attention window in patches", low=1)
    mlp_ratio: float = setting(4.0, "inner width of the MLP over the width", above=0)
    projection: int = setting(512, "width of the audio embedding", low=1)
    norm_eps: float = setting(1e-5, "epsilon of the norms", low=0)
    normalize: bool = setting(
        False,
        "whether an item's vector is scaled to a root mean square of 1 before its adapter, so that sound enters the "
        "LLM at the scale of frames and text, whatever that of the tower or of ingested vectors is",
    )
    max_clips: int = setting(6, "clips of an item that are used; later sound is ignored", low=1)

    @property
    def clip_samples(self) -> int:
        """Returns the number of samples per clip."""
        return int(round(self.clip_seconds * self.sample_rate))


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Settings of the text tower of the CLIP-like baseline: a BERT encoder."""

    vocab_size: int = setting(30_522, "rows of the word embedding table; at least the size of the tokenizer", low=1)
    width: int = setting(768, "hidden width", low=1)
    layers: int = setting(12, "number of blocks", low=1)
    heads: int = setting(12, "attention heads", low=1)
    mlp_width: int = setting(3072, "inner width of the MLP", low=1)
    max_positions: int = setting(512, "number of learned positions: the maximum length of a token sequence", low=1)
    token_types: int = setting(2, "rows of the token type table; the first is used for all tokens", low=1)
    norm_eps: float = setting(1e-12, "epsilon of the norms", low=0)


@dataclasses.dataclass(frozen=True)
class SequenceConfig:
    """Settings of the pooling of a history's vectors into one (arXiv 2510.12709, sec. 3.3.5)."""

    pooling: str = setting(
        "mean",
        "'mean': the mean of the items' unit vectors; 'transformer': the output of a transformer over them at a "
        "special token",
        choices=("mean", "transformer"),
    )
    layers: int = setting(3, "blocks of the transformer", low=1)
    heads: int = setting(12, "attention heads", low=1)
    mlp_width: int = setting(4096, "inner width of the MLP", low=1)
    max_items: int = setting(100, "maximum number of items of a history; also the number of positions", low=1)
    learn_history: bool = setting(
        True, "whether the gradient flows through the items of the history too; if False, only through the target"
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Settings of the omni-modal model (arXiv 2510.12709, sec. 3.2)."""

    llm: LlmConfig = section(LlmConfig, "fusion backbone")
    vit: VitConfig = section(VitConfig, "vision tower")
    perceiver: PerceiverConfig = section(PerceiverConfig, "Visual Perceiver")
    audio: ClapConfig = section(ClapConfig, "audio tower")
    kind: str = setting(
        "fusion",
        "'fusion': the LLM fuses the tokens of all modalities; 'dual_tower': a CLIP-like baseline with a BERT text "
        "tower, which only averages the vectors of its towers",
        choices=("fusion", "dual_tower"),
    )
    bert: BertConfig = section(BertConfig, "text tower of the dual tower")
    sequence: SequenceConfig = section(SequenceConfig, "pooling of a history's items into one vector")
    media_scale: float = setting(
        0.02,
        "root mean square with which new adapters let frames and sound into the LLM (only 'fusion'); that of new token "
        "embeddings is 0.02",
        above=0,
    )
    pool_prompt: bool = setting(
        True, "whether the tokens of the prompt count in the mean that is an item's vector (only 'fusion')"
    )
    dtype: str = setting(
        "bfloat16", "type of the computation; parameters are always float32", choices=("float32", "bfloat16", "float16")
    )
    media_chunk: int = setting(
        0,
        "pairs of a device that the vision and audio towers process at a time, in the backward pass too: bounds their "
        "memory at the cost of one more forward pass of the towers; 0 for all (only 'fusion')",
        low=0,
        may_change=True,
    )
    remat: str = setting(
        "none",
        "rematerialisation of the blocks: 'none', 'dots' (keeps the outputs of matrix products and of attention) or "
        "'full' (keeps those of attention)",
        may_change=True,
    )

    def media_chunks(self, pairs: int) -> int:
        """Returns the number of chunks into which the pairs that a device encodes at once are cut.

        Raises:
            SailError: `media_chunk` does not divide the number of pairs.
        """
        if self.kind != "fusion" or not 0 < self.media_chunk < pairs:
            return 1
        if pairs % self.media_chunk:
            raise SailError(
                f"config.model.media_chunk is {self.media_chunk}, which does not divide the {pairs} pairs of a device "
                "(of a micro-batch on it); choose a divisor."
            )
        return pairs // self.media_chunk

    @property
    def text_tower(self) -> str:
        """Returns the part of the model that embeds the text tokens: "llm" or "bert"."""
        return {"fusion": "llm", "dual_tower": "bert"}[self.kind]

    @property
    def text_vocab(self) -> int:
        """Returns the number of tokens that the model can embed; the tokenizer may not have more."""
        return getattr(self, self.text_tower).vocab_size
