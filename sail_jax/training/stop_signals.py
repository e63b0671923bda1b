"""Ends a run that is told to stop by a signal, on all of its processes after the same step."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils

from sail_jax.errors import Stopped
from sail_jax.sharding.process_group import everyone


class StopSignals:
    """Heeds SIGTERM, SIGINT and SIGUSR1 while it is entered, in the main thread.

    A process that trains alone stops after the current step, or at once outside of `between_steps`, where all that was
    trained is saved. Of several processes one may get the signal: JAX's preemption service, which listens to SIGTERM,
    lets them agree on the next step that none of them has passed, without a word while there is no signal. Other
    signals are passed on to it as SIGTERM.

    While the state is being saved, further signals change nothing, except that a second Ctrl-C ends the process as a
    kill does.
    """

    def __init__(self) -> None:
        self._number: signal.Signals | None = None
        self._stepping = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        self._together = jax.distributed.is_initialized()
        if threading.current_thread() is threading.main_thread():
            self._wakeup = signal.set_wakeup_fd(-1)  # nobody else may act on these signals
            taken = [number for number in Stopped.SIGNALS if not (self._together and number == signal.SIGTERM)]
            self._before = {number: signal.signal(number, self._note) for number in taken}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._wakeup)

    @contextlib.contextmanager
    def between_steps(self) -> Iterator[None]:
        """Within it, the caller asks `reached` after every step, and nothing is raised."""
        self._stepping = True
        try:
            yield
        finally:
            self._stepping = False

    def reached(self, step: int) -> bool:
        """Returns whether the run stops after this step; all processes ask after every step."""
        return multihost_utils.reached_preemption_sync_point(step) if self._together else self._number is not None

    def check(self) -> None:
        """Raises Stopped if a process that trains alone got a signal after its last step was counted."""
        if self._number is not None and not self._together:
            raise Stopped(self._number)

    def stopped(self, kept: str) -> Stopped:
        """Returns the exception that tells why; all processes call it, once they have reached the step."""
        numbers = [number for number in everyone().gather(self._number) if number]
        return Stopped(signal.SIGINT if signal.SIGINT in numbers else (numbers or [signal.SIGTERM])[0], kept)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._number == number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self._number = self._number or signal.Signals(number)
        if self._together:
            os.kill(os.getpid(), signal.SIGTERM)
        elif not self._stepping:
            raise Stopped(number)
