"""Launches the members of a sweep, here or by SLURM."""

import dataclasses
from collections.abc import Callable, Sequence

from sail_jax.errors import SailError
from sail_jax.sweeps.declare import Sweep
from sail_jax.sweeps.folder import SweepFolder, read
from sail_jax.sweeps.local import run_local, take_back
from sail_jax.sweeps.search import NO_QUEUE, run_search
from sail_jax.sweeps.settle import settle
from sail_jax.sweeps.shared_stages import may_start, read_forks, waves
from sail_jax.sweeps.slurm import JobRequest, submit

# States of members that `sweep run` runs, and of those that `sweep retry` runs.
TO_RUN, TO_RETRY = ("waiting", "stopped", "preempted"), ("failed",)


def launch(
    folder: SweepFolder,
    states: Sequence[str],
    *,
    sweep: Sweep | None = None,
    request: JobRequest | None = None,
    jobs: int | None = None,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Runs the members in some states until all have ended, or submits them; returns their names.

    Those that run on here though the command that launched them was killed are taken back, and run too.

    Args:
        folder: the folder of the sweep.
        states: the states.
        sweep: the sweep, whose search goes on with new trials; None to run only members that are there.
        request: what each member asks SLURM for; None to run them on this machine.
        jobs: members that run at a time.
        say: gets a line when a member starts or ends.

    Raises:
        SailError: as `run_local`, `run_search` or `submit`.
    """
    if request and folder.read().search:
        raise SailError(NO_QUEUE)
    names = _renewed(folder, states, take_back(folder, say))
    if folder.read().search:
        return run_search(folder, names, sweep, jobs=jobs, say=say)
    forks = read_forks(folder)
    if request:
        submitted: list[str] = []
        for wave in waves(folder, names, forks):
            submitted += submit(folder, wave, request, jobs=jobs, after=submitted)
        say(f"Submitted {len(submitted)} members: {' to '.join(submitted[:1] + submitted[1:][-1:])}")
    else:
        run_local(folder, names, jobs=jobs, ready=lambda name: may_start(folder, forks.get(name)), say=say)
    return names


def _renewed(folder: SweepFolder, states: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Makes the members in some states, and those taken back, wait, unless they are in a queue; lets them start."""
    folder.stop.unlink(missing_ok=True)
    queued = settle(folder)
    found = [
        member
        for member in read(folder.path).members
        if member.status.state in states or (member.name in taken and member.status.state in TO_RUN)
    ]
    names = [member.name for member in found if not (member.status.job and member.status.job in queued)]
    for name in names:
        folder.write_status(name, dataclasses.replace(folder.status(name), state="waiting", error="", job=""))
    return names


def require_none_failed(folder: SweepFolder, names: Sequence[str]) -> None:
    """Raises SailError if one of the members failed."""
    failed = [
        member for member in read(folder.path).members if member.name in names and member.status.state == "failed"
    ]
    if failed:
        raise SailError(
            f"{len(failed)} of {len(names)} members failed, such as {failed[0].name}: {failed[0].status.error}"
        )
