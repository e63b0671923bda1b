"""The verb `train`."""

import argparse
from pathlib import Path
from typing import Any

from sail_jax import config as config_lib
from sail_jax.cli.common import console, declare, say_next
from sail_jax.config import Config


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "train",
        run,
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


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Trains, or continues a run."""
    if options.distributed:
        import jax

        jax.distributed.initialize()
    train_and_say(config_lib.load(options.config, overrides), options.workdir)
    say_next(options, "evaluate", "--workdir", options.workdir)


def train_and_say(config: Config, workdir: Path) -> None:
    """Trains, or continues the run in `workdir`, and prints what was done and where it lies."""
    from sail_jax.runs.directory import RunDirectory
    from sail_jax.training.loop import train

    result = train(config, workdir)
    files = RunDirectory(workdir)
    if result.start == result.steps:
        console.print(f"The run in {files.path} is already at step {result.steps}.")
        return
    console.print(
        f"Trained steps {result.start + 1} to {result.steps} in {result.seconds:.0f} s, {result.bad_records} bad records. "
        f"Checkpoint: {files.checkpoints}; logs: {files.training_log}, {files.tensorboard}"
    )
