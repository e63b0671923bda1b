"""The verbs that read a recommender's logs: pairs, sequences."""

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table

from sail_jax import config as config_lib
from sail_jax.cli.common import add_verb, console, print_wide
from sail_jax.data.store import FOLDER, ItemStore
from sail_jax.logs.pairs.build import BUILDERS, SAMPLE_PAGE, SUMMARY, build_pairs
from sail_jax.logs.sequences.build import SUMMARY as SEQUENCES_SUMMARY
from sail_jax.logs.sequences.build import build_sequences

_COUNTS = ("users", "targets", "short_history", "unknown_target", "few_kept", "sequences")


def add_verbs(verbs: Any) -> None:
    """Adds the verbs of this room to the parser."""
    _add_pairs(verbs)
    _add_sequences(verbs)


def _add_pairs(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "pairs",
        _pairs,
        "build pair tables from a recommender's logs: co-consumption, searches, live, hashtags, summaries, vectors, labels",
        "--config configs/x.py --source export --output data/x/tables --only copair,search",
        workdir="",
    )
    _add_folders(sub, "; the sheet of examples has pictures")
    sub.add_argument("--only", default="", help=f"builders, separated by commas, out of {', '.join(BUILDERS)}")


def _add_sequences(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "sequences",
        _sequences,
        "make tables of users' histories against the item that came next, for training and for the Vanilla and Filtered "
        "evaluation, from a recommender's logs",
        "--config configs/x.py --source export --output data/x/tables --embeddings embeddings/x",
        workdir="",
    )
    _add_folders(sub)
    sub.add_argument(
        "--embeddings",
        type=Path,
        help="content embeddings, for seq_content_single: a folder that `embed` wrote, or Parquet of `id` and `vector`",
    )


def _add_folders(sub: argparse.ArgumentParser, more: str = "") -> None:
    sub.add_argument("--source", required=True, type=Path, help="folder to which the paths of config.logs are relative")
    sub.add_argument("--output", required=True, type=Path, help="folder of the tables")
    what = "folder that `ingest` wrote: items that its store lacks are left out"
    sub.add_argument("--workdir", type=Path, help=what + more)


def _store(options: argparse.Namespace) -> ItemStore | None:
    return None if options.workdir is None else ItemStore.open(options.workdir / FOLDER)


def _pairs(options: argparse.Namespace, overrides: list[str]) -> None:
    config = config_lib.load(options.config, overrides)
    only = [name.strip() for name in options.only.split(",") if name.strip()]
    summary = build_pairs(config, options.source, options.output, only, _store(options))
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
    console.print(f"Tables: {output}; what was dropped, and why: {output / SUMMARY}; a sample: {output / SAMPLE_PAGE}.")


def _sequences(options: argparse.Namespace, overrides: list[str]) -> None:
    config = config_lib.load(options.config, overrides)
    summary = build_sequences(
        config, options.source, options.output, embeddings=options.embeddings, store=_store(options)
    )
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
    console.print(f"Tables: {output}; what was dropped, and why: {output / SEQUENCES_SUMMARY}.")
