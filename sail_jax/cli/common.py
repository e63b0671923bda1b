"""Functions that the verbs share: declaring a verb, loading its config, printing tables."""

import argparse
import shlex
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from sail_jax import config as config_lib
from sail_jax.buckets import place
from sail_jax.config import Config
from sail_jax.errors import SailError
from sail_jax.terminal import Terminal, console

# What a verb says when a signal ends it (`declare`).
NOTHING_KEPT = "nothing was written; run the same command again."


def declare(
    verbs: Any,
    name: str,
    run: Callable,
    meaning: str,
    example: str,
    *,
    workdir: str,
    config: str = "required",
    distributed: bool = False,
    step: bool = False,
    kept: str = NOTHING_KEPT,
    hidden: bool = False,
) -> argparse.ArgumentParser:
    """Adds a verb to the parser, with help that ends in an example.

    Args:
        verbs: the subparsers to which the verb is added.
        name: the verb.
        run: called as run(options, overrides) with the parsed flags and the `a.b=value` settings.
        meaning: what the verb does, for --help.
        example: the words after the verb in an example.
        workdir: help of --workdir; empty for a verb without one.
        config: "required"; "of run" for an optional --config (see `config_of_run`); "" for none.
        step: whether the verb reads a checkpoint, which --step chooses.
        distributed: whether several processes can run the verb together (see `cli.distributed`).
        kept: what is kept when a signal ends the verb, and how to go on.
        hidden: whether the list of verbs leaves it out.
    """
    listed = {} if hidden else {"help": meaning}
    sub = verbs.add_parser(name, **listed, description=meaning, epilog=f"example: %(prog)s {example}")
    if config == "required":
        sub.add_argument(
            "--config",
            required=True,
            type=Path,
            help="experiment file, such as configs/x.py, or an experiment of the package: "
            f"{', '.join(config_lib.packaged())}",
        )
    elif config == "of run":
        sub.add_argument("--config", type=Path, help="experiment file (the config of the run)")
    if workdir:
        sub.add_argument("--workdir", required=True, type=place, help=workdir)
    if step:
        sub.add_argument("--step", type=int, help="step of the checkpoint (the newest one that is whole)")
    if distributed:
        sub.add_argument(
            "--distributed",
            action="store_true",
            help="run as one of several processes, started with the same command on every host; the environment of TPU "
            "pods, Slurm, Open MPI or Kubernetes names the others",
        )
    sub.set_defaults(run=run, kept=kept)
    return sub


def config_of_run(options: argparse.Namespace, overrides: list[str]) -> Config:
    """Returns the config in --config, by default that of the run in --workdir, with overrides."""
    from sail_jax.runs.directory import RunDirectory

    return RunDirectory(options.workdir).load_config(options.config, overrides)


def without_config(verb: str, overrides: list[str]) -> None:
    """Raises SailError if settings are given to a verb that reads no config."""
    if overrides:
        raise SailError(f"{verb} reads no config; leave out --config settings.")


# Verbs that search the items of a run, and so need the same settings as one another.
_READ_RUNS = ("search", "serve")


def print_next(options: argparse.Namespace, *words: object) -> None:
    """Prints the command that usually comes next, such as `Next: sail-jax evaluate --workdir runs/x`.

    Where it reads the config of this verb, it gets this verb's settings too.

    Args:
        options: the parsed flags of this verb, with its settings.
        words: the next verb and its flags; they are quoted for the shell.
    """
    command = f"{options.program} {shlex.join(_with_settings(options, list(map(str, words))))}"
    console.print(f"Next: {command}", highlight=False)


def _with_settings(options: argparse.Namespace, words: list[str]) -> list[str]:
    """Returns the words of a command with `--config.a=b` of this verb behind the same config, unless they set it.

    Verbs that read a finished run have the settings of that run, so that theirs are those that differ from it.
    """
    source = "config" if getattr(options, "config", None) else "workdir" if words[0] in _READ_RUNS else ""
    at = words.index(f"--{source}") + 1 if f"--{source}" in words else 0
    if not at or words[at] != str(getattr(options, source, None)):
        return words
    given = {word.partition("=")[0] for word in words}
    settings = [f"--config.{setting}" for setting in options.overrides]
    kept = [setting for setting in settings if setting.partition("=")[0] not in given]
    return [*words[: at + 1], *kept, *words[at + 1 :]]


def one_line(text: str) -> str:
    """Returns a text with control characters escaped (a line feed as \\n), safe to print to a terminal."""
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text)


def print_wide(table: Table) -> None:
    """Prints a table as wide as the terminal, in a file at least 120 wide; words are never cut."""
    longest = Terminal(width=10_000).measure(table).minimum
    least = longest if console.is_terminal else max(longest, 120)
    Terminal(width=max(console.width, least)).print(table, soft_wrap=False)
