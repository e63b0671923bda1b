"""The verb `config`: compares two configs."""

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table

from sail_jax import config as config_lib
from sail_jax.cli.common import console, declare, print_next, print_wide, without_config
from sail_jax.config import Config
from sail_jax.config.differences import differences


def add_verb(verbs: Any) -> None:
    """Declares the verb and its action."""
    sub = declare(
        verbs, "config", run, "compare the settings of two configs or runs", "diff tiny small", workdir="", config=""
    )
    actions = sub.add_subparsers(required=True, metavar="ACTION")
    diff = actions.add_parser(
        "diff",
        help="print the settings in which two configs or runs differ",
        description="Prints the settings in which two configs or runs differ.",
        epilog="example: %(prog)s configs/quickstart.py runs/quickstart",
    )
    for name in ("first", "second"):
        diff.add_argument(name, type=Path, metavar="CONFIG", help="experiment file, preset, or run directory")


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Prints the differences."""
    without_config("config diff", overrides)
    table = Table("setting", str(options.first), str(options.second))
    for key, *values in differences(_load(options.first), _load(options.second)):
        table.add_row(key, *("" if value is None else repr(value) for value in values))
    if table.row_count:
        print_wide(table)
    console.print(f"{table.row_count or 'No'} settings differ.", highlight=False)
    print_next(options, "describe", "--settings", "WORD")


def _load(path: Path) -> Config:
    """Reads an experiment, or what a run was started or last resumed with."""
    return config_lib.load(path / "config.json" if path.is_dir() else path)
