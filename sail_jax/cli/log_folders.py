"""What `pairs` and `sequences` share: flags of folders and of the engine, and what is said of logs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sail_jax.buckets import place
from sail_jax.cli.common import console
from sail_jax.config import Config

if TYPE_CHECKING:
    from sail_jax.data.store import ItemStore


def add_folders(sub: argparse.ArgumentParser, more: str = "") -> None:
    """Adds --source, --output and --workdir; `more` is appended to the help of --workdir."""
    sub.add_argument(
        "--source", required=True, type=place, help="folder to which the paths of config.logs are relative"
    )
    sub.add_argument("--output", required=True, type=place, help="folder of the tables")
    what = "folder that `ingest` wrote; items that are not in its store are left out"
    sub.add_argument("--workdir", type=place, help=what + more)


def print_separators(config: Config, source: Path) -> None:
    """Prints what is taken to separate the cells of logs in text files."""
    from sail_jax.logs.reader import separators_said

    for line in separators_said(config, source):
        console.print(line, highlight=False)


def add_engine(sub: argparse.ArgumentParser, rule: str) -> None:
    """Adds --engine and --dry-run; `rule` is what has SQL of its own."""
    sub.add_argument(
        "--engine",
        default="duckdb",
        choices=("duckdb", "spark"),
        help="what runs the rules, with the same tables; spark needs the extra of that name (%(default)s)",
    )
    sub.add_argument("--dry-run", action="store_true", help=f"print the SQL of each {rule}, and write nothing")


def print_sql(queries: dict[str, str]) -> None:
    """Prints the SQL of rules, by name."""
    for name, sql in queries.items():
        print(f"-- {name}\n{sql};\n")


def open_store_of(options: argparse.Namespace) -> "ItemStore | None":
    """Returns the item store in --workdir, or None without --workdir."""
    from sail_jax.data.store import FOLDER, ItemStore

    return None if options.workdir is None else ItemStore.open(options.workdir / FOLDER)
