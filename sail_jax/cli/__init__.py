"""The command line: `python -m sail_jax VERB --config configs/X.py --config.a.b=value --workdir DIR`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console

from sail_jax.cli import curation, embedding, evaluation, logs, runs, search, semantic_ids, weights
from sail_jax.errors import SailError

INTERRUPTED = 130  # the exit status of a process that Ctrl-C ended
_ROOMS = (runs, evaluation, curation, logs, weights, embedding, search, semantic_ids)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit status. Errors meant for the user are printed without a traceback."""
    arguments, overrides = _split(list(sys.argv[1:] if argv is None else argv))
    options = _parser().parse_args(arguments)
    _keep_compiled()
    try:
        options.run(options, overrides)
    except SailError as error:
        return _fail(str(error), 2)
    except OSError as error:
        if error.filename is None:
            raise
        return _fail(
            f"{error.filename}: {error.strerror}. Check that the path is right, can be written, and has room.", 2
        )
    except KeyboardInterrupt:
        return _fail(
            "interrupted; the same command goes on after the last shard or checkpoint that was saved.", INTERRUPTED
        )
    return 0


def _keep_compiled() -> None:
    """Keeps compiled programs for the next process, in the user's cache, unless JAX_COMPILATION_CACHE_DIR says otherwise."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "sail_jax" / "compiled"))


def _fail(message: str, status: int) -> int:
    """Prints an error for the user; returns the exit status."""
    Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(f"error: {message}")
    return status


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separates `--config.a.b=value` words from the rest."""
    overrides = [word.removeprefix("--config.") for word in arguments if word.startswith("--config.")]
    return [word for word in arguments if not word.startswith("--config.")], overrides


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sail_jax",
        description="Omni-modal embedding models: ingest, train, evaluate, export.",
        epilog="Any setting can be changed with --config.a.b=value (quote lists: --config.eval.ks='(1, 10)'); `describe --settings` "
        "lists them all. example: python -m sail_jax quickstart --workdir runs/quickstart",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for room in _ROOMS:
        room.add_verbs(verbs)
    return parser
