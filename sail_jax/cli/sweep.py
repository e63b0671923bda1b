"""The verb `sweep` and its actions: many runs of a config, checked, launched, watched and mended."""

import argparse
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table

from sail_jax import config as config_lib
from sail_jax.cli import sweep_collect, sweep_manifest
from sail_jax.cli.common import console, declare, print_next, print_wide, without_config
from sail_jax.cli.distributed import join_processes, joined, leave
from sail_jax.cli.evaluate import evaluate_and_print
from sail_jax.cli.sweep_start import alone, checked_sweep
from sail_jax.cli.train import train_and_print
from sail_jax.errors import SailError, Stopped

if TYPE_CHECKING:
    from sail_jax.sweeps.folder import Status, SweepFolder, SweepState
    from sail_jax.sweeps.slurm import JobRequest

_WORKDIR = "folder of the sweep"
# Lines of a failed member's log that `retry` shows, and lines that `logs` shows.
_END_OF_LOG, _LOG = 5, 40
_REFRESH = 2.0


def add_verb(verbs: Any) -> None:
    """Declares the verb and its actions."""
    meaning = "run many configs and seeds: expand a sweep file, check every member, launch them, watch and mend them"
    group = verbs.add_parser(
        "sweep",
        help=meaning,
        description=meaning,
        epilog="example: %(prog)s run configs/sweeps/peak.py --workdir sweeps/peak --config.data.dir=data/glyphs",
    )
    actions = group.add_subparsers(required=True, metavar="ACTION")
    _add_run(actions)
    _add_watching(actions)
    _add_mending(actions)
    sweep_collect.add_action(actions)
    sweep_manifest.add_action(actions)
    _add_member(actions)


def _add_run(actions: Any) -> None:
    sub = declare(
        actions,
        "run",
        _run,
        "run the members of a sweep that are not done, or extend a sweep by members and seeds",
        "configs/sweeps/peak.py --workdir sweeps/peak --config.data.dir=data/glyphs --jobs 2",
        workdir=f"{_WORKDIR}; it is written",
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


def _add_launcher(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--launcher",
        choices=("local", "slurm"),
        default="local",
        help="where members run: here, or as an array of SLURM jobs, which needs the extra `slurm` (local)",
    )
    sub.add_argument(
        "--jobs",
        type=_positive,
        help="members that run at a time (here: one per GPU, or one on a machine without; SLURM: as many as it lets)",
    )
    slurm = sub.add_argument_group("with --launcher slurm")
    slurm.add_argument("--partition", help="partition (the default one)")
    slurm.add_argument("--account", help="account (the default one)")
    slurm.add_argument("--gpus", type=_positive, help="GPUs of each node (none)")
    slurm.add_argument("--nodes", type=_positive, help="nodes of each member (1)")
    slurm.add_argument("--cpus", type=_positive, help="processors of each node (the cluster's default)")
    slurm.add_argument(
        "--minutes", type=_positive, help="time limit, after which a member goes on in another job (1440)"
    )
    slurm.add_argument(
        "--signal-seconds", type=_positive, help="how long before its end a job is told to save the state (120)"
    )
    slurm.add_argument(
        "--sbatch",
        action="append",
        type=_option,
        metavar="NAME=VALUE",
        help="further option of sbatch; may be repeated",
    )


def _add_watching(actions: Any) -> None:
    sub = declare(
        actions,
        "status",
        _status,
        "show how far each member is; in a terminal it refreshes until none runs",
        "--workdir sweeps/peak",
        workdir=_WORKDIR,
        config="",
    )
    sub.add_argument("--once", action="store_true", help="show it once")
    sub = declare(
        actions,
        "logs",
        _logs,
        "print the end of what a member printed",
        "peak=0.001,seed=0 --workdir sweeps/peak",
        workdir=_WORKDIR,
        config="",
    )
    sub.add_argument("member", help="name of the member")
    sub.add_argument("--lines", type=_positive, default=_LOG, help=f"number of lines ({_LOG})")


def _add_mending(actions: Any) -> None:
    declare(
        actions,
        "stop",
        _stop,
        "stop the members that run, with their state saved, and start no more",
        "--workdir sweeps/peak",
        workdir=_WORKDIR,
        config="",
    )
    sub = declare(
        actions,
        "retry",
        _retry,
        "run the failed members again, and no others; shows how their logs end",
        "--workdir sweeps/peak",
        workdir=_WORKDIR,
        config="",
        kept="the members that run have saved their state; `sweep run` goes on.",
    )
    _add_launcher(sub)


def _add_member(actions: Any) -> None:
    sub = declare(
        actions,
        "member",
        _member,
        "train and evaluate one member; launchers call it",
        "peak=0.001,seed=0 --workdir sweeps/peak",
        workdir=_WORKDIR,
        config="",
        distributed=True,
        hidden=True,
        kept="the same command goes on from the last checkpoint.",
    )
    sub.add_argument("member", help="name of the member")


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"write it as NAME=VALUE, not {text!r}")
    return name.lstrip("-"), value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value


def _run(options: argparse.Namespace, overrides: list[str]) -> None:
    from sail_jax.sweeps.begin import write_sweep

    sweep, folder, checked = checked_sweep(options, overrides)
    members = [entry.record.member for entry in checked]
    for member in members:
        print(f"{member.name}: {' '.join(member.overrides)}")
    programs = len({entry.record.program for entry in checked})
    console.print(
        f"{sweep.name}: {len(members)} members of {sweep.base}, {programs} different train steps", highlight=False
    )
    if options.dry_run:
        print_next(options, "sweep", "run", options.file, "--workdir", options.workdir)
        return
    with alone(folder):
        fresh = write_sweep(folder, sweep, checked)
        if len(fresh) < len(members):
            console.print(f"{len(members) - len(fresh)} members were there, {len(fresh)} are new.")
        _launch(options, folder, ("waiting", "stopped", "preempted"))


def _launch(options: argparse.Namespace, folder: "SweepFolder", states: Sequence[str]) -> None:
    """Launches the members in some states, and says how it ended."""
    import dataclasses

    from sail_jax import sweeps
    from sail_jax.sweeps.local import run_local
    from sail_jax.sweeps.shared_stages import may_start, read_forks, waves
    from sail_jax.sweeps.slurm import submit

    request = _job_request(options)
    folder.stop.unlink(missing_ok=True)
    queued = _settle(folder)
    found = [member for member in sweeps.read(folder.path).members if member.status.state in states]
    names = [member.name for member in found if not (member.status.job and member.status.job in queued)]
    for name in names:
        folder.write_status(name, dataclasses.replace(folder.status(name), state="waiting", error="", job=""))
    forks = read_forks(folder)
    if request:
        jobs = []
        for wave in waves(folder, names, forks):
            jobs += submit(folder, wave, request, jobs=options.jobs, after=jobs)
        console.print(f"Submitted {len(jobs)} members: {' to '.join(jobs[:1] + jobs[1:][-1:])}", highlight=False)
    else:
        run_local(
            folder,
            names,
            jobs=options.jobs,
            ready=lambda name: may_start(folder, forks.get(name)),
            say=lambda line: print(line, flush=True),
        )
    after = sweeps.read(folder.path)
    _conclude(options, after)
    failed = [member for member in after.members if member.name in names and member.status.state == "failed"]
    if failed:
        raise SailError(
            f"{len(failed)} of {len(names)} members failed, such as {failed[0].name}: {failed[0].status.error}"
        )


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


def _conclude(options: argparse.Namespace, sweep: "SweepState") -> None:
    from sail_jax.sweeps.watch import counts

    console.print(f"{counts(sweep)}: {sweep.folder.path}")
    of_state = {member.status.state for member in sweep.members}
    if "failed" in of_state:
        print_next(options, "sweep", "retry", "--workdir", options.workdir)
    else:
        print_next(options, "sweep", "status", "--workdir", options.workdir)


def _settle(folder: "SweepFolder") -> set[str]:
    """Writes the end of members whose processes died without a word; returns the jobs of SLURM that have not ended."""
    from sail_jax import sweeps
    from sail_jax.sweeps.attempt import ended_unseen, lives_here
    from sail_jax.sweeps.slurm import queued_jobs

    members = sweeps.read(folder.path).members
    queued = queued_jobs() if any(member.status.job for member in members) else set()
    for member in members:
        status = member.status
        if status.job and status.state in ("running", "waiting"):
            gone = queued is not None and status.job not in queued
        else:
            gone = status.state == "running" and lives_here(status) is False
        if gone:
            ended_unseen(folder, member.name, None)
    return queued or set()


def _status(options: argparse.Namespace, overrides: list[str]) -> None:
    from sail_jax import sweeps

    without_config("sweep status", overrides)
    folder = sweeps.read(options.workdir).folder

    def state() -> "SweepState":
        _settle(folder)
        return sweeps.read(folder.path)

    shown = state()
    if options.once or not console.is_terminal:
        print_wide(_table(shown))
    else:
        with Live(_table(shown), console=console, auto_refresh=False) as live:
            while any(member.status.state == "running" or _queued(member.status) for member in shown.members):
                time.sleep(_REFRESH)
                shown = state()
                live.update(_table(shown), refresh=True)
    _conclude(options, shown)


def _queued(status: "Status") -> bool:
    return bool(status.job) and status.state in ("waiting", "preempted")


def _table(sweep: "SweepState") -> Table:
    from sail_jax.sweeps.watch import counts, rows

    table = Table("member", "state", "step", "steps/s", "to go", "last figure", "device-hours", title=counts(sweep))
    for row in rows(sweep):
        to_go = "" if row.eta is None else f"{row.eta / 60:.0f} min"
        figure = row.error if row.state == "failed" else row.figure
        rate = f"{row.rate:.2f}" if row.rate else ""
        cost = f"{row.device_seconds / 3600:.2f}"
        table.add_row(row.name, row.state, f"{row.step}/{row.steps}", rate, to_go, figure, cost)
    return table


def _logs(options: argparse.Namespace, overrides: list[str]) -> None:
    from sail_jax.sweeps.attempt import last_lines

    without_config("sweep logs", overrides)
    folder = _folder_with(options)
    print(last_lines(folder, options.member, options.lines) or "It has printed nothing yet.")
    console.print(f"All of it: {folder.log(options.member)}", highlight=False)
    print_next(options, "sweep", "status", "--workdir", options.workdir)


def _folder_with(options: argparse.Namespace) -> "SweepFolder":
    """Returns the folder of a sweep that has the member of --member."""
    from sail_jax import sweeps
    from sail_jax.config.schema import nearest

    sweep = sweeps.read(options.workdir)
    names = [member.name for member in sweep.members]
    if options.member not in names:
        near = nearest(options.member, names)
        raise SailError(f"{sweep.folder.path} has no member {options.member!r}. Did you mean {near}?")
    return sweep.folder


def _stop(options: argparse.Namespace, overrides: list[str]) -> None:
    import dataclasses
    import os
    import signal

    from sail_jax import sweeps
    from sail_jax.sweeps.attempt import lives_here
    from sail_jax.sweeps.slurm import cancel

    without_config("sweep stop", overrides)
    folder = sweeps.read(options.workdir).folder
    folder.stop.touch()
    _settle(folder)
    members = sweeps.read(options.workdir).members
    cancel([m.status.job for m in members if m.status.job and m.status.state in ("running", "waiting", "preempted")])
    for member in members:
        status = member.status
        if status.state == "waiting" or _queued(status):
            folder.write_status(member.name, dataclasses.replace(status, state="stopped"))
        elif status.state == "running" and not status.job and lives_here(status):
            os.kill(status.pid, signal.SIGTERM)
        elif status.state == "running" and not status.job:
            console.print(f"{member.name} runs on {status.host}: give the same command there.")
    console.print("The members that run save their state and end; none starts any more.")
    print_next(options, "sweep", "status", "--workdir", options.workdir)


def _retry(options: argparse.Namespace, overrides: list[str]) -> None:
    from sail_jax import sweeps
    from sail_jax.sweeps.attempt import last_lines

    without_config("sweep retry", overrides)
    folder = sweeps.read(options.workdir).folder
    with alone(folder):
        _settle(folder)
        failed = [member for member in sweeps.read(folder.path).members if member.status.state == "failed"]
        if not failed:
            console.print("No member has failed.")
            print_next(options, "sweep", "status", "--workdir", options.workdir)
            return
        for member in failed:
            print(f"{member.name}: {member.status.error}")
            for line in last_lines(folder, member.name, _END_OF_LOG).splitlines():
                print(f"    {line}")
        _launch(options, folder, ("failed",))


def _member(options: argparse.Namespace, overrides: list[str]) -> None:
    from sail_jax.sharding.process_group import everyone
    from sail_jax.sweeps.shared_stages import read_forks, take_over
    from sail_jax.sweeps.slurm import requeue_if_preempted

    without_config("sweep member", overrides)
    first = join_processes(options, stop_together=True)
    folder = _folder_with(options)
    run = folder.run(options.member)
    try:
        with _noted(folder, options.member) if first else contextlib.nullcontext():
            if (fork := read_forks(folder).get(options.member)) and everyone().on_first(
                lambda: take_over(folder, options.member, fork)
            ):
                console.print(f"Forked from {fork.leader} at step {fork.step}.")
            train_and_print(config_lib.load(folder.config(options.member)), run.path)
            evaluate_and_print(run.load_config(), run.path)
    except Stopped as stopped:
        if first:
            requeue_if_preempted(folder)
        if stopped.kept and joined():  # all have stopped after the same step, and end together
            leave()
        raise


def _noted(folder: "SweepFolder", name: str) -> contextlib.AbstractContextManager:
    """Within it, this process runs a member, and its status says so."""
    import jax

    from sail_jax.sweeps.attempt import attempt
    from sail_jax.sweeps.slurm import this_job

    return attempt(folder, name, job=this_job(), devices=jax.device_count)
