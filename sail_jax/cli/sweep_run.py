"""The actions `sweep run` and `sweep retry`: members are checked and launched, failed ones again."""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_jax.cli.common import console, declare, print_next, without_config
from sail_jax.cli.sweep_start import WORKDIR, alone, checked_sweep, positive
from sail_jax.cli.sweep_watch import conclude
from sail_jax.errors import SailError

if TYPE_CHECKING:
    from sail_jax.sweeps.declare import Sweep
    from sail_jax.sweeps.folder import SweepFolder
    from sail_jax.sweeps.slurm import JobRequest

# Lines of a failed member's log that `retry` shows.
_END_OF_LOG = 5


def add_actions(actions: Any) -> None:
    """Declares the actions."""
    _add_run(actions)
    _add_retry(actions)


def _add_run(actions: Any) -> None:
    sub = declare(
        actions,
        "run",
        _run,
        "run the members of a sweep that are not done, or extend a sweep by members and seeds",
        "configs/sweeps/peak.py --workdir sweeps/peak --config.data.dir=data/glyphs --jobs 2",
        workdir=f"{WORKDIR}; it is written",
        config="",
        kept="the members that run have saved their state, and the same command goes on.",
    )
    sub.add_argument(
        "file", type=Path, help="sweep file: Python with `def sweep() -> Sweep`, or a sweep of the package"
    )
    sub.add_argument("--dry-run", action="store_true", help="check and print the members, and start and write nothing")
    sub.add_argument(
        "--topology", help="compile the step of every distinct program for this hardware first, as `describe` does"
    )
    _add_launcher(sub)


def _add_retry(actions: Any) -> None:
    sub = declare(
        actions,
        "retry",
        _retry,
        "run the failed members again, and no others; shows how their logs end",
        "--workdir sweeps/peak",
        workdir=WORKDIR,
        config="",
        kept="the members that run have saved their state; `sweep run` goes on.",
    )
    _add_launcher(sub)


def _add_launcher(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--launcher",
        choices=("local", "slurm"),
        default="local",
        help="where members run: here, or as an array of SLURM jobs, which needs the extra `slurm` (local)",
    )
    sub.add_argument(
        "--jobs",
        type=positive,
        help="members that run at a time (here: one per GPU, or one on a machine without; SLURM: as many as it lets)",
    )
    slurm = sub.add_argument_group("with --launcher slurm")
    slurm.add_argument("--partition", help="partition (the default one)")
    slurm.add_argument("--account", help="account (the default one)")
    slurm.add_argument("--gpus", type=positive, help="GPUs of each node (none)")
    slurm.add_argument("--nodes", type=positive, help="nodes of each member (1)")
    slurm.add_argument("--cpus", type=positive, help="processors of each node (the cluster's default)")
    slurm.add_argument(
        "--minutes", type=positive, help="time limit, after which a member goes on in another job (1440)"
    )
    slurm.add_argument(
        "--signal-seconds", type=positive, help="how long before its end a job is told to save the state (120)"
    )
    slurm.add_argument(
        "--sbatch",
        action="append",
        type=_option,
        metavar="NAME=VALUE",
        help="further option of sbatch; may be repeated",
    )


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"write it as NAME=VALUE, not {text!r}")
    return name.lstrip("-"), value


def _run(options: argparse.Namespace, overrides: list[str]) -> None:
    from sail_jax.sweeps.begin import write_sweep
    from sail_jax.sweeps.launch import TO_RUN
    from sail_jax.sweeps.search import NO_QUEUE

    request = _job_request(options)
    sweep, folder, checked = checked_sweep(options, overrides)
    if sweep.search and request:
        raise SailError(NO_QUEUE)
    members = [entry.record.member for entry in checked]
    for member in members:
        print(f"{member.name}: {' '.join(member.overrides)}")
    programs = len({entry.record.program for entry in checked})
    what = f"{len(members)} members of {sweep.base}, {programs} different train steps"
    if sweep.search:
        what = f"{len(members)} of {sweep.search.trials} trials of {sweep.base} over {', '.join(sweep.search.settings)}"
    console.print(f"{sweep.name}: {what}", highlight=False)
    if options.dry_run:
        print_next(options, "sweep", "run", options.file, "--workdir", options.workdir)
        return
    with alone(folder):
        fresh = write_sweep(folder, sweep, checked)
        if len(fresh) < len(members) and not sweep.search:
            console.print(f"{len(members) - len(fresh)} members were there, {len(fresh)} are new.")
        _launch(options, folder, TO_RUN, request, sweep)


def _retry(options: argparse.Namespace, overrides: list[str]) -> None:
    from sail_jax import sweeps
    from sail_jax.sweeps.attempt import last_lines
    from sail_jax.sweeps.launch import TO_RETRY
    from sail_jax.sweeps.settle import settle

    without_config("sweep retry", overrides)
    request = _job_request(options)
    folder = sweeps.read(options.workdir).folder
    with alone(folder):
        settle(folder)
        failed = [member for member in sweeps.read(folder.path).members if member.status.state in TO_RETRY]
        if not failed:
            console.print("No member has failed.")
            print_next(options, "sweep", "status", "--workdir", options.workdir)
            return
        for member in failed:
            print(f"{member.name}: {member.status.error}")
            for line in last_lines(folder, member.name, _END_OF_LOG).splitlines():
                print(f"    {line}")
        _launch(options, folder, TO_RETRY, request)


def _launch(
    options: argparse.Namespace,
    folder: "SweepFolder",
    states: Sequence[str],
    request: "JobRequest | None",
    sweep: "Sweep | None" = None,
) -> None:
    """Launches the members in some states, and says how it ended."""
    from sail_jax import sweeps
    from sail_jax.sweeps.launch import launch, require_none_failed

    say = functools.partial(print, flush=True)
    names = launch(folder, states, sweep=sweep, request=request, jobs=options.jobs, say=say)
    conclude(options, sweeps.read(folder.path))
    require_none_failed(folder, names)


def _job_request(options: argparse.Namespace) -> "JobRequest | None":
    """Returns what each job asks SLURM for; None for another launcher."""
    from sail_jax.sweeps.slurm import JobRequest

    names = ("partition", "account", "gpus", "nodes", "cpus", "minutes", "signal_seconds", "sbatch")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.launcher == "slurm":
        others = dict(given.pop("sbatch", ()))
        return JobRequest(**given, others=others)
    if given:
        flag = next(iter(given)).replace("_", "-")
        raise SailError(f"--{flag} belongs to --launcher slurm; leave it out, or choose that launcher.")
    return None
