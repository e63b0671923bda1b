"""The action `sweep member`: one member is trained and evaluated; launchers call it."""

import argparse
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

from sail_jax import config as config_lib
from sail_jax.cli.common import console, declare, without_config
from sail_jax.cli.distributed import join_processes, joined, leave
from sail_jax.cli.evaluate import evaluate_and_print
from sail_jax.cli.sweep_start import WORKDIR, folder_with
from sail_jax.cli.train import train_and_print
from sail_jax.errors import Stopped

if TYPE_CHECKING:
    from sail_jax.sweeps.folder import SweepFolder


def add_actions(actions: Any) -> None:
    """Declares the action."""
    sub = declare(
        actions,
        "member",
        _member,
        "train and evaluate one member; launchers call it",
        "peak=0.001,seed=0 --workdir sweeps/peak",
        workdir=WORKDIR,
        config="",
        distributed=True,
        hidden=True,
        kept="the same command goes on from the last checkpoint.",
    )
    sub.add_argument("member", help="name of the member")
    sub.add_argument("--launcher", type=int, help="process that launched it, without which it does not start (none)")


def _member(options: argparse.Namespace, overrides: list[str]) -> None:
    from sail_jax.sharding.process_group import everyone
    from sail_jax.sweeps.program import run_program
    from sail_jax.sweeps.shared_stages import read_forks, take_over
    from sail_jax.sweeps.slurm import requeue_if_preempted

    without_config("sweep member", overrides)
    first = join_processes(options, stop_together=True)
    folder = folder_with(options)
    run = folder.run(options.member)
    try:
        with _noted(folder, options.member, options.launcher) if first else contextlib.nullcontext():
            if (fork := read_forks(folder).get(options.member)) and everyone().on_first(
                lambda: take_over(folder, options.member, fork)
            ):
                console.print(f"Forked from {fork.leader} at step {fork.step}.")
            if program := folder.read().program:
                run_program(program, folder, options.member)
                return
            train_and_print(config_lib.load(folder.config(options.member)), run.path)
            evaluate_and_print(run.load_config(), run.path)
    except Stopped as stopped:
        if first:
            requeue_if_preempted(folder)
        if stopped.kept and joined():  # all have stopped after the same step, and end together
            leave()
        raise


def _noted(folder: "SweepFolder", name: str, launcher: int | None) -> contextlib.AbstractContextManager:
    """Within it, this process runs a member, and its status says so.

    Raises:
        Stopped: its launcher is gone, so that another command may have started the member by now.
    """
    import jax

    from sail_jax.sweeps.attempt import attempt
    from sail_jax.sweeps.slurm import this_job

    devices = jax.device_count()  # takes seconds, after which it is looked at once more
    if launcher not in (None, os.getppid()):
        raise Stopped(signal.SIGTERM, "the command that launched it was killed; `sweep run` starts it again.")
    return attempt(folder, name, job=this_job(), devices=lambda: devices)
