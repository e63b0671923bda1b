"""The published architectures that can be read: how to recognise and configure them, and their tables.

A checkpoint may hold one tower (Qwen2.5, AIMv2) or several (SAIL-VL, CLAP, SigLIP, a model that we exported). With
several, its config.json has a config for each.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import transformers

from sail_jax.config.model import ClapConfig
from sail_jax.convert import weight_map
from sail_jax.convert.weight_map import Layout
from sail_jax.errors import SailError
from sail_jax.models.clap import relative_position_index

Settings = dict[str, Any]

EXPORTED_TYPE = "sail_embedding"  # the model_type of a model that we exported


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A published tower architecture.

    Attributes:
        tower: which of our towers it is: "llm", "vit", "audio" or "bert".
        settings: config.json of the tower -> the settings of ours that it fixes.
        layouts: the layouts in which it is published; export writes the first.
    """

    tower: str
    settings: Callable[[Mapping[str, Any]], Settings]
    layouts: tuple[Layout, ...]


def _refuse(values: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises SailError if config.json sets values that our modules do not support; absent keys pass."""
    wrong = [f"{key} = {values[key]!r}" for key, fine in allowed.items() if key in values and values[key] not in fine]
    if wrong:
        raise SailError(
            f"The checkpoint's config.json has {', '.join(wrong)}, which our {values.get('model_type')} tower does not "
            "support; choose another checkpoint."
        )


def _qwen(values: Mapping[str, Any]) -> Settings:
    rope = values.get("rope_parameters") or {}
    unknown = sorted(set(rope) - {"rope_type", "type", "rope_theta"})
    third = values["model_type"] == "qwen3"
    _refuse(
        {**values, "rope_type": rope.get("rope_type", rope.get("type", "default")), "rope_parameters": unknown},
        {
            "hidden_act": ("silu",),
            "use_sliding_window": (False, None),
            "layer_types": (None, ["full_attention"] * values["num_hidden_layers"]),
            "rope_scaling": (None, {"rope_type": "default"}, {"type": "default"}),
            "rope_type": ("default",),
            "rope_parameters": ([],),
            "attention_bias": (not third,),
        },
    )
    heads = values["num_attention_heads"]
    return {
        "vocab_size": values["vocab_size"],
        "width": values["hidden_size"],
        "layers": values["num_hidden_layers"],
        "heads": heads,
        "kv_heads": values.get("num_key_value_heads", heads),
        "head_dim": values.get("head_dim") or (128 if third else values["hidden_size"] // heads),
        "mlp_width": values["intermediate_size"],
        "rope_theta": float(rope.get("rope_theta") or values.get("rope_theta", 10_000.0)),
        "norm_eps": values.get("rms_norm_eps", 1e-6),
        "qkv_bias": not third,
        "qk_norm": third,
    }


def _vit(kind: str, norm_eps: tuple[str, float], activation: str) -> Callable[[Mapping[str, Any]], Settings]:
    def settings(values: Mapping[str, Any]) -> Settings:
        fixed = {
            "qkv_bias": (kind == "internvit",),
            "use_bias": (False,),
            "qk_normalization": (False,),
            "is_native": (False,),
            "use_mean_pooling": (True,),
            "use_qk_norm": (False,),
        }
        fixed |= {
            "attention_bias": (kind == "internvit",),
            "norm_type": ("layer_norm",),
            "hidden_act": (activation,),
            "num_channels": (3,),
        }
        _refuse(values, fixed)
        square = {key: _side(key, values[key]) for key in ("image_size", "patch_size")}
        return {
            "kind": kind,
            "width": values["hidden_size"],
            "layers": values["num_hidden_layers"],
            "heads": values["num_attention_heads"],
            "mlp_width": values["intermediate_size"],
            "norm_eps": values.get(*norm_eps),
            **square,
        }

    return settings


def _side(key: str, value: Any) -> int:
    """A size that is stored either once or as [height, width]."""
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise SailError(f"The checkpoint's {key} is {value}; only squares are supported.")
    return sides.pop()


def _clap(values: Mapping[str, Any]) -> Settings:
    _refuse(
        values,
        {
            "hidden_act": ("gelu",),
            "projection_hidden_act": ("relu",),
            "qkv_bias": (True,),
            "enable_patch_layer_norm": (True,),
            "patch_stride": ([values["patch_size"]] * 2,),
        },
    )
    settings = {
        "mel_bins": values.get("num_mel_bins", 64),
        "spec_size": values.get("spec_size", 256),
        "patch_size": values.get("patch_size", 4),
        "width": values.get("patch_embeds_hidden_size", 96),
        "depths": tuple(values.get("depths", (2, 2, 6, 2))),
        "heads": tuple(values.get("num_attention_heads", (4, 8, 16, 32))),
        "window": values.get("window_size", 8),
        "mlp_ratio": float(values.get("mlp_ratio", 4.0)),
        "projection": values.get("projection_dim", 512),
        "norm_eps": values.get("layer_norm_eps", 1e-5),
    }
    # Fused checkpoints were trained on filters of the other mel scale.
    return settings | {"mel_scale": "htk" if values.get("enable_fusion") else "slaney"}


def _bert(values: Mapping[str, Any]) -> Settings:
    _refuse(values, {"hidden_act": ("gelu",), "position_embedding_type": ("absolute",)})
    return {
        "vocab_size": values["vocab_size"],
        "width": values["hidden_size"],
        "layers": values["num_hidden_layers"],
        "heads": values["num_attention_heads"],
        "mlp_width": values["intermediate_size"],
        "max_positions": values["max_position_embeddings"],
        "token_types": values.get("type_vocab_size", 2),
        "norm_eps": values.get("layer_norm_eps", 1e-12),
    }


def _clap_constants(config: ClapConfig) -> Iterator[tuple[str, np.ndarray]]:
    """The buffers that ClapAudioModelWithProjection stores in its file."""
    encoder = "audio_model.audio_encoder"
    yield f"{encoder}.batch_norm.num_batches_tracked", np.zeros((), np.int64)
    index = relative_position_index(config.window).astype(np.int64)
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            yield f"{encoder}.layers.{stage}.blocks.{block}.attention.self.relative_position_index", index


# Prefixes of a tower's module: alone, under a head, in a composite of transformers or SAIL-VL, in an export of ours.
_LLM_AT = ("", "model.", "language_model.model.", "model.language_model.", "llm.")
_VIT_AT = ("", "vision_model.", "model.vision_model.", "vision_tower.", "model.vision_tower.", "vision.")
_AUDIO_AT = ("", "audio.")
_BERT_AT = ("", "bert.")

_QWEN = (Layout("transformers", weight_map.qwen, _LLM_AT),)
_AIMV2 = Architecture(
    "vit",
    _vit("aimv2", ("rms_norm_eps", 1e-5), "silu"),
    (Layout("transformers", weight_map.aimv2, _VIT_AT), Layout("published", weight_map.aimv2_original, _VIT_AT)),
)
_INTERNVIT = Architecture(
    "vit",
    _vit("internvit", ("layer_norm_eps", 1e-6), "gelu"),
    (
        Layout("transformers", weight_map.internvit, _VIT_AT),
        Layout("published", weight_map.internvit_original, _VIT_AT),
    ),
)

# Keys are the `model_type` of a config.json.
ARCHITECTURES: Mapping[str, Architecture] = {
    "qwen2": Architecture("llm", _qwen, _QWEN),
    "qwen3": Architecture("llm", _qwen, _QWEN),
    "aimv2": _AIMV2,
    "aimv2_vision_model": _AIMV2,
    "siglip_vision_model": Architecture(
        "vit",
        _vit("siglip", ("layer_norm_eps", 1e-6), "gelu_pytorch_tanh"),
        (Layout("transformers", weight_map.siglip, _VIT_AT),),
    ),
    "intern_vit_6b": _INTERNVIT,
    "internvl_vision": _INTERNVIT,
    "clap_audio_model": Architecture(
        "audio", _clap, (Layout("transformers", weight_map.clap, _AUDIO_AT, _clap_constants),)
    ),
    "bert": Architecture("bert", _bert, (Layout("transformers", weight_map.bert, _BERT_AT),)),
}

# The keys of a tower's config in a composite's config.json, and the type of tower if that config does not name it.
_SUB_CONFIGS = {"llm": ("llm_config", "text_config"), "vit": ("vision_config",), "audio": ("audio_config",), "bert": ()}
_UNSAID = {"siglip": "siglip_vision_model", "aimv2": "aimv2_vision_model", "clap": "clap_audio_model"}


# transformers omits class defaults from a composite's config.json. Classes stand by name, since importing one imports
# PyTorch where it is installed.
_DEFAULTS = {
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "aimv2_vision_model": "Aimv2VisionConfig",
    "siglip_vision_model": "SiglipVisionConfig",
    "internvl_vision": "InternVLVisionConfig",
    "clap_audio_model": "ClapAudioConfig",
    "bert": "BertConfig",
}


def _completed(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tower's part of config.json with omitted defaults filled in, except those of rotary settings."""
    name = _DEFAULTS.get(part["model_type"])
    defaults = getattr(transformers, name)().to_dict() if name else {}
    return {key: value for key, value in defaults.items() if not key.startswith(("rope", "layer_types"))} | part


def find_architecture(values: Mapping[str, Any], tower: str) -> tuple[Architecture, Mapping[str, Any]] | None:
    """Finds the architecture of a tower in a checkpoint and its part of config.json; None without one."""
    for key in _SUB_CONFIGS[tower]:
        if isinstance(values.get(key), Mapping):
            part = dict(values[key])
            part.setdefault("model_type", _UNSAID.get(values.get("model_type"), ""))
            found = ARCHITECTURES.get(part["model_type"])
            return (found, _completed(part)) if found and found.tower == tower else None
    found = ARCHITECTURES.get(values.get("model_type", ""))
    return (found, _completed(values)) if found and found.tower == tower else None


# Tensors outside of a tower that a checkpoint may have by design of the architectures; any other is an error.
EXEMPT: Mapping[str, str] = {
    "language-model head": r"(^|\.)lm_head\.",
    "rotary frequencies": r"rotary_emb\.inv_freq$",
    "projector of a composite": r"^(model\.)?(mlp1|multi_modal_projector)\.",
    "pooling head": r"^((model\.)?(vision_model|vision_tower)\.)?head\.",
    "final norm after pooling": r"^((model\.)?(vision_model|vision_tower)\.)?layernorm\.",
    "contrastive pair": r"^(text_model\.|(text|visual)_projection\.|logit_(scale|bias))",
    "mask token": r"(^|\.)mask_token$",
    "constant": r"(position_ids|relative_position_index|num_batches_tracked)$",
    "CLAP fusion": r"patch_embed\.(mel_conv2d|fusion_model)\.",
    "BERT heads": r"^(bert\.)?(pooler|cls)\.",
}
_OTHER_TOWERS = {
    "llm": r"^(model\.)?(vision_model|vision_tower|vision|audio|perceiver|vision_adapter|audio_adapter)\.",
    "vit": r"^(model\.)?(language_model|text_model|llm|audio|perceiver|vision_adapter|audio_adapter)\.",
    "audio": r"^(llm|vision|perceiver|vision_adapter|audio_adapter)\.",
    "bert": r"^$",
}


def exemption(name: str, tower: str) -> str | None:
    """Why a tensor of a checkpoint may remain unused when `tower` is read from it; None if it may not."""
    if re.search(_OTHER_TOWERS[tower], name):
        return "other towers of the composite"
    return next((reason for reason, pattern in EXEMPT.items() if re.search(pattern, name)), None)
