"""The tables against the published models at full size, built abstractly from config.json: each tensor is mapped."""

import jax
import numpy as np
import pytest
import tiny
import torch
import transformers
from test_from_hf import CONFIGS, module_and_inputs
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from sail_jax import config as config_lib
from sail_jax.convert.architectures import exemption, find_architecture
from sail_jax.convert.from_hf import plan_rows
from sail_jax.sharding.parameters import path_name

# What config.json of the published repositories says of sizes and variants.
PUBLISHED = {
    "Qwen2.5-1.5B": {
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "max_position_embeddings": 131072,
        "max_window_layers": 28,
        "num_attention_heads": 12,
        "num_hidden_layers": 28,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "Qwen3-1.7B": {
        "model_type": "qwen3",
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "aimv2-large-patch14-448": {
        "model_type": "aimv2",
        "hidden_size": 1024,
        "image_size": 448,
        "intermediate_size": 2816,
        "num_attention_heads": 8,
        "num_channels": 3,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dropout": 0.0,
        "qkv_bias": False,
        "rms_norm_eps": 1e-05,
        "use_bias": False,
    },
    "siglip-so400m-patch14-384": {
        "model_type": "siglip",
        "text_config": {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
        },
        "vision_config": {
            "hidden_size": 1152,
            "image_size": 384,
            "intermediate_size": 4304,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "patch_size": 14,
        },
    },
    "InternViT-300M-448px": {
        "model_type": "intern_vit_6b",
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "image_size": 448,
        "intermediate_size": 4096,
        "layer_norm_eps": 1e-06,
        "norm_type": "layer_norm",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "qk_normalization": False,
        "qkv_bias": True,
    },
    "clap-htsat-unfused": {
        "model_type": "clap",
        "projection_dim": 512,
        "audio_config": {
            "model_type": "clap_audio_model",
            "depths": [2, 2, 6, 2],
            "enable_fusion": False,
            "enable_patch_layer_norm": True,
            "hidden_act": "gelu",
            "hidden_size": 768,
            "layer_norm_eps": 1e-05,
            "mlp_ratio": 4.0,
            "num_attention_heads": [4, 8, 16, 32],
            "num_mel_bins": 64,
            "patch_embeds_hidden_size": 96,
            "patch_size": 4,
            "patch_stride": [4, 4],
            "projection_dim": 512,
            "projection_hidden_act": "relu",
            "qkv_bias": True,
            "spec_size": 256,
            "window_size": 8,
        },
        "text_config": {"model_type": "clap_text_model"},
    },
}


def qwen2(values):
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**values))


def qwen3(values):
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**values))


def aimv2(values):
    return transformers.Aimv2VisionModel(transformers.Aimv2VisionConfig(**values))


def siglip(values):
    return transformers.SiglipModel(transformers.SiglipConfig(**values))


def internvit(values):
    sizes = values | {key: [values[key]] * 2 for key in ("image_size", "patch_size")}
    return InternVLVisionModel(InternVLVisionConfig(**sizes, attention_bias=True))


def clap(values):
    return transformers.ClapModel(transformers.ClapConfig(**values))


CASES = {
    "Qwen2.5-1.5B": ("llm", qwen2, 1_543_714_304),
    "Qwen3-1.7B": ("llm", qwen3, 1_720_574_976),
    "aimv2-large-patch14-448": ("vit", aimv2, 309_984_256),
    "siglip-so400m-patch14-384": ("vit", siglip, 412_987_248),
    "InternViT-300M-448px": ("vit", internvit, 304_012_288),
    "clap-htsat-unfused": ("audio", clap, 28_191_000),
}


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_of_the_published_size_has_its_place(name):
    tower, build, parameters = CASES[name]
    architecture, part = find_architecture(PUBLISHED[name], tower)
    config = CONFIGS[tower](**architecture.settings(part))
    module, inputs = module_and_inputs(tower, config)
    abstract = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    with torch.device("meta"):
        model = build({k: v for k, v in PUBLISHED[name].items() if k != "model_type"})
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}

    layout = architecture.layouts[0]
    anchor = layout.rows(config)[0].theirs
    prefix = next(p for p in layout.prefixes if p + anchor in shapes)
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(abstract)[0]}
    plan = plan_rows(layout.rows(config), prefix, leaves)
    used = {tensor for entry in plan.values() for tensor in entry.names}
    assert {tensor: entry.expected() for entry in plan.values() for tensor in entry.names} == {
        t: shapes[t] for t in used
    }
    assert [tensor for tensor in shapes if tensor not in used and exemption(tensor, tower) is None] == []
    assert sum(leaf.size for leaf in leaves.values()) == parameters
    assert sum(int(np.prod(shapes[tensor])) for tensor in used) == parameters


def test_the_full_size_config_fits_the_checkpoints_it_names():
    config = config_lib.load(tiny.REPO / "configs" / "sail_1b5.py")
    for tower, source in config.init_from.items():
        architecture, part = find_architecture(PUBLISHED[source.rpartition("/")[2]], tower)
        settings = architecture.settings(part)
        assert {key: getattr(getattr(config.model, tower), key) for key in settings} == settings
