"""Runs members as an array of SLURM jobs, through submitit; one that is preempted goes on later."""

import contextlib
import dataclasses
import importlib
import io
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence

from sail_jax.errors import SailError
from sail_jax.sweeps.folder import SweepFolder
from sail_jax.sweeps.local import member_command

# Members of one array that may run at a time, if no number is given: as many as the cluster lets.
_MOST = 10_000
# Seconds that a job waits until its number stands in the member's status.
_NOTED = 60.0


@dataclasses.dataclass(frozen=True)
class JobRequest:
    """What each job asks SLURM for.

    Attributes:
        partition: the partition; empty for the default one.
        account: the account; empty for the default one.
        gpus: GPUs per node; 0 for none.
        nodes: nodes; on more than one, a member runs as one process per node.
        cpus: processors per node; 0 for the cluster's default.
        minutes: time limit.
        signal_seconds: seconds before the time limit, and before a preemption with a grace time, at which the member
            is told to save its state.
        others: further options of sbatch, such as {"qos": "high"}.
    """

    partition: str = ""
    account: str = ""
    gpus: int = 0
    nodes: int = 1
    cpus: int = 0
    minutes: int = 24 * 60
    signal_seconds: int = 120
    others: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def parameters(self, jobs: int | None, after: Sequence[str]) -> dict[str, object]:
        """Returns the parameters of submitit's executor; `jobs` and `after` as in `submit`."""
        options = {"signal": f"USR1@{self.signal_seconds}", "requeue": True, **self.others}
        if after:
            options["dependency"] = f"afterany:{':'.join(dict.fromkeys(job.partition('_')[0] for job in after))}"
        optional = {
            "slurm_partition": self.partition,
            "slurm_account": self.account,
            "gpus_per_node": self.gpus,
            "cpus_per_task": self.cpus,
        }
        return {
            "nodes": self.nodes,
            "tasks_per_node": 1,
            "timeout_min": self.minutes,
            "slurm_array_parallelism": jobs or _MOST,
            "stderr_to_stdout": True,
            "slurm_additional_parameters": options,
            **{name: value for name, value in optional.items() if value},
        }


class MemberJob:
    """Turns the process of a job into that of a member; submitit calls it there.

    Args:
        folder: the folder of the sweep.
        name: the member.
        command: the command of the member.
    """

    def __init__(self, folder: SweepFolder, name: str, command: Sequence[str]) -> None:
        self.folder, self.name, self.command = folder, name, list(command)

    def __call__(self) -> None:
        """Replaces the process, so that SLURM's signals come to the member."""
        deadline = time.monotonic() + _NOTED
        # Else what submits and what runs could write the status at once.
        while self.folder.status(self.name).job != this_job() and time.monotonic() < deadline:
            time.sleep(0.1)
        log = os.open(self.folder.log(self.name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.execv(self.command[0], self.command)


def submit(
    folder: SweepFolder,
    names: Sequence[str],
    request: JobRequest,
    *,
    jobs: int | None = None,
    after: Sequence[str] = (),
) -> list[str]:
    """Submits members as an array of jobs, writes the jobs into their statuses, and returns them.

    Args:
        folder: the folder of the sweep, which all nodes must see.
        names: the members.
        request: what each asks for.
        jobs: members that run at a time; by default as many as the cluster lets.
        after: jobs that must have ended, however, before these start.

    Raises:
        SailError: submitit or SLURM is missing, or SLURM refuses the jobs.
    """
    if not shutil.which("sbatch"):
        raise SailError("There is no sbatch here: log in to a node that submits SLURM jobs, or use --launcher local.")
    try:
        submitit = importlib.import_module("submitit")  # of an extra
    except ImportError as error:
        raise SailError("--launcher slurm needs submitit: pip install -e '.[slurm]'.") from error
    executor = submitit.AutoExecutor(folder.jobs, cluster="slurm")
    executor.update_parameters(name=f"sweep-{folder.path.name}", **request.parameters(jobs, after))
    together = ["--distributed"] * (request.nodes > 1)
    try:
        # What sbatch complains of stands in the error too.
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():
            submitted = [
                executor.submit(MemberJob(folder, name, [*member_command(folder, name), *together])) for name in names
            ]
    except submitit.core.utils.FailedJobError as error:
        said = [line.rpartition("error: ")[2].strip() for line in str(error).splitlines() if line.strip()]
        raise SailError(f"SLURM refused the members: {'; '.join(said)}. Change what they ask for.") from error
    for name, job in zip(names, submitted, strict=True):
        folder.write_status(name, dataclasses.replace(folder.status(name), state="waiting", job=job.job_id))
    return [job.job_id for job in submitted]


def this_job() -> str:
    """Returns the SLURM job in which this process runs, as `submit` names it; empty outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")


def queued_jobs() -> set[str] | None:
    """Returns the jobs that wait or run, as `submit` names them; None where there is no SLURM to ask."""
    if not shutil.which("squeue"):
        return None
    command = ["squeue", "--noheader", "--array", "--format=%i %t"]
    asked = subprocess.run(command, capture_output=True, text=True)
    if asked.returncode:
        return None
    ended = ("CD", "CA", "F", "TO", "NF", "OOM", "BF", "DL")
    entries = [line.split() for line in asked.stdout.splitlines()]
    return {job for job, state in entries if state not in ended}


def requeue_if_preempted(folder: SweepFolder) -> bool:
    """Queues the job of this process again, unless SLURM does so itself or the job was cancelled.

    Returns:
        Whether it did.
    """
    job = this_job()  # its SLURM_JOB_ID may be that of the whole array
    if not job or folder.stop.exists() or not shutil.which("scontrol"):
        return False
    shown = subprocess.run(["scontrol", "show", "job", job, "--oneliner"], capture_output=True, text=True)
    if "JobState=RUNNING" not in shown.stdout:
        return False
    return subprocess.run(["scontrol", "requeue", job], capture_output=True).returncode == 0


def cancel(jobs: Sequence[str]) -> None:
    """Takes waiting jobs from the queue, and tells those that run to save their state and end."""
    if jobs:
        subprocess.run(["scancel", "--quiet", "--state=PENDING", *jobs], capture_output=True)
        subprocess.run(["scancel", "--quiet", "--state=RUNNING", "--signal=TERM", *jobs], capture_output=True)
