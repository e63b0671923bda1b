"""The verb `pairs`: builds pair tables from a recommender's logs."""

import argparse
from typing import Any

from rich.table import Table

from sail_jax import config as config_lib
from sail_jax.cli.after_tables import BUILDERS, print_after_tables
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


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "pairs",
        run,
        "build pair tables from a recommender's logs: co-consumption, searches, live, hashtags, summaries, vectors and "
        "labels",
        "--config configs/recommender.py --source exports/recommender --output data/recommender/tables "
        "--only copair,search",
        workdir="",
        kept="finished tables are kept, and the same command goes on.",
    )
    add_folders(sub, "; the page of examples shows their pictures")
    sub.add_argument("--only", default="", help=f"builders to run, separated by commas: {', '.join(BUILDERS)} (all)")
    add_engine(sub, "builder")


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Builds the tables, and prints their row counts."""
    from sail_jax.logs.pairs.build import SAMPLE_PAGE, SUMMARY, build_pairs, sql_of_builders
    from sail_jax.logs.pairs.report import kept_and_dropped, warnings, without_test

    config = config_lib.load(options.config, overrides)
    source, output = source_of(options), output_of(options)
    only = [name.strip() for name in options.only.split(",") if name.strip()]
    if options.dry_run:
        print_sql(sql_of_builders(config, source, only, options.engine))
        return
    print_separators(config, source)
    summary = build_pairs(config, source, output, only, open_store_of(options), options.engine)
    table = Table("table", "rows read", "candidates", "train", "test", "distinct items", title="Pairs")
    for name, counts in summary["builders"].items():
        keys = ("rows_read", "candidates", "train", "test", "distinct_items")
        table.add_row(name, *(f"{counts[key]:,}" for key in keys))
    print_wide(table)
    for name, counts in summary["builders"].items():
        console.print(kept_and_dropped(name, counts), highlight=False)
    for name, counts in summary["builders"].items():
        for line in warnings(name, counts):
            console.print(f"Warning: {line}", style="yellow", highlight=False)
    if line := without_test(summary["builders"]):
        console.print(line, highlight=False)
    cut = summary["cut"]
    if config.logs.events.path and config.logs.events.split:
        console.print(f"Train and test are those of the events' column {config.logs.events.split!r}.")
    else:
        if config.logs.split != "time":
            after = " after the cut" * (config.logs.split == "both")
            console.print(
                f"Test rows are those of a share of {config.logs.test_users} of the users{after}, train rows those of "
                f"the others (config.logs.split={config.logs.split}); of items without users, by the cut."
            )
        console.print(
            f"Train ends at {cut['date'] or cut['last_second_of_train']} (config.logs.test_share={cut['test_share']})."
        )
    console.print(f"Tables: {output}; what was dropped, and why: {output / SUMMARY}; a sample: {output / SAMPLE_PAGE}.")
    print_read(summary)
    made = next((output / f"{name}.parquet" for name, of in summary["builders"].items() if of["train"]), None)
    print_after_tables(options, config, "pairs", options.workdir, made)
