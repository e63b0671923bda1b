"""The actions `sweep status`, `sweep logs` and `sweep stop`: members are watched and stopped."""

import argparse
import time
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table

from sail_jax.cli.common import console, declare, print_next, print_wide, without_config
from sail_jax.cli.sweep_start import WORKDIR, folder_with, positive

if TYPE_CHECKING:
    from sail_jax.sweeps.folder import SweepState

# Lines that `logs` shows.
_LOG = 40
_REFRESH = 2.0


def add_actions(actions: Any) -> None:
    """Declares the actions."""
    sub = declare(
        actions,
        "status",
        _status,
        "show how far each member is; in a terminal it refreshes until none runs",
        "--workdir sweeps/peak",
        workdir=WORKDIR,
        config="",
    )
    sub.add_argument("--once", action="store_true", help="show it once")
    sub = declare(
        actions,
        "logs",
        _logs,
        "print the end of what a member printed",
        "peak=0.001,seed=0 --workdir sweeps/peak",
        workdir=WORKDIR,
        config="",
    )
    sub.add_argument("member", help="name of the member")
    sub.add_argument("--lines", type=positive, default=_LOG, help=f"number of lines ({_LOG})")
    declare(
        actions,
        "stop",
        _stop,
        "stop the members that run, with their state saved, and start no more",
        "--workdir sweeps/peak",
        workdir=WORKDIR,
        config="",
    )


def _status(options: argparse.Namespace, overrides: list[str]) -> None:
    from sail_jax import sweeps
    from sail_jax.sweeps.settle import is_queued, settle

    without_config("sweep status", overrides)
    folder = sweeps.read(options.workdir).folder

    def state() -> "SweepState":
        settle(folder)
        return sweeps.read(folder.path)

    shown = state()
    if options.once or not console.is_terminal:
        print_wide(_table(shown))
    else:
        with Live(_table(shown), console=console, auto_refresh=False) as live:
            while any(member.status.state == "running" or is_queued(member.status) for member in shown.members):
                time.sleep(_REFRESH)
                shown = state()
                live.update(_table(shown), refresh=True)
    conclude(options, shown)


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
    folder = folder_with(options)
    print(last_lines(folder, options.member, options.lines) or "It has printed nothing yet.")
    console.print(f"All of it: {folder.log(options.member)}", highlight=False)
    print_next(options, "sweep", "status", "--workdir", options.workdir)


def _stop(options: argparse.Namespace, overrides: list[str]) -> None:
    from sail_jax import sweeps
    from sail_jax.sweeps.settle import stop

    without_config("sweep stop", overrides)
    for name, host in stop(sweeps.read(options.workdir).folder).items():
        console.print(f"{name} runs on {host}: give the same command there.")
    console.print("The members that run save their state and end; none starts any more.")
    print_next(options, "sweep", "status", "--workdir", options.workdir)


def conclude(options: argparse.Namespace, sweep: "SweepState") -> None:
    """Says where the members stand, and what comes next."""
    from sail_jax.sweeps.watch import counts

    console.print(f"{counts(sweep)}: {sweep.folder.path}")
    of_state = {member.status.state for member in sweep.members}
    if "failed" in of_state:
        print_next(options, "sweep", "retry", "--workdir", options.workdir)
    else:
        print_next(options, "sweep", "status", "--workdir", options.workdir)
