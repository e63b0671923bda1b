"""Moments at which `train` is killed: while it starts, steps, mines, writes, commits, deletes, and at its end.

Between steps, a run is killed from outside, by its training log. What is about files goes by Python's audit events in
the process itself: before the n-th of a kind, or within some milliseconds of it, in which other threads go on writing.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from sail_jax.runs import digests
from sail_jax.runs.directory import RunDirectory, read_training_log

# By the training log; the rest by what happens to files.
BY_LOG = ("start", "step", "end")
# Of files: the claim of the owner, mined negatives, a checkpoint that is written, its digests and its name, an old one
# that is deleted.
BY_FILES = ("claim", "mine", "save", "commit", "delete")
# So many of these are the kills in the life of a run, in any order; then comes one at its end.
KILLS_OF_A_LIFE = 3
DRAWN = ("start", "step", "step", "claim", "mine", "save", "save", "save", "commit", "commit", "delete")

_UNFINISHED = ".orbax-checkpoint-tmp"
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_REMOVALS = ("os.remove", "os.rmdir", "shutil.rmtree")
_EVENTS = ("open", "os.mkdir", "os.rename", *_REMOVALS)
# Seconds within which a kill falls that does not come before the event itself.
_LATER = 0.02


class Moment(NamedTuple):
    """A moment of `train`.

    Attributes:
        kind: one of `BY_LOG` or `BY_FILES`; empty for none.
        number: the event of its kind, or the step since the start, from 1.
        delay: seconds after it.
    """

    kind: str = ""
    number: int = 0
    delay: float = 0.0


class Pace(NamedTuple):
    """What an undisturbed run takes.

    Attributes:
        start: seconds until the first step is logged.
        step: seconds of a step.
        end: seconds after the last step is logged.
        steps: the last step.
        events: events of files, by kind.
    """

    start: float
    step: float
    end: float
    steps: int
    events: dict[str, int]


def draw(kind: str, pace: Pace, rng: random.Random) -> Moment:
    """Draws a moment of a kind."""
    if kind == "start":
        return Moment(kind, 0, rng.uniform(0, pace.start))
    if kind == "step":
        return Moment(kind, rng.randint(1, 4), rng.uniform(0, pace.step))
    if kind == "end":
        return Moment(kind, pace.steps, rng.uniform(0, pace.end))
    # A run that goes on has fewer than a whole one.
    number = rng.randint(1, max(1, pace.events.get(kind, 0) // 2))
    return Moment(kind, number, rng.choice((0.0, rng.uniform(0, _LATER))))


class KillAt:
    """Within it, this process kills itself at a moment of files; else it writes how many of each kind there were.

    Args:
        output: the run directory.
        moment: the moment; one of another kind is left to the parent.
        counts: the JSON file that is written at the end.
    """

    def __init__(self, output: Path, moment: Moment, counts: Path) -> None:
        self._output, self._moment, self._counts = output, moment, counts
        self._seen: Counter[str] = Counter()

    def __enter__(self) -> None:
        sys.addaudithook(self._watch)

    def __exit__(self, *_: object) -> None:
        self._counts.write_text(json.dumps(self._seen))

    def _watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS or not (kind := _kind(event, arguments, self._output)):
            return
        self._seen[kind] += 1
        if (kind, self._seen[kind]) != (self._moment.kind, self._moment.number):
            return
        if not self._moment.delay:
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Thread(target=_kill_after, args=(self._moment.delay,), daemon=True).start()


def _kill_after(delay: float) -> None:
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)


def _kind(event: str, arguments: tuple[Any, ...], output: Path) -> str:
    """Returns the kind of an event in the folder of a run; empty if it is of none."""
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITES):
        return ""
    path = arguments[0]
    if not isinstance(path, str | os.PathLike):
        return ""
    path, folder = Path(path), arguments[-1]
    if event in ("os.remove", "os.rmdir") and not path.is_absolute() and isinstance(folder, int) and folder >= 0:
        path = Path(f"/proc/self/fd/{folder}").readlink() / path
    if not path.is_relative_to(output):
        return ""
    place = str(path.relative_to(output))
    if place.startswith("owners/"):
        return "claim"
    if place.startswith("mined/"):
        return "mine"
    if not place.startswith("checkpoints/"):
        return ""
    if event in _REMOVALS:
        return "delete"
    if _UNFINISHED not in place:
        return ""
    return "commit" if event == "os.rename" or digests.ITEM in place or "commit_success" in place else "save"


class Watch:
    """Follows from outside a process of a run.

    Args:
        output: the run directory.
    """

    def __init__(self, output: Path) -> None:
        self._run = RunDirectory(output)
        self._began = time.monotonic()
        self._log = self._inode()
        self._done = max(self._run.steps(), default=0)

    def step(self) -> int:
        """Returns the last step that this process has logged; 0 before the first."""
        if self._inode() in (None, self._log):  # a process begins by writing the file anew
            return 0
        last = max((line["step"] for line in read_training_log(self._run)), default=0)
        return last if last > self._done else 0

    def reached(self, moment: Moment) -> bool:
        """Returns whether a moment by the log is reached, for `step` and `end` but for its delay."""
        if moment.kind == "start":
            return time.monotonic() > self._began + moment.delay
        step = self.step()
        last = moment.number if moment.kind == "end" else self._done + moment.number
        return bool(step) and step >= last

    def _inode(self) -> int | None:
        try:
            return self._run.training_log.stat().st_ino
        except FileNotFoundError:
            return None


def left_by(output: Path) -> list[str]:
    """Returns what a killed run left: an unfinished checkpoint, one that was partly deleted, a partial file."""
    saves, left = output / "checkpoints", []
    if any(saves.glob(f"*{_UNFINISHED}*")):
        left.append("unfinished checkpoint")
    steps = [path for path in saves.glob("*") if path.name.isdecimal()]
    if any(digests.damage(epath.Path(path)) for path in steps):
        left.append("partly deleted checkpoint")
    if any(output.rglob("*.partial")):
        left.append("partial file")
    return left
