"""Import of published layouts: parity with transformers end to end, and errors that list every tensor."""

import dataclasses
import json

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import PartitionSpec
from parity import assert_close, paths, run

from sail_jax.config.model import BertConfig, ClapConfig, LlmConfig, VitConfig
from sail_jax.config.training import MeshConfig
from sail_jax.convert.from_hf import checkpoint_settings, load_tower
from sail_jax.convert.weight_files import WeightFiles
from sail_jax.errors import SailError
from sail_jax.models.bert import Bert
from sail_jax.models.clap import ClapAudio
from sail_jax.models.llm import Llm
from sail_jax.models.vit import Vit
from sail_jax.sharding.mesh import make_mesh
from sail_jax.sharding.parameters import abstract_on_mesh

CONFIGS = {"llm": LlmConfig, "vit": VitConfig, "audio": ClapConfig, "bert": BertConfig}
MODULES = {"llm": Llm, "vit": Vit, "audio": ClapAudio, "bert": Bert}
SOUND = {"sample_rate": 16_000, "clip_seconds": 1.0, "n_fft": 256, "hop": 500, "f_max": 7600.0, "f_min": 0.0}
TOKENS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]], np.int32)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
POSITIONS = np.cumsum(MASK, axis=-1, dtype=np.int32) - 1
FRAMES = np.random.default_rng(0).integers(256, size=(2, 28, 28, 3), dtype=np.uint8)


def tower_config(directory, tower, **changes):
    return CONFIGS[tower](**checkpoint_settings(directory, tower) | changes)


def module_and_inputs(tower, config):
    module = MODULES[tower](config)
    if tower == "llm":
        return module, (jnp.zeros((*TOKENS.shape, config.width)), POSITIONS, MASK)
    if tower == "bert":
        return module, (TOKENS, MASK)
    if tower == "vit":
        return module, (np.zeros((1, config.image_size, config.image_size, 3), np.uint8),)
    return module, (np.zeros((1, config.clip_samples), np.int16),)


def load(directory, tower, mesh_config=None, allow_bin=False, **changes):
    """Our module, its variables out of the checkpoint, and what was said about it."""
    config = tower_config(directory, tower, **changes)
    module, inputs = module_and_inputs(tower, config)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    mesh = make_mesh(mesh_config or MeshConfig(data=1), jax.devices()[: 1 if mesh_config is None else 8])
    # As part of the model, so that the rules by path hold.
    abstract = abstract_on_mesh({tower: shapes}, mesh)[tower]
    loaded = load_tower(directory, tower, config, abstract, allow_bin=allow_bin)
    return module, {"params": loaded.params}, loaded


def pixels(frames, config):
    values = (frames / np.float32(255) - np.float32(config.image_mean)) / np.float32(config.image_std)
    return torch.tensor(values.transpose(0, 3, 1, 2).astype(np.float32))


@pytest.mark.parametrize("make", [checkpoints.qwen2, checkpoints.qwen3])
def test_qwen(make, tmp_path):
    reference = make(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    module, variables, loaded = load(tmp_path, "llm", causal=True)
    with torch.no_grad():
        theirs = reference(torch.tensor(TOKENS), torch.tensor(MASK)).last_hidden_state.numpy()
    embedded = module.apply(variables, jnp.asarray(TOKENS), method="embed")
    hidden, _ = run(module, variables, embedded, POSITIONS, MASK)
    assert_close(hidden[MASK], theirs[MASK])
    assert loaded.left_over == {"language-model head": 1}


# The published repositories of AIMv2 and InternViT have code and names of their own.
PUBLISHED = {
    "aimv2": (checkpoints.published_aimv2, {"model_type": "aimv2"}),
    "internvit": (checkpoints.published_internvit, {"model_type": "intern_vit_6b"}),
}


@pytest.mark.parametrize(
    ("kind", "published"),
    [("aimv2", False), ("aimv2", True), ("siglip", False), ("internvit", False), ("internvit", True)],
)
def test_vision(kind, published, tmp_path):
    reference = getattr(checkpoints, kind)(tmp_path)
    directory = tmp_path
    if published:
        directory = tmp_path / "published"
        rename, values = PUBLISHED[kind]
        checkpoints.write(directory, rename(checkpoints.tensors(tmp_path)), checkpoints.config_json(tmp_path) | values)
    module, variables, _ = load(directory, "vit")
    assert module.config.kind == kind
    with torch.no_grad():
        theirs = reference(pixels(FRAMES, module.config)).last_hidden_state.numpy()
    patches, _ = run(module, variables, FRAMES)
    assert_close(patches, theirs[:, 1:] if kind == "internvit" else theirs)


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
def test_clap(fused, tmp_path):
    reference = checkpoints.clap(tmp_path, fused)
    module, variables, loaded = load(tmp_path, "audio", **SOUND)
    assert module.config.mel_scale == ("htk" if fused else "slaney")
    clips = np.random.default_rng(1).integers(-9000, 9000, size=(2, module.config.clip_samples)).astype(np.int16)
    ours, out = run(module, variables, clips)
    features = torch.tensor(np.array(out.log_mel))[:, None]
    with torch.no_grad():
        more = {"is_longer": torch.zeros(2, 1, dtype=torch.bool)} if fused else {}
        pooled = reference.audio_model(features.repeat(1, 4 if fused else 1, 1, 1), **more).pooler_output
        theirs = reference.audio_projection(pooled).numpy()
    assert_close(ours, theirs)
    assert ("CLAP fusion" in loaded.left_over) == fused


def test_bert(tmp_path):
    reference = checkpoints.bert(tmp_path)
    module, variables, loaded = load(tmp_path, "bert")
    with torch.no_grad():
        theirs = reference(torch.tensor(TOKENS), torch.tensor(MASK)).last_hidden_state.numpy()
    hidden, _ = run(module, variables, TOKENS, MASK)
    assert_close(hidden[MASK], theirs[MASK])
    assert set(loaded.left_over) == {"BERT heads"}


@pytest.fixture
def composite(tmp_path):
    """A composite as SAIL-VL is published: `vision_model.*`, `language_model.*` and the projector `mlp1.*`."""
    checkpoints.qwen2(tmp_path / "llm")
    checkpoints.aimv2(tmp_path / "vit")
    weights = {f"language_model.{n}": v for n, v in checkpoints.tensors(tmp_path / "llm").items()}
    vision = checkpoints.published_aimv2(checkpoints.tensors(tmp_path / "vit"))
    weights |= {f"vision_model.{name}": value for name, value in vision.items()}
    weights |= {"mlp1.0.weight": torch.ones(8), "mlp1.1.weight": torch.ones(8, 8)}
    vision_config = checkpoints.config_json(tmp_path / "vit") | {"model_type": "aimv2"}
    values = {
        "model_type": "internvl_chat",
        "llm_config": checkpoints.config_json(tmp_path / "llm"),
        "vision_config": vision_config,
    }
    checkpoints.write(tmp_path / "composite", weights, values)
    return tmp_path


@pytest.mark.parametrize("tower", ["llm", "vit"])
def test_composites_give_each_tower_on_its_own(composite, tower):
    _, whole, loaded = load(composite / "composite", tower)
    _, alone, _ = load(composite / tower, tower)
    jax.tree.map(np.testing.assert_array_equal, whole, alone)
    assert set(loaded.left_over) >= {"other towers of the composite", "projector of a composite"}


def test_every_device_reads_its_own_part(tmp_path):
    checkpoints.qwen2(tmp_path)
    _, alone, _ = load(tmp_path, "llm")
    _, sharded, _ = load(tmp_path, "llm", MeshConfig(data=2, fsdp=2, tensor=2))
    jax.tree.map(np.testing.assert_array_equal, alone, sharded)
    kernel = sharded["params"]["layers"]["mlp"]["gate"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert kernel.addressable_shards[0].data.shape == (2, 16, 24)


@pytest.mark.parametrize("kind", ["aimv2", "internvit"])
def test_positions_are_resized_to_the_images(kind, tmp_path):
    getattr(checkpoints, kind)(tmp_path)
    _, whole, _ = load(tmp_path, "vit")
    module, variables, loaded = load(tmp_path, "vit", image_size=42)
    assert loaded.resized == ("position_embedding",)
    grid = torch.tensor(np.array(whole["params"]["position_embedding"])).T.reshape(1, 32, 4, 4)
    theirs = torch.nn.functional.interpolate(grid, (6, 6), mode="bicubic", align_corners=False).reshape(32, 36).T
    assert_close(variables["params"]["position_embedding"], theirs.numpy())
    others = [path for path in paths(variables) if "position_embedding" not in path]
    assert all(np.array_equal(paths(variables)[path], paths(whole)[path]) for path in others)


def test_half_precision_is_read_exactly(tmp_path):
    checkpoints.qwen2(tmp_path / "float32")
    weights = checkpoints.tensors(tmp_path / "float32")
    for dtype in (torch.bfloat16, torch.float16):
        directory = tmp_path / str(dtype)
        values = checkpoints.config_json(tmp_path / "float32")
        checkpoints.write(directory, {name: value.to(dtype) for name, value in weights.items()}, values)
        _, variables, _ = load(directory, "llm")
        expected = weights["model.layers.1.mlp.up_proj.weight"].to(dtype).float().numpy().T
        kernel = variables["params"]["layers"]["mlp"]["up"]["kernel"]
        assert kernel.dtype == jnp.float32
        np.testing.assert_array_equal(kernel[1], expected)


def test_pickled_weights_need_an_explicit_word(tmp_path):
    checkpoints.qwen2(tmp_path / "safe")
    directory = tmp_path / "pickled"
    directory.mkdir()
    torch.save(checkpoints.tensors(tmp_path / "safe"), directory / "pytorch_model.bin")
    (directory / "config.json").write_text((tmp_path / "safe" / "config.json").read_text())
    with pytest.raises(SailError, match="pytorch_model.bin.*run code.*init_allow_bin=True"):
        load(directory, "llm")
    _, variables, _ = load(directory, "llm", allow_bin=True)
    _, expected, _ = load(tmp_path / "safe", "llm")
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


class Malice:
    def __reduce__(self):
        return (print, ("this ran",))


def test_a_pickle_that_runs_code_is_refused_even_so(tmp_path, capsys):
    checkpoints.qwen2(tmp_path)
    for path in tmp_path.glob("*.safetensors*"):
        path.unlink()
    torch.save({"model.norm.weight": Malice()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(SailError, match="pytorch_model.bin cannot be read"):
        load(tmp_path, "llm", allow_bin=True)
    assert "this ran" not in capsys.readouterr().out


def test_the_error_lists_every_tensor(tmp_path):
    checkpoints.qwen2(tmp_path / "whole")
    weights = checkpoints.tensors(tmp_path / "whole")
    weights["model.layers.0.mlp.extra.weight"] = torch.ones(3)
    weights["model.surprise"] = torch.ones(2)
    del weights["model.norm.weight"], weights["model.layers.1.mlp.up_proj.weight"]
    weights["model.layers.0.self_attn.k_proj.weight"] = torch.ones(8, 32)
    weights["model.layers.0.self_attn.v_proj.weight"] = torch.ones(16, 32, dtype=torch.int8)
    checkpoints.write(tmp_path / "broken", weights, checkpoints.config_json(tmp_path / "whole"))
    with pytest.raises(SailError) as error:
        load(tmp_path / "broken", "llm")
    for line in (
        "6 tensors",
        "missing: model.norm.weight (32,)",
        "missing: model.layers.1.mlp.up_proj.weight (48, 32)",
        "another shape: model.layers.0.self_attn.k_proj.weight (8, 32), not (16, 32)",
        "another type: model.layers.0.self_attn.v_proj.weight I8",
        "not mapped: model.layers.0.mlp.extra.weight (3,)",
        "not mapped: model.surprise (2,)",
    ):
        assert line in str(error.value)


def test_settings_that_no_shape_shows_are_compared(tmp_path):
    checkpoints.qwen2(tmp_path)
    config = dataclasses.replace(tower_config(tmp_path, "llm"), rope_theta=500.0, heads=8, head_dim=4)
    with pytest.raises(SailError) as error:
        load_tower(tmp_path, "llm", config, {})
    assert "config.model.llm.rope_theta=1000.0 (now 500.0)" in str(error.value)
    assert "config.model.llm.heads=4 (now 8)" in str(error.value)
    assert "norm_eps" not in str(error.value)


def test_defaults_that_a_composite_leaves_out_are_those_of_transformers(tmp_path):
    checkpoints.siglip(tmp_path)
    values = checkpoints.config_json(tmp_path)
    for key in ("hidden_act", "layer_norm_eps", "num_channels", "model_type"):
        del values["vision_config"][key]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert checkpoint_settings(tmp_path, "vit")["norm_eps"] == 1e-6
    (tmp_path / "config.json").write_text('{"model_type": "siglip", "vision_config": {}}')
    assert checkpoint_settings(tmp_path, "vit")["image_size"] == 224
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(SailError, match="cannot be read .it is not a mapping"):
        checkpoint_settings(tmp_path, "vit")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rope_type = 'yarn'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling = "),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types = .*sliding_attention"),
        ({"rope_parameters": {"type": "linear", "rope_theta": 1000.0, "factor": 2.0}}, "rope_type = 'linear'"),
        ({"quantization_config": {"bits": 4}}, "quantised weights"),
        ({"hidden_size": None}, "config.json lacks settings of a qwen2 tower"),
        ({"model_type": "llama"}, "model_type 'llama'.*no supported llm tower"),
    ],
)
def test_what_our_modules_do_not_compute_is_refused(changes, message, tmp_path):
    checkpoints.qwen2(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(checkpoints.config_json(tmp_path) | changes))
    with pytest.raises(SailError, match=message):
        checkpoint_settings(tmp_path, "llm")


def test_an_index_cannot_lead_out_of_the_folder(tmp_path):
    checkpoints.qwen2(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for content, message in (
        ('{"weight_map": {"model.norm.weight": "../other.safetensors"}}', "names ../other.safetensors"),
        ('{"weight_map": ["model.norm.weight"]}', "is not an index of weights"),
        ("{", "is not an index of weights"),
    ):
        index.write_text(content)
        with pytest.raises(SailError, match=message):
            WeightFiles(tmp_path)
    index.unlink()
    twice = sorted(tmp_path.glob("*.safetensors"))[0]
    (tmp_path / "copy.safetensors").write_bytes(twice.read_bytes())
    with pytest.raises(SailError, match="both hold"):
        WeightFiles(tmp_path)


def test_broken_files_are_named(tmp_path):
    checkpoints.qwen2(tmp_path)
    path = sorted(tmp_path.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SailError, match=f"{path.name} cannot be read"):
        WeightFiles(tmp_path)
    path.unlink()
    with pytest.raises(SailError, match=f"{path.name} cannot be read"):
        WeightFiles(tmp_path)
    with pytest.raises(SailError, match="holds no weights"):
        WeightFiles(tmp_path / "nothing")
