"""Writes where a member stands: from within its process or, where that died, from outside."""

import contextlib
import dataclasses
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator

from sail_jax.errors import SailError, Stopped
from sail_jax.runs.ownership import started
from sail_jax.sweeps.folder import Status, SweepFolder

# Longest error that a status keeps.
_LONGEST = 500


@contextlib.contextmanager
def attempt(folder: SweepFolder, name: str, *, job: str = "", devices: Callable[[], int]) -> Iterator[None]:
    """Within it, a member runs in this process: its status says so, and how that ended.

    A signal leaves it `preempted`, to be resumed, or `stopped`, where the sweep was told to stop or a person pressed
    Ctrl-C.

    Args:
        folder: the folder of the sweep.
        name: the member.
        job: its job in the queue of a cluster.
        devices: counts the devices of all processes of the member.
    """
    before = folder.status(name)
    status = Status(
        "running",
        attempts=before.attempts + 1,
        started=time.time(),
        host=socket.gethostname(),
        pid=os.getpid(),
        born=started(os.getpid()),
        job=job,
        devices=devices(),
        device_seconds=before.device_seconds,
    )
    folder.write_status(name, status)
    try:
        yield
    except Stopped as stopped:
        _end(folder, name, status, _stopped_state(folder, stopped.status), stopped.status)
        raise
    except SailError as error:
        _end(folder, name, status, "failed", error.status, str(error))
        raise
    except BaseException as error:
        _end(folder, name, status, "failed", 1, f"{type(error).__name__}: {error}")
        raise
    _end(folder, name, status, "done", 0)


def ended_unseen(folder: SweepFolder, name: str, exit_code: int | None) -> None:
    """Writes how a member's process ended, unless it did so itself.

    Args:
        folder: the folder of the sweep.
        name: the member.
        exit_code: the exit status of the process, negative for a signal; None if nobody saw it.
    """
    status = folder.status(name)
    if status.state not in ("running", "waiting"):
        return
    if exit_code in Stopped.STATUSES:
        _end(folder, name, status, _stopped_state(folder, exit_code), exit_code)
        return
    how = "ended without a word" if exit_code is None else f"ended with status {exit_code}"
    if exit_code is not None and exit_code < 0:
        how = f"was killed by {signal.Signals(-exit_code).name}"
    said = last_lines(folder, name, 1)
    _end(folder, name, status, "failed", exit_code, f"the process {how}{': ' * bool(said)}{said}")


def _stopped_state(folder: SweepFolder, exit_status: int) -> str:
    interrupted = exit_status == Stopped(signal.SIGINT).status
    return "stopped" if interrupted or folder.stop.exists() else "preempted"


def _end(folder: SweepFolder, name: str, status: Status, state: str, exit_code: int | None, error: str = "") -> None:
    now = time.time()
    seconds = (now - status.started) * status.devices if status.state == "running" else 0.0
    last = error.strip().rpartition("\n")[2][:_LONGEST]
    ended = dataclasses.replace(
        status,
        state=state,
        ended=now,
        exit_code=exit_code,
        device_seconds=status.device_seconds + seconds,
        error=last,
    )
    folder.write_status(name, ended)


def lives_here(status: Status) -> bool | None:
    """Returns whether the process of a status lives; None if it is on another host."""
    if status.host != socket.gethostname():
        return None
    try:
        os.kill(status.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # Its number may be that of another process by now; one that its parent has yet to ask after counts as living.
    return not status.born or started(status.pid) in ("", status.born)


def last_lines(folder: SweepFolder, name: str, count: int) -> str:
    """Returns the last lines of what a member printed; empty if it printed nothing."""
    try:
        with folder.log(name).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 400 * count))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.rpartition("\r")[2] for line in text.split("\n")]
    return "\n".join([line for line in lines if line.strip()][-count:])
