"""Small random checkpoints in Hugging Face's format, made with transformers, and the sizes that go with them."""

import json

import torch
import transformers
from parity import randomise
from safetensors.torch import load_file, save_file
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

QWEN = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 28,
    "patch_size": 7,
}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 11}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2}
AUDIO = {
    "depths": [2, 1],
    "num_attention_heads": [2, 4],
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "patch_embeds_hidden_size": 8,
    "projection_dim": 24,
    "spec_size": 32,
    "num_mel_bins": 16,
    "window_size": 4,
}


def qwen2(directory, **changes):
    return save(transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**QWEN | changes)), directory).model


def qwen3(directory):
    config = transformers.Qwen3Config(**QWEN, head_dim=10)
    return save(transformers.Qwen3ForCausalLM(config), directory).model


def aimv2(directory, **changes):
    return save(transformers.Aimv2VisionModel(transformers.Aimv2VisionConfig(**VISION | changes)), directory)


def siglip(directory):
    config = transformers.SiglipConfig(vision_config=VISION, text_config=TEXT)
    return save(transformers.SiglipModel(config), directory).vision_model


def internvit(directory):
    sizes = VISION | {"image_size": [28, 28], "patch_size": [7, 7]}
    config = InternVLVisionConfig(**sizes, attention_bias=True, norm_type="layer_norm", use_mean_pooling=True)
    return save(InternVLVisionModel(config), directory)


def clap(directory, fused=False):
    # HTSAT and its text tower have their own width; the audio tower's ends in 8 * 2.
    config = transformers.ClapConfig(audio_config=AUDIO | {"enable_fusion": fused}, text_config=TEXT, projection_dim=24)
    return save(transformers.ClapModel(config), directory)


def bert(directory, **changes):
    config = transformers.BertConfig(**TEXT | {"max_position_embeddings": 12} | changes)
    return save(transformers.BertForMaskedLM(config), directory).bert


def save(model, directory, shard="20KB"):
    """Draws every weight anew and saves it in shards."""
    model = randomise(model)
    for name, value in model.named_buffers():
        if name.endswith("running_var"):
            value.copy_(100 + 800 * torch.rand(value.shape, generator=torch.Generator().manual_seed(1)))
        elif name.endswith("running_mean"):
            value.fill_(-30.0)
    model.save_pretrained(directory, max_shard_size=shard)
    return model


def tensors(directory):
    """All tensors of a checkpoint."""
    return {name: value for path in sorted(directory.glob("*.safetensors")) for name, value in load_file(path).items()}


def write(directory, weights, config):
    """Writes a checkpoint of one file."""
    directory.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in weights.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))


def config_json(directory):
    return json.loads((directory / "config.json").read_text())


def fuse(weights, parts, into):
    """Joins query, key and value of every block into one tensor, as the published repositories have it."""
    fused = dict(weights)
    for name in weights:
        if parts[0] in name:
            tensors = [fused.pop(name.replace(parts[0], part)) for part in parts]
            fused[name.replace(parts[0], into)] = torch.cat(tensors)
    return fused


def rename(weights, renames):
    renamed = {}
    for name, value in weights.items():
        for old, new in renames:
            name = name.replace(old, new)
        renamed[name] = value
    return renamed


AIMV2_NAMES = [
    ("embeddings.patch_embed", "preprocessor.patchifier.proj"),
    ("embeddings.position_embedding.weight", "preprocessor.pos_embed"),
    ("embeddings.rms_norm", "preprocessor.patchifier.norm"),
    ("encoder.layers.", "trunk.blocks."),
    ("attention.out_proj", "attn.proj"),
    ("attention.qkv", "attn.qkv"),
    ("ffn.gate_proj", "mlp.fc1"),
    ("ffn.down_proj", "mlp.fc2"),
    ("ffn.up_proj", "mlp.fc3"),
    ("rms_norm1", "norm_1"),
    ("rms_norm2", "norm_2"),
]
INTERNVIT_NAMES = [
    ("embeddings.cls_token", "embeddings.class_embedding"),
    ("embeddings.patch_embeddings.projection", "embeddings.patch_embedding"),
    ("embeddings.position_embeddings", "embeddings.position_embedding"),
    ("encoder.layer.", "encoder.layers."),
    ("attention.projection_layer", "attn.proj"),
    ("attention.qkv", "attn.qkv"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("lambda_", "ls"),
]
QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")


def published_aimv2(weights):
    """The names of the published AIMv2 repositories, and of SAIL-ViT."""
    renamed = rename(fuse(weights, QKV, "attention.qkv"), AIMV2_NAMES)
    renamed = {"trunk.post_trunk_norm.weight" if n == "rms_norm.weight" else n: v for n, v in renamed.items()}
    renamed["preprocessor.pos_embed"] = renamed["preprocessor.pos_embed"][None]
    return {name: value for name, value in renamed.items() if not name.startswith("head.")}


def published_internvit(weights):
    """The names of the published InternViT repositories."""
    return rename(fuse(weights, QKV, "attention.qkv"), INTERNVIT_NAMES)
