"""Configuration of a SAIL-Embedding model in PyTorch; needs transformers 5.23 or later."""

import enum
from typing import Any

from transformers import AutoConfig, ClapAudioConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec


class TokenType(enum.IntEnum):
    """The kind of a position in the token sequence; the towers fill VISION and AUDIO positions."""

    PAD = 0
    PROMPT = 1
    TEXT = 2
    VISION = 3
    AUDIO = 4


class SailEmbeddingConfig(PreTrainedConfig):
    """Sizes of an omni-modal embedding model.

    Attributes:
        llm_config: the fusion backbone, of model type "qwen2" or "qwen3"; its hidden size is the width of the
            embedding.
        vision_config: the vision tower, of model type "aimv2_vision_model", "siglip_vision_model" or "internvl_vision",
            without a pooling head.
        audio_config: the audio tower, of model type "clap_audio_model".
        perceiver_config: sizes of the Visual Perceiver: "latents", "width", "layers", "heads", "mlp_width",
            "max_frames", "vision_width" (of the patches that it reads), and "attention": "joint" (latents and patches
            attend to each other) or "latents" (the latents alone ask, the patches stay as they are).
        causal: whether a token sees the tokens up to itself alone; by default all tokens see each other.
        normalize_sound: whether the audio embedding of an item is scaled to a root mean square of 1 before its adapter.
        pool_prompt: whether the tokens of the prompt count in the mean that is the embedding.
        embedding_dim: width of the embedding.
        matryoshka_dims: widths at which the embedding may be cut, longest first.
    """

    model_type = "sail_embedding"
    sub_configs_defaults = {
        "llm_config": SubConfigSpec(AutoConfig, "qwen2"),
        "vision_config": SubConfigSpec(AutoConfig, "aimv2_vision_model", {"use_head": False}),
        "audio_config": SubConfigSpec(ClapAudioConfig),
    }
    attribute_map = {"hidden_size": "embedding_dim"}

    llm_config: dict[str, Any] | PreTrainedConfig | None = None
    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    audio_config: dict[str, Any] | PreTrainedConfig | None = None
    perceiver_config: dict[str, Any] | None = None
    causal: bool = False
    normalize_sound: bool = False
    pool_prompt: bool = True
    embedding_dim: int | None = None
    matryoshka_dims: list[int] | tuple[int, ...] = ()
