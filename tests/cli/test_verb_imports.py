"""Imports of a command: no heavy library before a verb runs, then only those that the verb needs."""

import os
import shlex
import subprocess
import sys

import pytest
import tiny

import sail_jax
from sail_jax.cli import _VERBS, _parser, main
from sail_jax.cli.parser import split_settings

HEAVY = {
    "jax",
    "flax",
    "transformers",
    "sklearn",
    "torch",
    "tensorflow",
    "polars",
    "faiss",
    "ott",
    "matplotlib",
    "grain",
    "starlette",
    "uvicorn",
}
NAMES = [module.__name__.rpartition(".")[2].replace("_", "-") for module in _VERBS]


def modules_after(code, *, blind=()):
    """Returns the top-level packages that a fresh process imports for some code, and its stderr.

    `blind` are packages that the process cannot import, as if they were not installed.
    """
    head = (
        "import importlib.machinery as machinery, sys\n"
        "find = machinery.PathFinder.find_spec\n"
        "machinery.PathFinder.find_spec = classmethod(\n"
        f"    lambda cls, name, *rest: None if name.split('.')[0] in {tuple(blind)} else find(name, *rest))\n"
    )
    tail = "\nprint('MODULES', *sorted({name.split('.')[0] for name, module in sys.modules.items() if module}))"
    # Where CI is set, transformers passes its messages to the root logger too, which would show them twice.
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    done = subprocess.run(
        [sys.executable, "-c", head + code + tail], capture_output=True, text=True, cwd=tiny.REPO, env=environment
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("MODULES")[2].split()), done.stderr


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["trian"], ["semantic-ids", "fit", "--help"]])
def test_help_and_mistakes_import_nothing_heavy(words):
    code = f"from sail_jax.cli import main\ntry: main({words})\nexcept SystemExit as end: assert end.code == 0\n"
    modules, _ = modules_after(code)
    assert not modules & HEAVY


def test_the_package_imports_lazily():
    modules, _ = modules_after("import sail_jax; assert 'load' in dir(sail_jax)")
    assert not modules & (HEAVY | {"numpy"})
    assert set(sail_jax.__all__) == {"Embedder", "Item", "load"}
    with pytest.raises(AttributeError, match="encode"):
        sail_jax.encode  # noqa: B018


@pytest.mark.slow
def test_embed_does_not_import_libraries_of_balance():
    rooms = "import sail_jax.embedding.bulk, sail_jax.embedding.item_source, sail_jax.embedding.embedder"
    modules, _ = modules_after(rooms)
    assert not modules & {"ott", "sklearn", "matplotlib", "tensorboardX", "torch"}


@pytest.mark.slow
def test_training_imports_nothing_that_evaluation_alone_needs_nor_a_torch_which_others_still_can():
    pytest.importorskip("torch")
    unneeded = "assert not {'torch', 'sklearn', 'scipy.stats', 'matplotlib'} & set(sys.modules)"
    modules, _ = modules_after(f"import sail_jax.training.loop\n{unneeded}\nimport torch")
    assert {"tensorboardX", "torch"} <= modules


@pytest.mark.slow
def test_a_missing_torch_gives_no_warning_but_others_are_shown():
    code = (
        "from sail_jax.cli import main\nassert main(['describe', '--config', 'quickstart']) == 0\n"
        "import transformers; transformers.logging.get_logger('transformers').warning('a real warning')"
    )
    modules, said = modules_after(code, blind=("torch", "tensorflow"))
    assert "transformers" in modules and said.strip() == "[transformers] a real warning"


@pytest.mark.parametrize(
    "words", [[verb] for verb in NAMES] + [["semantic-ids", action] for action in ("fit", "assign", "lookup")]
)
def test_the_example_of_a_verb_is_a_command(words, capsys):
    with pytest.raises(SystemExit):
        main([*words, "--help"], program="sail-jax")
    example = " ".join(capsys.readouterr().out.split()).rpartition("example: sail-jax ")[2]
    others, _ = split_settings(shlex.split(example))
    assert others[: len(words)] == words
    _parser("sail-jax").parse_args(others)


def test_both_names_of_the_command():
    environment = os.environ | {"COLUMNS": "200"}
    said = subprocess.run(
        [sys.executable, "-m", "sail_jax", "train", "--help"], capture_output=True, text=True, env=environment
    )
    assert said.stdout.startswith("usage: python -m sail_jax train")
    code = "import sys; sys.argv = ['/bin/sail-jax', 'train', '--help']; from sail_jax.__main__ import run; run()"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert said.stdout.startswith("usage: sail-jax train")


@pytest.mark.slow
@pytest.mark.parametrize("own", [None, "elsewhere", ""])
def test_compiled_programs_are_kept_where_the_user_wants(own, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    if own is not None:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", own)
    code = (
        "from sail_jax.cli import main\nimport contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()): main(['describe', '--settings'])\n"
        "import jax; print(repr(jax.config.jax_compilation_cache_dir))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == repr(str(tmp_path / "sail_jax" / "compiled") if own is None else own)
