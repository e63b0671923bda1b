"""Our settings as configs of transformers' classes, for the config.json of an exported model."""

from typing import Any

from transformers import Aimv2VisionConfig, ClapAudioConfig, Qwen2Config, Qwen3Config, SiglipVisionConfig
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

from sail_jax.config.model import ClapConfig, LlmConfig, ModelConfig, VitConfig
from sail_jax.errors import SailError


def llm_config(config: LlmConfig) -> dict[str, Any]:
    """The config of Qwen2Model or Qwen3Model.

    Raises:
        SailError: neither class supports our settings.
    """
    classes = {(True, False): Qwen2Config, (False, True): Qwen3Config}
    cls = classes.get((config.qkv_bias, config.qk_norm))
    if cls is None:
        raise SailError(
            f"config.model.llm has qkv_bias={config.qkv_bias} and qk_norm={config.qk_norm}, which no class of "
            "transformers supports: Qwen2 has only the bias, Qwen3 only the norm."
        )
    return cls(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.mlp_width,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        rms_norm_eps=config.norm_eps,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    ).to_dict()


def vision_config(config: VitConfig) -> dict[str, Any]:
    """The config of Aimv2VisionModel, SiglipVisionModel or InternVLVisionModel."""
    sizes = {
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
    }
    square = {"image_size": config.image_size, "patch_size": config.patch_size}
    if config.kind == "aimv2":
        return Aimv2VisionConfig(**sizes, **square, rms_norm_eps=config.norm_eps, use_head=False).to_dict()
    if config.kind == "siglip":
        return SiglipVisionConfig(**sizes, **square, layer_norm_eps=config.norm_eps, vision_use_head=False).to_dict()
    pairs = {key: [value, value] for key, value in square.items()}
    fixed = {"attention_bias": True, "norm_type": "layer_norm", "use_mean_pooling": True}
    return InternVLVisionConfig(**sizes, **pairs, **fixed, layer_norm_eps=config.norm_eps).to_dict()


def audio_config(config: ClapConfig) -> dict[str, Any]:
    """The config of ClapAudioModelWithProjection.

    Raises:
        SailError: a window is larger than its map, which transformers does not support.
    """
    last = config.spec_size // config.patch_size // 2 ** (len(config.depths) - 1)
    if last < config.window:
        raise SailError(
            f"config.model.audio.window is {config.window}, larger than the last map, {last} x {last}, which "
            "transformers' CLAP does not support. Train with a window of at most that size to export."
        )
    return ClapAudioConfig(
        window_size=config.window,
        num_mel_bins=config.mel_bins,
        spec_size=config.spec_size,
        patch_size=config.patch_size,
        patch_stride=[config.patch_size, config.patch_size],
        patch_embeds_hidden_size=config.width,
        hidden_size=config.width * 2 ** (len(config.depths) - 1),
        projection_dim=config.projection,
        depths=list(config.depths),
        num_attention_heads=list(config.heads),
        num_hidden_layers=len(config.depths),
        mlp_ratio=config.mlp_ratio,
        layer_norm_eps=config.norm_eps,
    ).to_dict()


def perceiver_config(config: ModelConfig) -> dict[str, Any]:
    """The sizes of the Visual Perceiver, and settings that its parameters do not show."""
    keys = ("latents", "width", "layers", "heads", "mlp_width", "max_frames", "attention")
    return {key: getattr(config.perceiver, key) for key in keys} | {"vision_width": config.vit.width}
