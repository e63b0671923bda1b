"""Two configs are compared setting by setting."""

import pytest

from sail_jax import config as config_lib
from sail_jax.cli import main
from sail_jax.config import Config
from sail_jax.config.differences import Difference, differences


def test_settings_that_differ():
    first = config_lib.load("quickstart", ["train.steps=7", "eval.ks=(1, 5)"])
    second = config_lib.load("quickstart", ["train.steps=9", "data.datasets.copair.weight=3"])
    assert list(differences(first, second)) == [
        Difference("data.datasets.copair.weight", 2.0, 3.0),
        Difference("train.steps", 7, 9),
        Difference("eval.ks", (1, 5), Config().eval.ks),
    ]
    assert not list(differences(first, first))


def test_a_data_set_that_one_of_them_lacks():
    values = config_lib.preset("quickstart")
    del values.data.datasets["heard"]
    (found,) = differences(config_lib.build(values), config_lib.load("quickstart"))
    assert (found.key, found.first) == ("data.datasets.heard", None)
    assert found.second["patterns"] == ("A->A",) and "split" not in found.second, "only what is no default"


def test_config_diff_of_files_presets_and_runs(tmp_path, capsys):
    config_lib.save(config_lib.load("tiny", ["train.steps=7"]), tmp_path / "run" / "config.json")
    assert main(["config", "diff", "tiny", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "train.steps" in said and "240" in said and "1 settings differ" in said
    assert main(["config", "diff", "tiny", "configs/presets/tiny.py"]) == 0
    assert "No settings differ" in capsys.readouterr().out
    assert main(["config", "diff", "tiny", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "first"),
    [
        ("lr", "config.optimizer.peak"),
        ("Temperature", "config.objective.temperature"),
        ("holdout", "config.ingest.holdout"),
    ],
)
def test_settings_are_searched_by_name_meaning_and_everyday_words(word, first, capsys):
    assert main(["describe", "--settings", word]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"{first}: ") for line in lines[::2])
    assert len(lines) < 60
    assert all(word.lower() in (line + meaning).lower() for line, meaning in zip(lines[2::2], lines[3::2], strict=True))


def test_a_word_that_no_setting_has(capsys):
    assert main(["describe", "--settings", "tempreature"]) == 2
    assert "Did you mean objective.temperature" in capsys.readouterr().err


def test_all_settings_without_a_word(capsys):
    assert main(["describe", "--settings"]) == 0
    assert "config.train.steps: int" in capsys.readouterr().out
