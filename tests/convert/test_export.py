"""Exports: what is in the folder, the way back, and adapters in PEFT's format."""

import dataclasses
import json
import re
import weakref

import jax
import numpy as np
import peft
import pytest
import tiny
import torch
import transformers
from parity import paths
from safetensors.torch import load_file

from sail_jax import config as config_lib
from sail_jax.convert.architectures import EXPORTED_TYPE
from sail_jax.convert.export import export
from sail_jax.convert.from_hf import inspect_checkpoint
from sail_jax.convert.init_from import initial_params
from sail_jax.convert.to_torch import model_tensors, write_weights
from sail_jax.convert.weight_files import WeightFiles
from sail_jax.embedding.embedder import load
from sail_jax.errors import SailError
from sail_jax.models.lora import init_lora
from sail_jax.models.model import abstract_params
from sail_jax.runs.checkpoints import Checkpoints, HostParams
from sail_jax.runs.directory import RunDirectory
from sail_jax.sharding.mesh import make_mesh
from sail_jax.sharding.parameters import path_name

LORA = {
    "rank": 2,
    "alpha": 3.0,
    "targets": (r"kernel$", r"^llm/embedding$"),
    "trained": (r"norm/scale$",),
}


def draw(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jax.numpy.asarray(rng.normal(size=leaf.shape).astype(np.float32) * 0.1), shapes)


def one_device(config):
    return make_mesh(config.mesh, jax.devices()[:1])


def make_run(settings, folder, lora=False):
    """A run of random parameters, without training."""
    settings.model.audio.window = 4
    if lora:
        settings.lora.update(**LORA)
    config = config_lib.build(settings)
    run = RunDirectory(folder)
    config_lib.save(config, run.config)
    items = {"model": draw(abstract_params(config, one_device(config)))}
    if lora:
        items["lora"] = draw(jax.eval_shape(lambda: init_lora(items["model"], config.lora, 0)), seed=1)
    checkpoints = Checkpoints(run)
    checkpoints.save(7, items, {})
    checkpoints.close()
    return config, run, items


def from_export(config, output, **parts):
    sources = {part: str(output) for part in parts or ["model"]}
    return initial_params(dataclasses.replace(config, init_from=sources), one_device(config))


@pytest.mark.slow
def test_the_way_back_is_bit_identical(settings, tmp_path, monkeypatch):
    """Though only one layer of one parameter is in memory at a time, as far as it is large."""
    monkeypatch.setattr("sail_jax.runs.checkpoints._LARGE", 2000)
    settings.model.vit.layers = 3
    config, run, items = make_run(settings, tmp_path / "run")
    read, seen = HostParams.read, {}
    sizes = {path_name(path): leaf.nbytes for path, leaf in jax.tree_util.tree_leaves_with_path(items["model"])}

    def read_alone(self, name, layer):
        first, array = read(self, name, layer)
        assert (name, first) not in seen
        held = [other for other in seen.values() if other() is not None and other().nbytes >= 2000]
        assert array.nbytes < 2000 or not held
        assert layer is None or len(array) == 1 or sizes[name] < 2000
        seen[name, first] = weakref.ref(array)
        return first, array

    monkeypatch.setattr(HostParams, "read", read_alone)
    assert export(run.path, tmp_path / "out") == 7
    up = "llm/layers/mlp/up/kernel"
    assert (up, 0) in seen and (up, config.model.llm.layers - 1) in seen
    params, report = from_export(config, tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, params, items["model"])
    assert report.fresh == ()
    assert inspect_checkpoint(tmp_path / "out")["llm"]["width"] == config.model.llm.width


@pytest.mark.slow
def test_parts_of_an_export_start_another_model(settings, tmp_path):
    config, run, items = make_run(settings, tmp_path / "run")
    export(run.path, tmp_path / "out")
    params, report = from_export(config, tmp_path / "out", vit=1, perceiver=1)
    fresh, _ = initial_params(config, one_device(config))
    for part in params:
        expected = items["model"] if part in ("vit", "perceiver") else fresh
        jax.tree.map(np.testing.assert_array_equal, params[part], expected[part])
    assert report.fresh == ("audio", "audio_adapter", "llm", "vision_adapter")
    assert "vit: loaded from" in str(report) and "llm: initialised fresh" in str(report)
    smaller = dataclasses.replace(config.model.perceiver, attention="latents")
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, perceiver=smaller))
    with pytest.raises(SailError, match="config.model.perceiver.attention='joint' .now 'latents'."):
        from_export(other, tmp_path / "out", perceiver=1)
    pooled = dataclasses.replace(config, model=dataclasses.replace(config.model, pool_prompt=False))
    with pytest.raises(SailError, match="set config.model.pool_prompt=True"):
        from_export(pooled, tmp_path / "out", llm=1)
    louder = dataclasses.replace(config.model, audio=dataclasses.replace(config.model.audio, normalize=False))
    with pytest.raises(SailError, match="set config.model.audio.normalize=True"):
        from_export(dataclasses.replace(config, model=louder), tmp_path / "out", audio_adapter=1)


@pytest.mark.slow
def test_the_folder_says_what_it_is(settings, tmp_path):
    config, run, _ = make_run(settings, tmp_path / "run")
    run.metrics.write_text(json.dumps({"trained": {"i2i/recall@10": 0.4321, "i2i/queries": 9}}))
    export(run.path, tmp_path / "out", license_name="apache-2.0")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "processor_config.json", "modules.json"} <= files
    card = (tmp_path / "out" / "README.md").read_text()
    needed = re.search(r"pip install .*", (tiny.REPO / "docs" / "tutorials" / "export.md").read_text())[0]
    for text in (
        "license: apache-2.0",
        "| copair |",
        "| search |",
        "| i2i/recall@10 | 0.4321 |",
        "7 steps",
        "32, 16, 4",
        "SentenceTransformer('./out', trust_remote_code=True)",
        needed,
    ):
        assert text in card, text
    assert str(tmp_path) not in card and "adapter/" not in card
    assert export(run.path, tmp_path / "out", license_name="apache-2.0") == 7  # once more: it is there
    run.metrics.write_text("[]")
    with pytest.raises(SailError, match="metrics.json is broken"):
        export(run.path, tmp_path / "other")
    assert not (tmp_path / "other.partial").exists()
    prompts = json.loads((tmp_path / "out" / "config_sentence_transformers.json").read_text())["prompts"]
    assert prompts["query"] == prompts["search-query"] == config.data.datasets["search"].query_instruction
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == EXPORTED_TYPE
    run.metrics.unlink()
    with pytest.raises(SailError, match="out exists and is of another command; name another"):
        export(run.path, tmp_path / "out")


def test_bfloat16_and_several_files(settings, tmp_path):
    config, _, items = make_run(settings, tmp_path / "run")
    for name, options in {"one": {}, "many": {"shard_bytes": 20_000}}.items():
        (tmp_path / name).mkdir()
        write_weights(model_tensors(items["model"], config.model), tmp_path / name, "bfloat16", **options)
    one = load_file(tmp_path / "one" / "model.safetensors")
    many = WeightFiles(tmp_path / "many")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    assert set(many.shapes) == set(one)
    size = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    assert size == sum(value.nbytes for value in one.values())
    kernel = items["model"]["llm"]["layers"]["mlp"]["up"]["kernel"][1]
    up = one["llm.layers.1.mlp.up_proj.weight"]
    assert up.dtype == torch.bfloat16 and torch.equal(up, torch.tensor(np.array(kernel).T).bfloat16())
    np.testing.assert_array_equal(many.read("llm.layers.1.mlp.up_proj.weight").astype(np.float32), up.float().numpy())


def test_a_dual_tower_is_refused(settings, tmp_path):
    settings.model.kind = "dual_tower"
    with pytest.raises(SailError, match="'dual_tower', but only the fusion model can be exported"):
        export(tmp_path / "run", tmp_path / "out", config_lib.build(settings))
    assert not (tmp_path / "out.partial").exists()


def test_what_transformers_does_not_compute_is_refused(settings, tmp_path):
    settings.model.llm.update(qkv_bias=True, qk_norm=True)
    _, run, _ = make_run(settings, tmp_path / "run")
    with pytest.raises(SailError, match="qkv_bias=True and qk_norm=True"):
        export(run.path, tmp_path / "out")
    with pytest.raises(SailError, match="no adapters to write"):
        export(run.path, tmp_path / "out", adapters=True)


@pytest.mark.slow
def test_adapters_in_the_format_of_peft(settings, tmp_path):
    config, run, items = make_run(settings, tmp_path / "run", lora=True)
    export(run.path, tmp_path / "out", adapters=True)
    assert 'peft.PeftModel.from_pretrained(model, "./out/adapter")' in (tmp_path / "out" / "README.md").read_text()
    base = transformers.AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")
    used = {name for name, _ in model.named_parameters() if "lora_" in name}
    assert len(used) == len(load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors"))
    assert any("patch_embed" in name for name in used) and any("lora_embedding" in name for name in used)
    # PEFT's own merge gives what ours gives.
    merged = model.merge_and_unload().state_dict()
    export(run.path, tmp_path / "merged")
    ours = load_file(tmp_path / "merged" / "model.safetensors")
    before = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in ours.items():
        torch.testing.assert_close(merged[name], value, rtol=0, atol=1e-6)
    changed = [name for name in ours if not torch.equal(ours[name], before[name])]
    assert len(changed) == len(used) // 2
    # Without the flag, the embedder and the export agree on what is merged.
    embedder = load(run.path)
    table = paths(embedder.params)["llm/embedding"]
    np.testing.assert_array_equal(table, ours["llm.embed_tokens.weight"].numpy())
