"""Presets are starts of configs, and what the packaged experiments come to is what golden/ says."""

import json
import re

import jax
import pytest
import tiny

from sail_jax import config as config_lib
from sail_jax.config import Config, preset
from sail_jax.config.differences import differences
from sail_jax.errors import SailError
from sail_jax.models.model import init_params
from sail_jax.objectives.matryoshka import check_widths
from sail_jax.objectives.objective import make_objective

GOLDEN = tiny.REPO / "tests" / "config" / "golden"
PRESETS = sorted(path.stem for path in (tiny.REPO / "configs" / "presets").glob("*.py"))
CONFIGS = sorted((tiny.REPO / "configs").glob("*.py"))


def test_the_names_of_the_presets():
    assert config_lib.presets() == PRESETS == ["report", "small", "tiny"]
    assert not set(PRESETS) & set(config_lib.packaged())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_model_and_what_trains_it(name):
    values = preset(name)
    config = config_lib.build(values)
    assert config == config_lib.load(name) == config_lib.load(f"configs/presets/{name}.py")
    assert "llm" in jax.eval_shape(lambda: init_params(config.model, 0))
    check_widths(config.objective.matryoshka, config.model.llm.width)
    assert config.prompt.max_tokens <= config.model.bert.max_positions
    assert not config.data.datasets and not config.eval.tasks and not config.ingest.tables
    values.data.datasets = {"pairs": {"table": "tables/pairs.parquet"}}
    assert make_objective(config_lib.build(values)).recipe([0]).losses


def test_a_config_over_a_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no checkout is needed
    (tmp_path / "mine.py").write_text(
        "from sail_jax.config import preset\n\n\ndef get_config():\n"
        '    config = preset("tiny")\n'
        '    config.data.datasets.pairs = {"table": "tables/pairs.parquet"}\n'
        "    config.data.datasets.pairs.weight = 2.0\n"
        "    config.train.steps = 7\n"
        "    return config\n"
    )
    config = config_lib.load("mine.py", ["data.datasets.pairs.weight=3"])
    assert config.model == config_lib.load("tiny").model
    assert (config.train.steps, config.data.datasets["pairs"].weight) == (7, 3.0)
    assert preset("tiny").train.steps != 7, "a preset is made anew each time"


def test_experiments_are_presets_too():
    config = preset("quickstart")
    config.data.datasets.copair.weight = 5.0
    assert config_lib.build(preset("quickstart")) == config_lib.load("quickstart")


def test_a_preset_that_is_none():
    with pytest.raises(SailError, match=r"no preset 'tinny'. Did you mean tiny"):
        preset("tinny")
    with pytest.raises(SailError, match=r"no config file tinny.py. Did you mean tiny.py.*presets report, small, tiny"):
        config_lib.load("tinny.py")


def test_a_mistyped_setting_over_a_preset(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from sail_jax.config import preset\ndef get_config():\n"
        '    config = preset("tiny")\n    config.train.stepz = 3\n    return config\n'
    )
    with pytest.raises(SailError, match=r"line 4: there is no setting train\.stepz\. Did you mean config\.train"):
        config_lib.load(tmp_path / "mine.py")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_settings_of_an_experiment_are_those_of_the_golden_file(path):
    found = {key: value for key, _, value in differences(Config(), config_lib.load(path))}
    golden = GOLDEN / f"{path.stem}.json"
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in found.items()]
    written = "{\n" + ",\n".join(lines) + "\n}\n"
    known = json.loads(golden.read_text()) if golden.is_file() else {}
    changes = sorted(key for key in {*known, *found} if known.get(key) != json.loads(json.dumps(found.get(key))))
    assert not changes, f"{path.stem}: {', '.join(changes)} changed. If that is meant, {golden} becomes:\n{written}"


def test_the_small_preset_fits_what_its_checkpoints_publish():
    published = {
        "llm": {"width": 896, "layers": 24, "heads": 14, "kv_heads": 2, "mlp_width": 4864, "rope_theta": 1e6},
        "vit": {"kind": "siglip", "image_size": 224, "patch_size": 16, "width": 768, "layers": 12, "heads": 12},
    }
    config = config_lib.load("small")
    assert set(config.init_from) == {"llm", "vit", "audio"}
    assert re.fullmatch(r"hf://Qwen/.*", config.prompt.tokenizer) and config.prompt.tokenizer == config.init_from["llm"]
    for tower, sizes in published.items():
        assert {key: getattr(getattr(config.model, tower), key) for key in sizes} == sizes
