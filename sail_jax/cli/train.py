"""The verb `train`: trains a model, or resumes a run."""

import argparse
from pathlib import Path
from typing import Any

from sail_jax import config as config_lib
from sail_jax.cli.common import console, declare, print_next
from sail_jax.cli.distributed import join_processes, joined, leave
from sail_jax.config import Config
from sail_jax.errors import Stopped


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "train",
        run,
        "train a model, or resume the run in --workdir",
        "--config configs/glyphs.py --config.data.dir=data/glyphs --workdir runs/glyphs",
        workdir="run directory",
        distributed=True,
        kept="the same command goes on from the last checkpoint.",
    )
    sub.add_argument(
        "--profile",
        type=_steps,
        metavar="FIRST:LAST",
        help="write a trace of these steps of the run, such as 10:13, for TensorBoard and Perfetto",
    )


def _steps(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not colon or not first.isdecimal() or not last.isdecimal():
        raise argparse.ArgumentTypeError(f"write the first and the last step as 10:13, not {text!r}")
    return int(first), int(last)


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Trains a model, or resumes a run."""
    join_processes(options, stop_together=True)
    try:
        train_and_print(config_lib.load(options.config, overrides), options.workdir, profile=options.profile)
    except Stopped as stopped:
        if stopped.kept and joined():  # all have stopped after the same step: none may end before the others are done
            leave()
        raise
    print_next(options, "evaluate", "--workdir", options.workdir)


def train_and_print(config: Config, workdir: Path, *, profile: tuple[int, int] | None = None) -> None:
    """Trains a model, or resumes the run in `workdir`; prints the steps done and the paths written.

    Args:
        config: the experiment.
        workdir: the run directory.
        profile: first and last step to trace.
    """
    from sail_jax.runs.cuts import say_cuts
    from sail_jax.runs.directory import RunDirectory
    from sail_jax.training.loop import train

    result = train(config, workdir, profile=profile)
    files = RunDirectory(workdir)
    if result.start == result.steps:
        console.print(f"The run in {files.path} is already at step {result.steps}.")
        return
    console.print(
        f"Trained steps {result.start + 1} to {result.steps} in {result.seconds:.0f} s, "
        f"{result.bad_records} bad records. "
        f"Checkpoint: {files.checkpoints}; training log: {files.training_log}, {files.tensorboard}"
    )
    if said := say_cuts(result.cuts):
        console.print(said)
