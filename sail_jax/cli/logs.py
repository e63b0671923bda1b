"""The verb that reads a recommender's logs: pairs."""

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table

from sail_jax import config as config_lib
from sail_jax.cli.common import add_verb, console, print_wide
from sail_jax.curation.log_pairs.build import BUILDERS, SHEET, SUMMARY, build_pairs
from sail_jax.data.store import ItemStore


def add_verbs(verbs: Any) -> None:
    """Adds the verb of this room to the parser."""
    sub = add_verb(
        verbs,
        "pairs",
        _pairs,
        "build pair tables from a recommender's logs: co-consumption, searches, live, hashtags, summaries, vectors, labels",
        "--config configs/x.py --source export --output data/x/tables --only copair,search",
        workdir="",
    )
    sub.add_argument("--source", required=True, type=Path, help="folder to which the paths of config.logs are relative")
    sub.add_argument("--output", required=True, type=Path, help="folder of the tables")
    sub.add_argument("--only", default="", help=f"builders, separated by commas, out of {', '.join(BUILDERS)}")
    sub.add_argument(
        "--workdir",
        type=Path,
        help="folder that `ingest` wrote: items that its store lacks are left out, and the contact sheet has pictures",
    )


def _pairs(options: argparse.Namespace, overrides: list[str]) -> None:
    config = config_lib.load(options.config, overrides)
    only = [name.strip() for name in options.only.split(",") if name.strip()]
    store = None if options.workdir is None else ItemStore.open(options.workdir / "items")
    summary = build_pairs(config, options.source, options.output, only, store)
    table = Table("table", "rows read", "candidates", "train", "test", "distinct items", title="Pairs")
    for name, counts in summary["builders"].items():
        keys = ("rows_read", "candidates", "train", "test", "distinct_items")
        table.add_row(name, *(f"{counts[key]:,}" for key in keys))
    print_wide(table)
    cut = summary["cut"]
    console.print(
        f"Train ends at {cut['date'] or cut['last_second_of_train']} (config.logs.test_share={cut['test_share']})."
    )
    output = options.output.absolute()
    console.print(f"Tables: {output}; what was dropped, and why: {output / SUMMARY}; a sample: {output / SHEET}.")
