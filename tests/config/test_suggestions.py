"""Suggestions for mistyped keys, on the command line and in an experiment file."""

import pytest

from sail_jax import config as config_lib
from sail_jax.config import Config
from sail_jax.config.everyday_words import EVERYDAY_WORDS
from sail_jax.config.schema import meanings
from sail_jax.config.suggestions import similar_keys
from sail_jax.errors import SailError

KEYS = [key.removeprefix("config.") for key, *_ in meanings(Config)]


def test_everyday_words_name_settings_and_are_not_settings():
    assert {key for keys in EVERYDAY_WORDS.values() for key in keys} <= set(KEYS)
    assert not set(EVERYDAY_WORDS) & {part for key in KEYS for part in key.split(".")} - {"instruction"}


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("learning_rate", "optimizer.peak"),
        ("optimizer.lr", "optimizer.peak"),
        ("num-epochs", "train.steps"),
        ("model.hidden_size", "model.llm.width"),
        ("peak", "optimizer.peak"),
        ("dir", "data.dir"),
        ("bath_size", "data.batch_size"),
        ("eval.bath_size", "eval.batch_size"),
        ("model.llm.widht", "model.llm.width"),
        ("modle", "model"),
    ],
)
def test_the_likeliest_setting(key, meant):
    assert similar_keys(key, KEYS)[0] == meant


def test_no_setting_is_similar():
    assert similar_keys("zzzz", KEYS) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("peak=1", r"There is no setting config\.peak\. Did you mean config\.optimizer\.peak"),
        ("epochs=3", r"Did you mean config\.train\.steps\?"),
        ("data.datasets.copair.wieght=3", r"Did you mean config\.data\.datasets\.copair\.weight"),
        ("model.llm.zzzz=3", "heads or .* or width"),
    ],
)
def test_a_suggestion_is_printed_and_not_applied(override, message):
    with pytest.raises(SailError, match=message):
        config_lib.load("quickstart", [override])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "config.learning_rate = 1",
            r"line 4: there is no setting learning_rate\. Did you mean config\.optimizer\.peak\?",
        ),
        ("config.model.llm.widht = 3", r"no setting model\.llm\.widht\. Did you mean config\.model\.llm\.width"),
        ("config.dtaa.dir = 'x'", r"no setting dtaa\. Did you mean config\.data"),
        ("config.train.update(stepz=3)", r"no setting stepz\. Did you mean config\.train\.steps"),
        ("config.zzzz = 3", "describe --settings"),
        (
            "config.data.datasets.copair.weight = 2.0",
            r"'copair'.*Set it to a dict first, as in config\.data\.datasets = ",
        ),
        ("(5).foo", "line 4: AttributeError: 'int' object has no attribute 'foo'$"),
    ],
)
def test_a_mistyped_key_in_an_experiment_file(line, message, tmp_path):
    path = tmp_path / "x.py"
    head = "from sail_jax.config import default_config\ndef get_config():\n    config = default_config()\n"
    path.write_text(f"{head}    {line}\n    return config\n")
    with pytest.raises(SailError, match=message) as said:
        config_lib.load(path)
    assert len(str(said.value)) < 300


def test_a_packaged_experiment_is_found_if_no_file_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = config_lib.load("quickstart")
    for name in ("quickstart.py", "configs/quickstart.py", "configs/quickstart"):
        assert config_lib.load(name) == expected
    with pytest.raises(SailError, match=r"no config file runs/quickstart\.py.*come with the package: .*quickstart"):
        config_lib.load("runs/quickstart.py")
    (tmp_path / "quickstart.py").write_text("def get_config(): raise ValueError('mine')")
    with pytest.raises(SailError, match="mine"):
        config_lib.load("quickstart.py")
