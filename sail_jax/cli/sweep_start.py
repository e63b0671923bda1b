"""What the actions of `sweep` share: checked members, one member, and the right to start them."""

import argparse
import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sail_jax.config import Config
from sail_jax.errors import SailError

if TYPE_CHECKING:
    from sail_jax.sweeps import Sweep, SweepFolder
    from sail_jax.sweeps.check import Checked

# Help of --workdir.
WORKDIR = "folder of the sweep"


def checked_sweep(options: argparse.Namespace, overrides: list[str]) -> tuple["Sweep", "SweepFolder", list["Checked"]]:
    """Returns the sweep of a file with all overrides, its folder, and its members, all of which can run.

    A search has those that have begun.

    Args:
        options: the flags `file`, `workdir` and `topology`.
        overrides: changes of the config that all members have.

    Raises:
        SailError: the file is wrong, the folder has another sweep, or members are refused.
    """
    from sail_jax import sweeps
    from sail_jax.sweeps.begin import require_folder_of
    from sail_jax.sweeps.check import check_members
    from sail_jax.sweeps.search import checked_search

    sweep = sweeps.load(options.file)
    sweep = dataclasses.replace(sweep, overrides=(*sweep.overrides, *overrides))
    folder = sweeps.SweepFolder(options.workdir)
    require_folder_of(folder, sweep)
    refuses = _fits(options.topology)
    if sweep.search:
        return sweep, folder, checked_search(sweep, folder, refuses=refuses)
    return sweep, folder, check_members(sweep, sweeps.expand(sweep), refuses=refuses)


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


def alone(folder: "SweepFolder") -> contextlib.AbstractContextManager:
    """Within it, no other command launches members of the sweep."""
    from sail_jax.runs.directory import RunDirectory
    from sail_jax.runs.ownership import owning

    return owning(RunDirectory(folder.path))


def folder_with(options: argparse.Namespace) -> "SweepFolder":
    """Returns the folder of a sweep that has the member of --member."""
    from sail_jax import sweeps
    from sail_jax.config.schema import nearest

    sweep = sweeps.read(options.workdir)
    names = [member.name for member in sweep.members]
    if options.member not in names:
        near = nearest(options.member, names)
        raise SailError(f"{sweep.folder.path} has no member {options.member!r}. Did you mean {near}?")
    return sweep.folder


def positive(text: str) -> int:
    """Returns the number of a flag that must be above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value
