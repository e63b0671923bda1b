"""What the verbs share: how one is declared, the config that it reads, and how tables and the next step are printed."""

import argparse
import shlex
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sail_jax import config as config_lib
from sail_jax.config import Config
from sail_jax.errors import SailError

console = Console(soft_wrap=True)


def declare(
    verbs: Any,
    name: str,
    run: Callable,
    meaning: str,
    example: str,
    *,
    workdir: str,
    config: str = "required",
) -> argparse.ArgumentParser:
    """Adds a verb to the parser, with help that ends in an example.

    Args:
        verbs: where it is added.
        name: the verb.
        run: what it does, with the options and the words of `--config.a.b=value`.
        meaning: for --help.
        example: what follows the verb in an example.
        workdir: what its --workdir is; empty for a verb without one.
        config: whether --config is "required", by default that "of run" (see `config_of_run`), or "" for none.
    """
    sub = verbs.add_parser(name, help=meaning, description=meaning, epilog=f"example: %(prog)s {example}")
    if config == "required":
        sub.add_argument(
            "--config",
            required=True,
            type=Path,
            help=f"experiment file, such as configs/x.py, or one that comes with the package: {', '.join(config_lib.packaged())}",
        )
    elif config == "of run":
        sub.add_argument(
            "--config", type=Path, help="experiment file; by default the one that the run was started with"
        )
    if workdir:
        sub.add_argument("--workdir", required=True, type=Path, help=workdir)
    sub.set_defaults(run=run)
    return sub


def config_of_run(options: argparse.Namespace, overrides: list[str]) -> Config:
    """The config of the run in --workdir, or --config in its place, with overrides."""
    from sail_jax.runs.directory import RunDirectory

    run = RunDirectory(options.workdir)
    if not run.config.is_file():
        run.load_config()  # says that there is no run
    return config_lib.load(options.config or run.config, overrides)


def without_config(verb: str, overrides: list[str]) -> None:
    """Raises SailError where settings are given to a verb that reads none."""
    if overrides:
        raise SailError(f"{verb} reads no config; leave out --config settings.")


def say_next(options: argparse.Namespace, *words: object) -> None:
    """Prints the command that usually comes next, such as `Next: sail-jax evaluate --workdir runs/x`.

    Args:
        options: those of the verb that ends.
        words: the verb and what follows it; they are quoted for the shell.
    """
    command = f"{options.program} {shlex.join(map(str, words))}"
    console.print(f"Next: {command}", markup=False, highlight=False)


def one_line(text: str) -> str:
    """A text with all control characters written out (a line feed as \\n): it keeps to its line, and commands no terminal."""
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text)


def print_wide(table: Table) -> None:
    """Prints a table wide enough for all columns where the output is no terminal."""
    Console(width=max(console.width, 120)).print(table)
