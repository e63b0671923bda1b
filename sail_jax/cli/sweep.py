"""The verb `sweep` and its actions: many runs of a config, checked, launched, watched and mended."""

import argparse
import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table

from sail_jax import config as config_lib
from sail_jax.cli.common import console, declare, print_next, print_wide, without_config
from sail_jax.cli.distributed import join_processes, joined, leave
from sail_jax.cli.evaluate import evaluate_and_print
from sail_jax.cli.train import train_and_print
from sail_jax.config import Config
from sail_jax.errors import SailError, Stopped

if TYPE_CHECKING:
    from sail_jax.sweeps.folder import Status, SweepFolder, SweepState

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
    sub.add_argument("--launcher", choices=("local",), default="local", help="where members run (local)")
    sub.add_argument(
        "--jobs", type=_positive, help="members that run at a time (one per GPU, or one on a machine without)"
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


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value


def _run(options: argparse.Namespace, overrides: list[str]) -> None:
    import dataclasses

    from sail_jax import sweeps
    from sail_jax.sweeps.begin import require_folder_of, write_sweep
    from sail_jax.sweeps.check import check_members
    from sail_jax.sweeps.folder import SweepFolder

    sweep = sweeps.load(options.file)
    sweep = dataclasses.replace(sweep, overrides=(*sweep.overrides, *overrides))
    folder = SweepFolder(options.workdir)
    require_folder_of(folder, sweep)
    members = sweeps.expand(sweep)
    console.print(f"{sweep.name}: {len(members)} members of {sweep.base}")
    checked = check_members(sweep, members, refuses=_fits(options.topology))
    programs = len({member.record.program for member in checked})
    for member in members:
        print(f"  {member.name}: {' '.join(member.overrides)}")
    console.print(f"All {len(members)} are sound; they have {programs} different train steps to compile.")
    if options.dry_run:
        print_next(options, "sweep", "run", options.file, "--workdir", options.workdir)
        return
    with _alone(folder):
        fresh = write_sweep(folder, sweep, checked)
        if len(fresh) < len(members):
            console.print(f"{len(members) - len(fresh)} members were there, {len(fresh)} are new.")
        _launch(options, folder, ("waiting", "stopped", "preempted"))


def _fits(topology: str | None) -> Callable[[Config], str] | None:
    """Returns the function that says why a config does not fit some hardware; None without hardware."""
    if not topology:
        return None
    from sail_jax.aot.compile import compile_ahead
    from sail_jax.training.stages import plan

    def refuses(config: Config) -> str:
        reports = [compile_ahead(config, topology, stage=stage.name) for stage in plan(config, Path("mined"))]
        return next((" ".join(report.verdict().split("\n")) for report in reports if not report.fits), "")

    return refuses


def _alone(folder: "SweepFolder") -> contextlib.AbstractContextManager:
    """Within it, no other command launches members of the sweep."""
    from sail_jax.runs.directory import RunDirectory
    from sail_jax.runs.ownership import owning

    return owning(RunDirectory(folder.path))


def _launch(options: argparse.Namespace, folder: "SweepFolder", states: Sequence[str]) -> None:
    """Launches the members in some states, and says how it ended."""
    import dataclasses

    from sail_jax import sweeps
    from sail_jax.sweeps.local import run_local

    folder.stop.unlink(missing_ok=True)
    _settle(folder)
    names = [member.name for member in sweeps.read(folder.path).members if member.status.state in states]
    for name in names:
        folder.write_status(name, dataclasses.replace(folder.status(name), state="waiting", error=""))
    run_local(folder, names, jobs=options.jobs, say=lambda line: print(line, flush=True))
    after = sweeps.read(folder.path)
    _conclude(options, after)
    failed = [member for member in after.members if member.name in names and member.status.state == "failed"]
    if failed:
        raise SailError(
            f"{len(failed)} of {len(names)} members failed, such as {failed[0].name}: {failed[0].status.error}"
        )


def _conclude(options: argparse.Namespace, sweep: "SweepState") -> None:
    from sail_jax.sweeps.watch import counts

    console.print(f"{counts(sweep)}: {sweep.folder.path}")
    of_state = {member.status.state for member in sweep.members}
    if "failed" in of_state:
        print_next(options, "sweep", "retry", "--workdir", options.workdir)
    else:
        print_next(options, "sweep", "status", "--workdir", options.workdir)


def _settle(folder: "SweepFolder") -> None:
    """Writes the end of members whose processes died without a word."""
    from sail_jax import sweeps
    from sail_jax.sweeps.attempt import ended_unseen, lives_here

    for member in sweeps.read(folder.path).members:
        if member.status.state == "running" and not member.status.job and lives_here(member.status) is False:
            ended_unseen(folder, member.name, None)


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
            while any(member.status.state == "running" for member in shown.members):
                time.sleep(_REFRESH)
                shown = state()
                live.update(_table(shown), refresh=True)
    _conclude(options, shown)


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

    without_config("sweep stop", overrides)
    sweep = sweeps.read(options.workdir)
    folder = sweep.folder
    folder.stop.touch()
    for member in sweep.members:
        status: Status = member.status
        if status.state == "waiting":
            folder.write_status(member.name, dataclasses.replace(status, state="stopped"))
        elif status.state == "running" and lives_here(status):
            os.kill(status.pid, signal.SIGTERM)
        elif status.state == "running" and lives_here(status) is None:
            console.print(f"{member.name} runs on {status.host}: give the same command there.")
    console.print("The members that run save their state and end; none starts any more.")
    print_next(options, "sweep", "status", "--workdir", options.workdir)


def _retry(options: argparse.Namespace, overrides: list[str]) -> None:
    from sail_jax import sweeps
    from sail_jax.sweeps.attempt import last_lines

    without_config("sweep retry", overrides)
    folder = sweeps.read(options.workdir).folder
    with _alone(folder):
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
    without_config("sweep member", overrides)
    first = join_processes(options, stop_together=True)
    folder = _folder_with(options)
    import jax

    from sail_jax.sweeps.attempt import attempt

    with attempt(folder, options.member, devices=jax.device_count) if first else contextlib.nullcontext():
        try:
            run = folder.run(options.member)
            train_and_print(config_lib.load(folder.config(options.member)), run.path)
        except Stopped as stopped:
            if stopped.kept and joined():  # all have stopped after the same step, and end together
                leave()
            raise
        evaluate_and_print(run.load_config(), run.path)
