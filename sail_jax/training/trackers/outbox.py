"""Hands lines of a training log to a tracker from a thread of its own."""

import queue
import sys
import threading
from collections.abc import Mapping

from sail_jax.training.trackers.tracker import Sink

_ROOM = 10_000  # lines that may wait for a tracker
_PATIENCE = 30.0  # seconds at the end of training, which may be a preemption


class Outbox:
    """Passes lines on to a tracker, so that one that is slow, hangs or fails never holds up training.

    A line that the tracker did not take is counted; the first one is said at once, their number at the end.

    Args:
        name: the tracker, for messages.
        tracker: the tracker.
    """

    def __init__(self, name: str, tracker: Sink) -> None:
        self._name, self._tracker = name, tracker
        self._lines: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(_ROOM)
        self._added = self._taken = 0
        self._problem = ""
        self._thread = threading.Thread(target=self._send, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line to those that wait."""
        self._added += 1
        try:
            self._lines.put_nowait((step, values))
        except queue.Full:
            self._failed(step, f"{_ROOM:,} lines wait for it")

    def finish(self, patience: float = _PATIENCE) -> None:
        """Waits until the tracker has all lines, for `patience` seconds at most; says how many it lacks."""
        try:
            self._lines.put(None, timeout=patience)
            self._thread.join(patience)
        except queue.Full:
            pass
        problem = self._problem or ("" if not self._thread.is_alive() else f"it took over {patience:.0f} s at the end")
        if problem:
            missing = f"{self._added - self._taken:,} of {self._added:,} lines of the training log"
            say(f"{self._name} lacks {missing} ({problem}).")

    def _send(self) -> None:
        while line := self._lines.get():
            try:
                self._tracker.log(*line)
                self._taken += 1
            except Exception as error:  # whatever a package, its server or its disk may raise
                self._failed(line[0], reason(error))
        try:
            self._tracker.finish()
        except Exception as error:
            self._problem = self._problem or reason(error)

    def _failed(self, step: int, problem: str) -> None:
        if not self._problem:
            say(f"{self._name} did not take the line of step {step} ({problem}); the run goes on without it.")
        self._problem = problem


def reason(error: Exception) -> str:
    """Returns an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def say(line: str) -> None:
    """Prints a line about a tracker to stderr."""
    print(line, file=sys.stderr, flush=True)
