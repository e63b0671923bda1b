"""Lets one command at a time train in a run directory, on any host that sees the folder.

    WORKDIR/owners/TOKEN.json   who trains there or is about to: host, process, since when
    WORKDIR/owners/TOKEN.beat   in a bucket: written again and again while the owner lives

Every claim is a file of its own, written before the others are looked at; so of two commands that start at once, at
least one sees the other, and the one whose token comes first goes on. This needs nothing from the file system but that
a folder lists what was created, as NFS does; locks may be without effect there. A claim of a process that is gone is
removed by the next one: on the same host the kernel knows it, from another host it shows by a file that its owner no
longer touches. An owner that was only asleep finds its claim removed, and ends. The same holds in a bucket, which lists
what was written before; there the owner writes another object, so that it never writes its claim again.
"""

import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from sail_jax.buckets import address, fetch, modified, remove
from sail_jax.errors import OwnedError, SailError
from sail_jax.files import commit_bytes, commit_json
from sail_jax.runs.directory import RunDirectory
from sail_jax.sharding.process_group import everyone

# Seconds between touches of a claim, and after which an owner on another host that touches it no more is gone.
_BEAT, _LEASE = 10.0, 60.0
_POLL = 0.2
_BEAT_SUFFIX = ".beat"


@dataclasses.dataclass(frozen=True)
class _Owner:
    """What a claim says.

    Attributes:
        host: name of the host.
        kernel: what tells its boots and containers apart, whose process numbers mean nothing to each other.
        pid: number of the process.
        started: when the process started, in ticks of the kernel, since numbers are used again.
        since: when the claim was made, for the message.
        owns: whether it has looked at the other claims, and gives way to none.
    """

    host: str
    kernel: str
    pid: int
    started: str
    since: str
    owns: bool = False

    @classmethod
    def this_process(cls) -> "_Owner":
        """Returns the owner that this process would be."""
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        return cls(socket.gethostname(), _kernel(), os.getpid(), started(os.getpid()), since)

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}, since {self.since}"


@contextlib.contextmanager
def owning(run: RunDirectory) -> Iterator[None]:
    """Within it, this process, or all that compute together, own the run directory; all of them enter it.

    Raises:
        OwnedError: another process, which lives, owns it.
    """
    with contextlib.ExitStack() as held:
        everyone().on_first(lambda: held.enter_context(_owning(run)))
        yield


@contextlib.contextmanager
def _owning(run: RunDirectory) -> Iterator[None]:
    claim, owner, done = run.owners / f"{uuid.uuid4().hex}.json", _Owner.this_process(), threading.Event()
    claim.parent.mkdir(parents=True, exist_ok=True)
    try:
        commit_json(claim, dataclasses.asdict(owner))
    except FileNotFoundError:  # an owner took it for what a killed process left; that one is seen now
        commit_json(claim, dataclasses.asdict(owner))
    beats = threading.Thread(target=_keep_touching, args=(claim, done), daemon=True)
    beats.start()
    try:
        fetch(run.owners, leave_out=_is_beat)
        for other in sorted(run.owners.glob("*.json")):
            if other != claim:
                _give_way_or_remove(run, other, claim)
        commit_json(claim, dataclasses.asdict(owner) | {"owns": True})
        for unfinished in run.owners.glob("*.json.partial"):  # of processes that were killed as they wrote them
            unfinished.unlink(missing_ok=True)
        yield
    finally:
        done.set()
        beats.join()
        _remove(claim)


def _keep_touching(claim: Path, done: threading.Event) -> None:
    while not done.wait(_BEAT):
        try:
            _touch(claim)
        except FileNotFoundError:
            print(
                f"error: {claim} is gone: this process was silent for over {_LEASE:.0f} s and another one trains there "
                "now, or the folder was removed. It ends without saving.",
                file=sys.stderr,
                flush=True,
            )
            os._exit(OwnedError.status)
        except (OSError, SailError):
            pass  # a server that is away for a while


def _give_way_or_remove(run: RunDirectory, other: Path, claim: Path) -> None:
    """Raises OwnedError if the owner of another claim lives and goes first; else that claim is gone afterwards."""
    while (owner := _read(other)) and _lives(owner, other, claim):
        if owner.owns or other.name < claim.name:
            raise OwnedError(
                f"{run.path} is being trained by {owner}: wait for it, stop it, or name another --workdir."
            )
        time.sleep(_POLL)
    _remove(other)


def _read(claim: Path) -> _Owner | None:
    """Returns what a claim says; None if it is gone, or nothing that was ever a claim."""
    fetch(claim)
    try:
        return _Owner(**json.loads(claim.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return None


def _lives(owner: _Owner, other: Path, claim: Path) -> bool:
    """Returns whether an owner lives; waits for a sign of life of one on another host for up to the lease."""
    if (owner.host, owner.kernel) == (socket.gethostname(), _kernel()):
        return owner.started == started(owner.pid)
    try:
        last = _touched(other)
        # Both are times of the file system, not of two clocks.
        until = time.monotonic() + _LEASE - (_touched(claim) - last)
        if time.monotonic() < until:
            print(f"Waiting up to {_LEASE:.0f} s for a sign of life of {owner}, which trained in this folder.")
        while time.monotonic() < until:
            time.sleep(_POLL)
            if _touched(other) != last:
                return True
    except FileNotFoundError:
        pass
    return False


def _touched(claim: Path) -> float:
    """Returns when a claim was last touched."""
    last = modified(claim)
    with contextlib.suppress(FileNotFoundError):
        last = max(last, modified(claim.with_suffix(_BEAT_SUFFIX)))
    return last


def _touch(claim: Path) -> None:
    """Shows that the owner lives; raises FileNotFoundError if its claim is gone."""
    if not address(claim):
        os.utime(claim)
        return
    modified(claim)
    commit_bytes(claim.with_suffix(_BEAT_SUFFIX), uuid.uuid4().bytes)


def _remove(claim: Path) -> None:
    remove(claim)
    remove(claim.with_suffix(_BEAT_SUFFIX))


def _is_beat(name: str) -> bool:
    return name.endswith(_BEAT_SUFFIX)


def _kernel() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux
        return ""


def started(pid: int) -> str:
    """Returns when a process of this host started, in ticks of the kernel: its number may be used again.

    Empty if there is none, or if it is dead and only not yet forgotten.
    """
    if not Path("/proc/self/stat").exists():  # no Linux
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass
        return "unknown"
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state in "ZX" else fields[18]
