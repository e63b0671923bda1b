"""The verb `quickstart`: trains and evaluates a tiny model on a generated world."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from sail_jax import config as config_lib
from sail_jax.cli.common import console, declare, print_next
from sail_jax.cli.evaluate import evaluate_and_print
from sail_jax.cli.log_folders import print_separators
from sail_jax.cli.train import train_and_print
from sail_jax.cli.usable_tables import with_usable_tables
from sail_jax.config import Config


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "quickstart",
        run,
        "generate a small world, train a tiny model on it, evaluate it, write a report",
        "--workdir runs/quickstart",
        workdir="",
        config="",
        kept="the steps that are done are kept, and the same command goes on.",
    )
    sub.add_argument(
        "--workdir", type=Path, default=Path("runs/quickstart"), help="folder that is written (runs/quickstart)"
    )


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Runs the four steps, each of which resumes where it stopped."""
    from sail_jax.data.synthetic.world import make_world

    began = time.monotonic()
    workdir = options.workdir
    config = config_lib.load("quickstart", [f"data.dir={workdir / 'data'}", *overrides])
    console.print("1/4 A small world of items, users and logs", style="bold")
    make_world(config.synthetic, config.seed, workdir / "world", test_share=config.logs.test_share)
    go_all_the_way(config, workdir / "world", workdir)
    console.print(f"Done in {time.monotonic() - began:.0f} s.")
    print_next(options, "embed", "--workdir", workdir, "--output", Path("embeddings") / workdir.name)


def go_all_the_way(config: Config, source: Path, workdir: Path) -> None:
    """Ingests, builds tables from logs, trains and evaluates; what is finished is not done again.

    Args:
        config: the experiment; its `data.dir` is written.
        source: the folder of the raw export.
        workdir: the run directory.
    """
    from sail_jax.data.ingest.ingest import ingest
    from sail_jax.training.setup import schedules

    schedules(config)  # a mistake in them is said before the long work
    data = Path(config.data.dir)
    console.print("2/4 Ingestion", style="bold")
    ingest(config, source, data)
    config = with_usable_tables(config, _build_from_logs(config, source, data))
    evaluated = _evaluated(config, workdir)
    console.print("3/4 Training", style="bold")
    train_and_print(config, workdir)
    console.print("4/4 Evaluation", style="bold")
    if evaluated:
        console.print(f"The run in {workdir.absolute()} is already evaluated.")
    else:
        evaluate_and_print(config, workdir)


def _build_from_logs(config: Config, source: Path, data: Path) -> dict[str, str]:
    """Builds the pair tables that training or evaluation names and no ingested table gives.

    Returns:
        File name of a table without rows -> why it has none.
    """
    from sail_jax.data.store import FOLDER, ItemStore
    from sail_jax.logs.pairs.build import BUILDERS, SUMMARY, build_pairs, why_empty
    from sail_jax.logs.pairs.report import kept_and_dropped, warnings

    named = {Path(of.table).stem for of in (*config.data.datasets.values(), *config.eval.tasks.values())}
    wanted = [name for name in BUILDERS if name in named and name not in config.ingest.tables]
    missing = [name for name in wanted if not (data / "tables" / f"{name}.parquet").exists()]
    if missing:
        print_separators(config, source)
        build_pairs(config, source, data / "tables", missing, ItemStore.open(data / FOLDER), strict=False)
    summary = data / "tables" / SUMMARY
    counts = json.loads(summary.read_text(encoding="utf-8"))["builders"] if wanted and summary.is_file() else {}
    for name, of in counts.items():
        console.print(kept_and_dropped(name, of), highlight=False)
        for line in warnings(name, of):
            console.print(line, style="yellow", highlight=False)
        if drawn := of.get("test_drawn"):
            console.print(
                f"{name}: no pair is new after the time that ends train, so {drawn:,} of the "
                f"{drawn + of['train']:,} are drawn for the test; config.builders.{name}.held_out draws more or fewer.",
                highlight=False,
            )
    return {f"{name}.parquet": why for name, of in counts.items() if (why := why_empty(name, of))}


def _evaluated(config: Config, workdir: Path) -> bool:
    """Returns whether the last step of a run was evaluated, under the same settings."""
    from sail_jax.runs.directory import RunDirectory

    files = RunDirectory(workdir)
    if not (files.config.is_file() and files.evaluation.is_file() and files.report.is_file()):
        return False
    evaluated = json.loads(files.evaluation.read_text(encoding="utf-8"))["step"]
    return evaluated == config_lib.total_steps(config) and files.saved_config().eval == config.eval
