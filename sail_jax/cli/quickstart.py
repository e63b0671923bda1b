"""The verb `quickstart`: trains and evaluates a tiny model on a generated world."""

import argparse
import time
from pathlib import Path
from typing import Any

from sail_jax import config as config_lib
from sail_jax.cli.common import console, declare, print_next
from sail_jax.cli.evaluate import evaluate_and_print
from sail_jax.cli.train import train_and_print


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
    from sail_jax.data.ingest.ingest import ingest
    from sail_jax.data.synthetic.world import make_world

    began = time.monotonic()
    workdir = options.workdir
    data = workdir / "data"
    config = config_lib.load("quickstart", [f"data.dir={data}", *overrides])
    console.print("[bold]1/4 A small world of items, users and logs[/bold]")
    make_world(config.synthetic, config.seed, workdir / "world", test_share=config.logs.test_share)
    console.print("[bold]2/4 Ingestion[/bold]")
    ingest(config, workdir / "world", data)
    console.print("[bold]3/4 Training[/bold]")
    train_and_print(config, workdir)
    console.print("[bold]4/4 Evaluation[/bold]")
    evaluate_and_print(config, workdir)
    console.print(f"Done in {time.monotonic() - began:.0f} s.")
    print_next(options, "embed", "--workdir", workdir, "--output", Path("embeddings") / workdir.name)
