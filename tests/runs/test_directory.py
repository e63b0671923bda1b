"""A run is a folder: what it holds, where its data is looked for, and how it may grow."""

import dataclasses
import os
import re
import shutil

import numpy as np
import pytest
import tiny

import sail_jax
from sail_jax import config as config_lib
from sail_jax.data.pipeline import make_extractor, open_store
from sail_jax.data.prompts import load_tokenizer
from sail_jax.errors import SailError
from sail_jax.runs.directory import RunDirectory, require_same_config

STAGES = {"1": {"steps": 3}, "2": {"steps": 3}, "10": {"steps": 3}}


def config_of(data_dir, **changes):
    settings = tiny.experiment(data_dir)
    settings.update(changes)
    return config_lib.build(settings)


@pytest.mark.parametrize("given", ["relative", "within the run"])
def test_the_data_is_found_from_any_folder_and_after_a_move(tmp_path, monkeypatch, given):
    before, after = tmp_path / "before", tmp_path / "after"
    data = {"relative": "data", "within the run": "run/data"}[given]
    (before / data).mkdir(parents=True)
    monkeypatch.chdir(before)
    run = RunDirectory("run")
    run.save_config(config_of(data if given == "relative" else before / data))
    assert run.load_config().data.dir == str(before / data)
    monkeypatch.chdir("/")
    shutil.move(before, after)
    moved = RunDirectory(after / "run")
    assert moved.load_config().data.dir == str(after / data)
    # Without the data, the setting that names it is.
    shutil.rmtree(after / data)
    with pytest.raises(SailError, match=r"no item store.*set config\.data\.dir"):
        open_store(moved.load_config())
    assert moved.load_config(overrides=["data.dir=/given"]).data.dir == "/given"


def test_a_run_keeps_its_tokenizer_and_saves_its_name(world, tmp_path):
    config = config_of(world)
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.save_config(config)
    tokenizer = load_tokenizer(config.prompt, world, 512)
    tokenizer.save_pretrained(run.tokenizer)
    moved = RunDirectory(shutil.move(run.path, tmp_path / "moved"))
    elsewhere = moved.load_config(overrides=["data.dir=/nowhere"])
    assert make_extractor(elsewhere).encoder.tokenizer.get_vocab() == tokenizer.get_vocab()
    require_same_config(moved, moved.load_config())
    moved.save_config(moved.load_config())
    assert moved.saved_config().prompt.tokenizer == "tokenizer"
    assert moved.load_config(overrides=["prompt.tokenizer=other"]).prompt.tokenizer == "other"


def test_a_moved_run_embeds_without_its_data_from_any_folder(run, embedder, world, tmp_path, monkeypatch, one_device):
    copy = RunDirectory(shutil.copytree(run, tmp_path / "copy"))
    config = copy.saved_config()
    shutil.copytree(world / "tokenizer", copy.tokenizer)
    copy.save_config(dataclasses.replace(config, data=dataclasses.replace(config.data, dir="/nowhere")))
    monkeypatch.chdir("/")
    found = sail_jax.load(os.path.relpath(copy.path, "/")).encode(["a red cat"])
    np.testing.assert_allclose(found, embedder.encode(["a red cat"]), atol=1e-6)


def test_no_folder_that_is_missing_is_asked_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
    for name in ("tokenizer", "data/tokenizer"):
        with pytest.raises(SailError, match=re.escape(f"no tokenizer at {tmp_path}/{name}")):
            load_tokenizer(dataclasses.replace(config_of(tmp_path).prompt, tokenizer=name), tmp_path, 512)


def test_settings_of_another_version_are_named_with_the_file(tmp_path):
    run = RunDirectory(tmp_path)
    run.save_config(config_of(tmp_path))
    run.config.write_text(run.config.read_text().replace('"clip_norm"', '"clipping_norm"'))
    with pytest.raises(SailError, match=r"config\.json was written by another version.*clipping_norm.*clip_norm"):
        run.load_config()


@pytest.mark.parametrize(
    ("done", "before", "after", "allowed"),
    [
        (2, {}, {"train": {"steps": 9}}, True),
        (2, {}, {"train": {"steps": 5}}, False),
        (2, {}, {"stages": STAGES}, False),
        (4, {"stages": STAGES}, {"stages": STAGES | {"2": {"steps": 5}}}, True),  # the stage under way
        (4, {"stages": STAGES}, {"stages": STAGES | {"2": {"steps": 2}}}, False),
        (4, {"stages": STAGES}, {"stages": STAGES | {"1": {"steps": 4}}}, False),
        (4, {"stages": STAGES}, {"stages": STAGES | {"10": {"steps": 9, "peak": 1e-3}}}, True),
        (4, {"stages": STAGES}, {"stages": STAGES | {"11": {"steps": 1}}}, True),
        (4, {"stages": STAGES}, {"stages": STAGES | {"1a": {"steps": 1}}}, False),  # before the stage under way
        (9, {"stages": STAGES}, {"stages": STAGES | {"10": {"steps": 4}}}, True),
    ],
)
def test_a_run_may_grow_but_not_change_what_was_trained(tmp_path, done, before, after, allowed):
    run = RunDirectory(tmp_path)
    run.save_config(config_of(tmp_path, **before))
    (run.checkpoints / str(done)).mkdir(parents=True)
    if allowed:
        assert require_same_config(run, config_of(tmp_path, **after))
    else:
        with pytest.raises(SailError, match="another config"):
            require_same_config(run, config_of(tmp_path, **after))


def test_a_repository_that_was_named_without_a_prefix_is_the_same(tmp_path):
    run = RunDirectory(tmp_path)
    run.save_config(config_of(tmp_path, init_from={"llm": "owner/name"}))
    assert require_same_config(run, config_of(tmp_path, init_from={"llm": "hf://owner/name"})) == []
