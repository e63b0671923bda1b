"""Checks a sweep and runs it on this machine, in one call."""

from collections.abc import Callable
from pathlib import Path

from sail_jax.runs.directory import RunDirectory
from sail_jax.runs.ownership import owning
from sail_jax.sweeps.begin import require_folder_of, write_sweep
from sail_jax.sweeps.check import check_members
from sail_jax.sweeps.declare import Sweep
from sail_jax.sweeps.expand import expand
from sail_jax.sweeps.folder import SweepFolder, SweepState, read
from sail_jax.sweeps.launch import TO_RETRY, TO_RUN, launch, require_none_failed
from sail_jax.sweeps.search import checked_search


def run_sweep(
    sweep: Sweep, folder: str | Path, *, jobs: int | None = None, say: Callable[[str], None] = print
) -> SweepState:
    """Runs the members of a sweep that are not done, and returns where all stand.

    Members that failed before are run again.

    Args:
        sweep: the sweep; it extends the one that the folder has.
        folder: the folder.
        jobs: members that run at a time; by default one per GPU, and one on a machine without.
        say: gets a line when a member starts or ends.

    Raises:
        SailError: members are refused before any starts, the folder has another sweep, or a member failed.
    """
    files = SweepFolder(folder)
    require_folder_of(files, sweep)
    checked = checked_search(sweep, files) if sweep.search else check_members(sweep, expand(sweep))
    with owning(RunDirectory(files.path)):
        write_sweep(files, sweep, checked)
        names = launch(files, (*TO_RUN, *TO_RETRY), sweep=sweep, jobs=jobs, say=say)
    require_none_failed(files, names)
    return read(files.path)
