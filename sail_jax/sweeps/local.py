"""Runs members on this machine, some at a time, each with its share of the GPUs and of the processors."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Self

from sail_jax.errors import SailError, Stopped
from sail_jax.runs.ownership import started
from sail_jax.sweeps.attempt import ended_unseen
from sail_jax.sweeps.folder import Status, SweepFolder, read

_POLL = 0.2
# Seconds that a member gets to save its state.
_PATIENCE = 120.0


class Share(NamedTuple):
    """What one of the members that run at a time may use.

    Attributes:
        gpus: ids of GPUs; None where there are none to share out.
        processors: numbers of processors.
    """

    gpus: tuple[str, ...] | None
    processors: tuple[int, ...]


def shares(jobs: int | None) -> list[Share]:
    """Returns what each of the members that run at a time may use.

    Args:
        jobs: their number; by default one per GPU, and one on a machine without.

    Raises:
        SailError: there are fewer GPUs than jobs.
    """
    gpus = _gpus()
    jobs = jobs or len(gpus) or 1
    if gpus and jobs > len(gpus):
        raise SailError(f"--jobs is {jobs}, but there are {len(gpus)} GPUs for them: lower it.")
    processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return [
        Share(
            tuple(gpus[job::jobs]) if gpus else None,
            tuple(processors[job::jobs]) or tuple(processors[job % max(1, len(processors)) :][:1]),
        )
        for job in range(jobs)
    ]


def _gpus() -> list[str]:
    """Returns the ids of the GPUs that JAX would use."""
    if os.environ.get("JAX_PLATFORMS", "cuda").split(",")[0] not in ("cuda", "gpu"):
        return []
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return visible.split(",")
    if "CUDA_VISIBLE_DEVICES" in os.environ or not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.split()


def member_command(folder: SweepFolder, name: str) -> list[str]:
    """Returns the command that runs a member."""
    return [sys.executable, "-m", "sail_jax", "sweep", "member", name, "--workdir", str(folder.path)]


class Pool:
    """The members that run on this machine; at its end those that still do save their state and end.

    Args:
        folder: the folder of the sweep.
        jobs: as in `shares`.
        say: gets a line when a member starts or ends.

    Raises:
        SailError: as `shares`.
    """

    def __init__(self, folder: SweepFolder, jobs: int | None, say: Callable[[str], None]) -> None:
        self._folder, self._say, self._free = folder, say, shares(jobs)
        self._running: dict[str, tuple[subprocess.Popen, Share]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        _stop(self._folder, {name: process for name, (process, _) in self._running.items()})

    @property
    def running(self) -> list[str]:
        """Returns the members that run."""
        return list(self._running)

    @property
    def has_room(self) -> bool:
        """Returns whether another member may start, now and at all."""
        return bool(self._free) and not self._folder.stop.exists()

    def start(self, name: str, note: str = "") -> None:
        """Starts a member; `note` follows in the line about it."""
        share = self._free.pop(0)
        self._running[name] = _start(self._folder, name, share), share
        self._say(f"{name}: started{note}")

    def tell_to_end(self, name: str) -> None:
        """Tells a member to save its state and end."""
        self._running[name][0].terminate()

    def wait(self) -> list[str]:
        """Waits a moment; returns the members that have ended."""
        time.sleep(_POLL)
        ended = {name: process.returncode for name, (process, _) in self._running.items() if process.poll() is not None}
        for name, exit_code in ended.items():
            self._free.append(self._running.pop(name)[1])
            self._say(_ended(self._folder, name, exit_code))
        return list(ended)


def run_local(
    folder: SweepFolder,
    names: Sequence[str],
    *,
    jobs: int | None = None,
    ready: Callable[[str], bool] = lambda name: True,
    say: Callable[[str], None] = print,
) -> None:
    """Runs members until all have ended, or the sweep is told to stop; a member that fails stops no other.

    A signal stops the members that run, and saves their state.

    Args:
        folder: the folder of the sweep.
        names: the members, in the order in which they start.
        jobs: as in `shares`.
        ready: whether a member may start yet; one that never may starts when no other runs.
        say: gets a line when a member starts or ends.

    Raises:
        SailError: as `shares`.
    """
    waiting = list(names)
    with Pool(folder, jobs, say) as pool:
        while pool.running or (waiting and pool.has_room):
            while waiting and pool.has_room:
                first = next((name for name in waiting if ready(name)), None if pool.running else waiting[0])
                if first is None:
                    break
                waiting.remove(first)
                pool.start(first, f", {len(waiting)} wait")
            pool.wait()


def take_back(folder: SweepFolder, say: Callable[[str], None]) -> list[str]:
    """Ends, with their state saved, the members that run on here though their `sweep run` was killed.

    They may have any share of the machine, and nobody waits for them. Only who owns the sweep may call it: then no
    other command waits for members.

    Returns:
        Their names.
    """
    members = read(folder.path).members
    left = {member.name: member.status for member in members if _runs_here(member.status)}
    for name, status in left.items():
        say(f"{name}: runs on without the command that launched it; it saves its state, to be started again")
        _tell(status, signal.SIGTERM)
    deadline = time.monotonic() + _PATIENCE
    for name, status in left.items():
        while _runs_here(status):
            if time.monotonic() > deadline:
                _tell(status, signal.SIGKILL)
            time.sleep(_POLL)
        ended_unseen(folder, name, Stopped(signal.SIGTERM).status)
    return list(left)


def _runs_here(status: Status) -> bool:
    known = status.state == "running" and status.born and not status.job and status.host == socket.gethostname()
    return bool(known) and started(status.pid) == status.born


def _tell(status: Status, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(status.pid, number)


def _start(folder: SweepFolder, name: str, share: Share) -> subprocess.Popen:
    environment = dict(os.environ)
    if share.gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(share.gpus)
    folder.log(name).parent.mkdir(parents=True, exist_ok=True)
    with folder.log(name).open("ab") as log:
        process = subprocess.Popen(
            [*member_command(folder, name), "--launcher", str(os.getpid())],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C comes here, and members are told from here
        )
    if share.processors:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, share.processors)
    return process


def _ended(folder: SweepFolder, name: str, exit_code: int) -> str:
    ended_unseen(folder, name, exit_code)
    status = folder.status(name)
    took = f" after {status.ended - status.started:.0f} s" if status.started else ""
    return f"{name}: {status.state}{took}{': ' * bool(status.error)}{status.error}"


def _stop(folder: SweepFolder, running: Mapping[str, subprocess.Popen]) -> None:
    for process in running.values():
        process.terminate()
    deadline = time.monotonic() + _PATIENCE
    for name, process in running.items():
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        ended_unseen(folder, name, process.returncode)
