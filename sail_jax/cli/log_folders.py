"""What `pairs` and `sequences` share: flags of folders and of the engine, and what is said of logs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_jax.buckets import place
from sail_jax.cli.common import console
from sail_jax.config import Config

if TYPE_CHECKING:
    from sail_jax.data.store import ItemStore
    from sail_jax.logs.addresses import Address


def add_folders(sub: argparse.ArgumentParser, more: str = "") -> None:
    """Adds --source, --output and --workdir; `more` is appended to the help of --workdir."""
    source = "folder to which the paths of config.logs are relative; with --engine spark, also an address that it reads"
    sub.add_argument("--source", required=True, help=source)
    sub.add_argument(
        "--output", required=True, help="folder of the tables; with --engine spark, also an address that it writes"
    )
    what = "folder that `ingest` wrote; items that are not in its store are left out"
    sub.add_argument("--workdir", type=place, help=what + more)


def source_of(options: argparse.Namespace) -> "Path | Address":
    """Returns the folder in --source, or its address where Spark reads it."""
    return _located(options.source, options.engine)


def output_of(options: argparse.Namespace) -> "Path | Address":
    """Returns the folder in --output, or its address where Spark writes it."""
    found = _located(options.output, options.engine)
    return found.absolute() if isinstance(found, Path) else found


def _located(text: str, engine: str) -> "Path | Address":
    from sail_jax.logs.addresses import located

    return located(text) if engine == "spark" else place(text)


def print_separators(config: Config, source: "Path | Address") -> None:
    """Prints what is taken to separate the cells of logs in text files."""
    from sail_jax.logs.reader import separators_said

    for line in separators_said(config, source):
        console.print(line, highlight=False)


def print_read(summary: dict[str, Any]) -> None:
    """Prints how many rows of logs at addresses a build used, and what files it passed over."""
    for name, facts in summary["logs"].items():
        lacking = [f"{of:,} {key.replace('_', ' ')}" for key, of in facts.items() if key.startswith("without_") and of]
        why = f" ({', '.join(lacking)})" * bool(lacking)
        console.print(f"{name}: {facts['rows']:,} rows at its address, {facts['kept']:,} usable{why}.", highlight=False)
    for line in summary["passed_over"]:
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
