"""Lets SIGTERM, SIGUSR1 and Ctrl-C end a command at once, with what is written so far intact."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self

from sail_jax.errors import Stopped

# Seconds that the main thread gets to heed a signal. It cannot while it runs native code: a compiler, k-means, a query.
_PATIENCE = 3.0
# Seconds until a signal that could not be raised is sent again.
_MOMENT = 0.05


def ignore_signals() -> None:
    """Lets signals change nothing any more: the command is done, and its status is to be known."""
    for number in Stopped.SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Signals:
    """Raises `Stopped` in the main thread at a signal, while it is entered: scratch folders are removed.

    Where the main thread does not come to it, or at a second signal, the process ends as by a kill, which no file that
    is complete minds.

    Args:
        end: ends the process; called with the exception that could not be raised.
    """

    def __init__(self, end: Callable[[Stopped], None]) -> None:
        self._end, self._raised = end, threading.Event()
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._raise) for number in Stopped.SIGNALS}
            self._reads, self._writes = os.pipe()
            os.set_blocking(self._writes, False)
            self._wakeup = signal.set_wakeup_fd(self._writes, warn_on_full_buffer=False)
            self._unraisable, sys.unraisablehook = sys.unraisablehook, self._send_again
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._before:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        sys.unraisablehook = self._unraisable
        os.close(self._writes)
        self._raised.set()
        self._watcher.join()
        os.close(self._reads)

    def _raise(self, number: int, _: FrameType | None) -> None:
        if self._raised.is_set():
            self._end(Stopped(number))
        self._raised.set()
        raise Stopped(number)

    def _send_again(self, found: "sys.UnraisableHookArgs") -> None:
        """Repeats a signal that came while the interpreter cleaned up, where nothing can be raised."""
        if not isinstance(found.exc_value, Stopped):
            self._unraisable(found)
            return
        self._raised.clear()
        threading.Timer(_MOMENT, os.kill, (os.getpid(), found.exc_value.number)).start()

    def _watch(self) -> None:
        """Ends the process for a main thread that does not come to it; the interpreter writes every signal's number."""
        while number := os.read(self._reads, 1):
            if number[0] in Stopped.SIGNALS and not self._raised.wait(_PATIENCE):
                self._end(Stopped(number[0]))
