"""The verbs that make data and train: quickstart, world, ingest, materialize, train."""

import argparse
import time
from pathlib import Path
from typing import Any

import jax

from sail_jax import config as config_lib
from sail_jax.cli.common import add_verb, console
from sail_jax.cli.evaluation import evaluate_and_say
from sail_jax.config import Config
from sail_jax.data.ingest.ingest import ingest
from sail_jax.data.pipeline import open_store
from sail_jax.data.synthetic.world import make_world
from sail_jax.data.training_set import materialize
from sail_jax.runs.directory import RunDirectory
from sail_jax.training.loop import train

_QUICKSTART_CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.py"


def add_verbs(verbs: Any) -> None:
    """Adds the verbs of this room to the parser."""
    _add_quickstart(verbs)
    _add_world(verbs)
    _add_ingest(verbs)
    _add_materialize(verbs)
    _add_train(verbs)


def _add_quickstart(verbs: Any) -> None:
    start = add_verb(
        verbs,
        "quickstart",
        _quickstart,
        "generate a small world, train a tiny model on it, evaluate it, write a report",
        "--workdir runs/quickstart",
        workdir="",
        config="",
    )
    start.add_argument("--workdir", type=Path, default=Path("runs/quickstart"), help="where everything is written")
    start.set_defaults(config=_QUICKSTART_CONFIG)


def _add_world(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "world",
        _world,
        "generate a small world of items, users and logs as a raw export",
        "--config configs/recommender.py --output exports/recommender",
        workdir="",
    )
    sub.add_argument(
        "--output", required=True, type=Path, help="folder that is written; give it to `ingest` as --source"
    )


def _add_ingest(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "ingest",
        _ingest,
        "turn a raw export (tables and media files, or a TFDS set) into an item store and tables",
        "--config configs/glyphs.py --source EXPORT --workdir data/glyphs",
        workdir="folder that is written; give it to `train` as --config.data.dir",
    )
    sub.add_argument("--source", type=Path, default=Path(), help="folder of the raw export")


def _add_materialize(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "materialize",
        _materialize,
        "write a training set's joined, shuffled records as shards that are read in order, for object storage",
        "--config configs/glyphs.py --config.data.dir=data/glyphs --dataset i2i --output data/glyphs/materialized/i2i",
        workdir="",
    )
    sub.add_argument("--dataset", required=True, help="name of the training set in config.data.datasets")
    sub.add_argument("--output", required=True, type=Path, help="folder that is written")
    sub.add_argument(
        "--epochs", type=int, default=1, help="times the table is written, each in an order of its own (1)"
    )


def _add_train(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "train",
        _train,
        "train a model, or continue the run in --workdir where it stopped",
        "--config configs/glyphs.py --config.data.dir=data/glyphs --workdir runs/glyphs",
        workdir="run directory",
    )
    sub.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes, started alike on every host; finds the others by the environment of TPU pods, "
        "Slurm, Open MPI or Kubernetes",
    )


def _quickstart(options: argparse.Namespace, overrides: list[str]) -> None:
    began = time.monotonic()
    workdir = options.workdir
    data = workdir / "data"
    config = config_lib.load(options.config, [f"data.dir={data}", *overrides])
    console.print("[bold]1/4 A small world of items, users and logs[/bold]")
    make_world(config.synthetic, config.seed, workdir / "world", test_share=config.logs.test_share)
    console.print("[bold]2/4 Ingestion[/bold]")
    ingest(config, workdir / "world", data)
    console.print("[bold]3/4 Training[/bold]")
    _train_and_say(config, workdir)
    console.print("[bold]4/4 Evaluation[/bold]")
    evaluate_and_say(config, workdir)
    console.print(f"Done in {time.monotonic() - began:.0f} s.")


def _world(options: argparse.Namespace, overrides: list[str]) -> None:
    config = config_lib.load(options.config, overrides)
    summary = make_world(config.synthetic, config.seed, options.output, test_share=config.logs.test_share)
    console.print(", ".join(f"{name} {count:,}" for name, count in vars(summary).items()).replace("_", " "))
    console.print(
        f"Written to {options.output.absolute()}; world.json has the counts, and behaviour.json those of logs/."
    )


def _ingest(options: argparse.Namespace, overrides: list[str]) -> None:
    ingest(config_lib.load(options.config, overrides), options.source, options.workdir)


def _materialize(options: argparse.Namespace, overrides: list[str]) -> None:
    config = config_lib.load(options.config, overrides)
    materialize(config, options.dataset, options.output, open_store(config), epochs=options.epochs)
    output = options.output.absolute()
    console.print(f"Written to {output}. Train from it: --config.data.datasets.{options.dataset}.materialized={output}")


def _train(options: argparse.Namespace, overrides: list[str]) -> None:
    if options.distributed:
        jax.distributed.initialize()
    _train_and_say(config_lib.load(options.config, overrides), options.workdir)


def _train_and_say(config: Config, workdir: Path) -> None:
    result = train(config, workdir)
    run = RunDirectory(workdir)
    if result.start == result.steps:
        console.print(f"The run in {run.path} is already at step {result.steps}.")
        return
    console.print(
        f"Trained steps {result.start + 1} to {result.steps} in {result.seconds:.0f} s, {result.bad_records} bad records. "
        f"Checkpoint: {run.checkpoints}; logs: {run.training_log}, {run.tensorboard}"
    )
