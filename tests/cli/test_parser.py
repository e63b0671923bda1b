"""Error messages for a mistyped verb, flag or setting."""

import pytest

from sail_jax.cli import _VERBS, _parser, main
from sail_jax.cli.parser import split_settings
from sail_jax.errors import SailError

TRAIN = ["train", "--config", "quickstart", "--workdir", "x"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "no verb 'trian'. Did you mean train"),
        (["semantic-ids", "asign"], "no verb 'asign'. Did you mean assign"),
        (["semantic_ids"], "semantic-ids"),
        (["train", "--config", "quickstart", "--workdri", "x"], "no flag --workdri. Did you mean --workdir?"),
        (["train", "--wrokdir=x"], "no flag --wrokdir. Did you mean --workdir?"),
        (["embed", "--work", "x"], "no flag --work. Did you mean --workdir"),
        (["--workdir", "x", "train"], "The verb comes first: python -m sail_jax VERB --workdir"),
        ([*TRAIN, "--data.dir=x"], "write --config.data.dir=x."),
        ([*TRAIN, "--data.dir", "x"], "write --config.data.dir=x."),
        ([*TRAIN, "--config.data.dir", "x"], "write it after an equals sign: --config.data.dir=x."),
        ([*TRAIN, "--config.data.dir"], "--config.data.dir=VALUE."),
        ([*TRAIN, "--config.data.dir", "--distributed"], "--config.data.dir=VALUE."),
        ([*TRAIN, "--config.learning_rate=1e-3"], "Did you mean config.optimizer.peak?"),
        (["report", "--workdir", "x", "--config.seed=1"], "reads no config"),
    ],
)
def test_the_error_says_what_to_write(words, message, capsys):
    assert main(words) == 2
    said = capsys.readouterr()
    assert message in said.err and "Traceback" not in said.err and not said.out


def test_settings_are_told_from_flags():
    words = ["search", "--text", "a.b", "--config", "x.py", "--config.a.b=--c", "--text=--d.e=f"]
    assert split_settings(words) == ([*words[:5], words[6]], ["a.b=--c"])


def test_a_value_may_look_like_a_flag():
    options = _parser("x").parse_args(["search", "--workdir", "r", "--text=--really", "-k", "3"])
    assert (options.text, options.k) == ("--really", 3)


def test_an_unknown_flag_is_named_before_a_missing_one():
    with pytest.raises(SailError, match="--embeddings"):
        _parser("x").parse_args(["evaluate", "--embedings", "e"])


def test_a_module_holds_the_verb_of_its_name():
    verbs = _parser("x")._verbs
    assert [module.__name__.rpartition(".")[2].replace("_", "-") for module in _VERBS] == list(verbs)
