"""The verb that makes sequences of users' histories: sequences."""

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table

from sail_jax import config as config_lib
from sail_jax.cli.common import add_verb, console, print_wide
from sail_jax.curation.sequences import SUMMARY, build_sequences
from sail_jax.data import store as store_lib
from sail_jax.data.store import ItemStore

_COUNTS = ("users", "targets", "short_history", "unknown_target", "few_kept", "sequences")


def add_verbs(verbs: Any) -> None:
    """Adds the verb of this room to the parser."""
    sub = add_verb(
        verbs,
        "sequences",
        _sequences,
        "make tables of users' histories against the item that came next, for training and for the Vanilla and Filtered "
        "evaluation, from a recommender's logs",
        "--config configs/x.py --source export --output data/x/tables --embeddings embeddings/x",
        workdir="",
    )
    sub.add_argument("--source", required=True, type=Path, help="folder to which the paths of config.logs are relative")
    sub.add_argument("--output", required=True, type=Path, help="folder of the tables")
    sub.add_argument(
        "--embeddings",
        type=Path,
        help="content embeddings, for seq_content_single: a folder that `embed` wrote, or Parquet of `id` and `vector`",
    )
    sub.add_argument("--workdir", type=Path, help="folder that `ingest` wrote: items that its store lacks are left out")


def _sequences(options: argparse.Namespace, overrides: list[str]) -> None:
    config = config_lib.load(options.config, overrides)
    store = None if options.workdir is None else ItemStore.open(options.workdir / store_lib.FOLDER)
    summary = build_sequences(config, options.source, options.output, embeddings=options.embeddings, store=store)
    table = Table("table", "split", *(name.replace("_", " ") for name in _COUNTS), "mean length", title="Sequences")
    for name, splits in summary["tables"].items():
        for split, counts in splits.items():
            items = sum(int(size) * count for size, count in counts["lengths"].items())
            mean = f"{items / counts['sequences']:.1f}" if counts["sequences"] else "-"
            table.add_row(name, split, *(f"{counts[key]:,}" for key in _COUNTS), mean)
    print_wide(table)
    for name, reason in summary["skipped"].items():
        console.print(f"{name} was not made; it needs {reason}.")
    output, events = options.output.absolute(), summary["events"]
    if events["not_in_store"]:
        console.print(
            f"{events['not_in_store']:,} of {events['positive']:,} positive events were left out: the store lacks the item."
        )
    console.print(f"Tables: {output}; what was dropped, and why: {output / SUMMARY}.")
