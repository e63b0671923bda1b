"""Runs the missing members of a claim's sweep: here, or as jobs of a SLURM cluster."""

import dataclasses
from collections.abc import Callable, Sequence

from sail_jax.errors import SailError
from sail_jax.sweeps import SweepFolder, read
from sail_jax.sweeps.local import run_local, shares
from sail_jax.sweeps.shared_stages import may_start, read_forks, waves
from sail_jax.sweeps.slurm import JobRequest, queued_jobs, submit


def launch(
    folder: SweepFolder, *, jobs: int | None, request: JobRequest | None, say: Callable[[str], None] = print
) -> None:
    """Runs the members that are not done, failed ones included; of a cluster it does not wait for them.

    Args:
        folder: the folder of the sweep.
        jobs: members that run at a time; by default one per GPU or processor here, on a cluster as many as it lets.
        request: what each job asks SLURM for; None runs them here.
        say: gets a line when a member starts or ends, or is submitted.
    """
    forks = read_forks(folder)
    missing = [member for member in read(folder.path).members if member.status.state != "done"]
    if request is None:
        run_local(
            folder,
            [member.name for member in missing],
            jobs=jobs or jobs_here(),
            ready=lambda name: may_start(folder, forks.get(name)),
            say=say,
        )
        return
    queued = queued_jobs() or set()
    names = [member.name for member in missing if not (member.status.job and member.status.job in queued)]
    for name in names:
        folder.write_status(name, dataclasses.replace(folder.status(name), state="waiting", error="", job=""))
    submitted: list[str] = []
    for wave in waves(folder, names, forks):
        submitted += submit(folder, wave, request, jobs=jobs, after=submitted)
    say(f"submitted {len(submitted)} members; give the command again with --report when they have ended")


def jobs_here() -> int:
    """Returns the runs at a time that fit here: one per GPU or, without one, one per processor."""
    first, *others = shares(None)
    return 1 + len(others) if first.gpus else max(1, len(first.processors))


def job_request(options: Sequence[str]) -> JobRequest | None:
    """Returns what NAME=VALUE options ask SLURM for; None without any.

    Names are the fields of `JobRequest`, and else options of sbatch.

    Raises:
        SailError: an option has no value, or a number is none.
    """
    if not options:
        return None
    kinds = {field.name: type(field.default) for field in dataclasses.fields(JobRequest) if field.name != "others"}
    given: dict[str, object] = {}
    others: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not value:
            raise SailError(f"--slurm {option}: write it as NAME=VALUE, such as gpus=8.")
        if name not in kinds:
            others[name] = value
        elif kinds[name] is int and not value.isdigit():
            raise SailError(f"--slurm {option}: {name} is a whole number.")
        else:
            given[name] = kinds[name](value)
    return JobRequest(**given, others=others)
