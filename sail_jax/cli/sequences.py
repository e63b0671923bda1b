"""The verb `sequences`: builds tables of users' histories from a recommender's logs."""

import argparse
from typing import Any

from rich.table import Table

from sail_jax import config as config_lib
from sail_jax.buckets import place
from sail_jax.cli.after_tables import print_after_tables
from sail_jax.cli.common import console, declare, print_wide
from sail_jax.cli.log_folders import (
    add_engine,
    add_folders,
    open_store_of,
    output_of,
    print_read,
    print_separators,
    print_sql,
    source_of,
)

_COUNTS = ("users", "targets", "short_history", "unknown_target", "few_kept", "sequences")


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "sequences",
        run,
        "build tables of users' histories and the next item from a recommender's logs, for training and for the "
        "Vanilla and Filtered evaluation",
        "--config configs/recommender.py --source exports/recommender --output data/recommender/tables "
        "--workdir data/recommender",
        workdir="",
        kept="finished tables are kept, and the same command goes on.",
    )
    add_folders(sub)
    sub.add_argument(
        "--embeddings",
        type=place,
        help="content embeddings, for seq_content_single: a folder that `embed` wrote, or Parquet of `id` and `vector`",
    )
    add_engine(sub, "construction")


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Builds the tables, and prints their row counts."""
    from sail_jax.logs.sequences.build import SUMMARY, build_sequences, sql_of_sequences

    config = config_lib.load(options.config, overrides)
    source, output = source_of(options), output_of(options)
    given = {"embeddings": options.embeddings, "engine": options.engine}
    if options.dry_run:
        print_sql(sql_of_sequences(config, source, **given))
        return
    print_separators(config, source)
    summary = build_sequences(config, source, output, store=open_store_of(options), **given)
    table = Table("table", "split", *(name.replace("_", " ") for name in _COUNTS), "mean length", title="Sequences")
    for name, splits in summary["tables"].items():
        for split, counts in splits.items():
            items = sum(int(size) * count for size, count in counts["lengths"].items())
            mean = f"{items / counts['sequences']:.1f}" if counts["sequences"] else "-"
            table.add_row(name, split, *(f"{counts[key]:,}" for key in _COUNTS), mean)
    print_wide(table)
    for name, reason in summary["skipped"].items():
        console.print(f"{name} was not built; it needs {reason}.")
    events = summary["events"]
    if events["not_in_store"]:
        console.print(
            f"{events['not_in_store']:,} of {events['positive']:,} positive events were left out: "
            "the item is not in the store."
        )
    console.print(f"Tables: {output}; what was dropped, and why: {output / SUMMARY}.")
    print_read(summary)
    trains = [name for name, splits in summary["tables"].items() if splits.get("train", {}).get("sequences")]
    made = output / f"{trains[0]}.parquet" if trains else None
    print_after_tables(options, config, "sequences", options.workdir, made)
