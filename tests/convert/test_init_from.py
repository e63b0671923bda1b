"""`init_from`: towers out of checkpoints, the rest fresh, and errors that say what to do."""

import shutil

import checkpoints
import jax
import numpy as np
import pytest

from sail_jax import config as config_lib
from sail_jax.config.training import MeshConfig
from sail_jax.convert.from_hf import inspect_checkpoint
from sail_jax.convert.init_from import check_tokenizer, initial_params
from sail_jax.data.prompts import train_tokenizer
from sail_jax.errors import SailError
from sail_jax.runs.directory import RunDirectory
from sail_jax.sharding.mesh import make_mesh
from sail_jax.training.loop import train


@pytest.fixture
def towers(settings, tmp_path):
    """Checkpoints of three towers, and settings that fit them."""
    checkpoints.qwen2(tmp_path / "qwen", vocab_size=512)
    checkpoints.siglip(tmp_path / "siglip")
    checkpoints.clap(tmp_path / "clap")
    for tower, name in (("llm", "qwen"), ("vit", "siglip"), ("audio", "clap")):
        settings.model[tower].update(**inspect_checkpoint(tmp_path / name)[tower])
        settings.init_from[tower] = str(tmp_path / name)
    return settings


@pytest.mark.slow
def test_three_checkpoints_make_one_model(towers):
    config = config_lib.build(towers)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    params, report = initial_params(config, mesh)
    assert set(report.loaded) == {"llm", "vit", "audio"}
    assert report.fresh == ("audio_adapter", "perceiver", "vision_adapter")
    assert "vit: loaded from" in str(report) and "pooling head" in str(report)
    towers.init_from = {}
    fresh, _ = initial_params(config_lib.build(towers), mesh)
    for part in params:
        same = [np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (params[part], fresh[part])), strict=True)]
        assert all(same) == (part in report.fresh), part


@pytest.mark.slow
def test_training_starts_from_them_and_resumes_without_them(towers, tmp_path, capsys, monkeypatch, one_device):
    monkeypatch.chdir(tmp_path)
    towers.init_from.llm = "qwen"
    towers.train.update(steps=1, checkpoint_every=1)
    towers.optimizer.warmup_steps = 0
    towers.optimizer.freeze = ("^llm/", "^vit/", "^audio/")
    config = config_lib.build(towers)
    result = train(config, tmp_path / "run")
    shown = capsys.readouterr().out
    assert "llm: loaded from" in shown and "perceiver: initialised fresh" in shown
    assert (tmp_path / "run" / "init.txt").read_text() in shown
    start, _ = initial_params(config, make_mesh(MeshConfig()))
    for part in ("llm", "vit", "audio"):
        jax.tree.map(np.testing.assert_array_equal, result.state.params["model"][part], start[part])
    saved = RunDirectory(tmp_path / "run").load_config()
    assert saved.init_from["llm"] == str(tmp_path / "qwen")
    (tmp_path / "qwen").rename(tmp_path / "moved")
    assert train(saved, tmp_path / "run").start == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("init_from", "message"),
    [
        ({"vision": "x"}, r"unknown parts \['vision'\] of a model of kind 'fusion'; choose from llm, vit"),
        ({"bert": "x"}, r"unknown parts \['bert'\].*choose from llm, vit, audio, perceiver, vision_adapter"),
        ({"llm": "/no/such/folder"}, "no directory /no/such/folder, and it is not a hub id"),
        ({"llm": "exports/missing"}, "no directory /.*/exports/missing. .*write hf://exports/missing"),
        (
            {"llm": "hf://Qwen/Qwen2.5-1.5B"},
            "could not be fetched from the Hugging Face hub.*hf download Qwen/Qwen2.5-1.5B",
        ),
    ],
)
def test_what_cannot_be_found_is_named(settings, init_from, message):
    settings.init_from = init_from
    with pytest.raises(SailError, match=message):
        initial_params(config_lib.build(settings), make_mesh(MeshConfig()))


def test_the_llm_and_the_data_agree_on_tokens(towers, world, tmp_path):
    shutil.copytree(world / "tokenizer", tmp_path / "qwen", dirs_exist_ok=True)
    check_tokenizer(config_lib.build(towers))
    train_tokenizer(["another text"] * 9, 300, tmp_path / "other")
    shutil.copytree(tmp_path / "other", tmp_path / "qwen", dirs_exist_ok=True)
    with pytest.raises(
        SailError, match="another tokenizer than config.prompt.tokenizer.*set config.prompt.tokenizer=.*qwen"
    ):
        check_tokenizer(config_lib.build(towers))


@pytest.mark.slow
def test_a_failed_start_can_be_corrected(towers, tmp_path):
    towers.model.llm.rope_theta = 5.0
    with pytest.raises(SailError, match="set config.model.llm.rope_theta=1000.0"):
        train(config_lib.build(towers), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_adapters_that_are_not_merged_are_no_start(towers, tmp_path):
    (tmp_path / "qwen" / "adapter").mkdir()
    with pytest.raises(SailError, match="config.init_from.llm: .* holds unmerged LoRA adapters"):
        initial_params(config_lib.build(towers), make_mesh(MeshConfig()))


def test_our_own_parts_need_an_export_of_ours(towers):
    towers.init_from["perceiver"] = towers.init_from["vit"]
    with pytest.raises(SailError, match="config.init_from.perceiver: .*siglip is not an exported sail_jax model"):
        initial_params(config_lib.build(towers), make_mesh(MeshConfig()))


@pytest.fixture
def dual_tower(settings, tmp_path):
    """Checkpoints of BERT and of a vision tower, and settings of a dual tower that fit them."""
    checkpoints.bert(tmp_path / "bert", vocab_size=512, max_position_embeddings=96)
    checkpoints.siglip(tmp_path / "siglip")
    settings.model.kind = "dual_tower"
    for tower, name in (("bert", "bert"), ("vit", "siglip")):
        settings.model[tower].update(**inspect_checkpoint(tmp_path / name)[tower])
        settings.init_from[tower] = str(tmp_path / name)
    return settings


@pytest.mark.slow
def test_a_dual_tower_starts_from_bert(dual_tower, tmp_path):
    config, mesh = config_lib.build(dual_tower), make_mesh(MeshConfig(), jax.devices()[:1])
    params, report = initial_params(config, mesh)
    assert set(report.loaded) == {"bert", "vit"}
    assert report.fresh == ("audio", "audio_adapter", "text_adapter", "vision_adapter")
    name = "bert.embeddings.word_embeddings.weight"
    expected = checkpoints.tensors(tmp_path / "bert")[name].numpy()
    np.testing.assert_array_equal(params["bert"]["word_embedding"], expected)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            "llm",
            r"\['llm'\] of a model of kind 'dual_tower'; choose from bert, vit, audio, vision_adapter, .*text_adapter",
        ),
        (
            "text_adapter",
            "names text_adapter, but no checkpoint has these parts of a dual tower.*Name bert, vit and audio",
        ),
        ("model", "names vision_adapter, audio_adapter, text_adapter, but no checkpoint has"),
    ],
)
def test_parts_that_a_dual_tower_lacks_are_named(dual_tower, part, message):
    dual_tower.init_from[part] = dual_tower.init_from["vit"]
    with pytest.raises(SailError, match=message):
        initial_params(config_lib.build(dual_tower), make_mesh(MeshConfig()))


def test_bert_and_the_data_agree_on_tokens(dual_tower, world, tmp_path):
    shutil.copytree(world / "tokenizer", tmp_path / "bert", dirs_exist_ok=True)
    check_tokenizer(config_lib.build(dual_tower))
    train_tokenizer(["another text"] * 9, 300, tmp_path / "other")
    shutil.copytree(tmp_path / "other", tmp_path / "bert", dirs_exist_ok=True)
    with pytest.raises(SailError, match="The bert tower of .*bert was trained with another tokenizer"):
        check_tokenizer(config_lib.build(dual_tower))
