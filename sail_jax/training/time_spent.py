"""What the wall-clock time of a run goes to: training, or what keeps it from training."""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping

import jax

# `start` is restoring the state and opening the data. The rest of the time is `train`.
ACTIVITIES = ("start", "data", "compile", "save", "evaluate", "mine")
# Tracing, lowering, and compiling or reading the compilation cache.
_COMPILE_EVENTS = "/jax/core/compile/"


class TimeSpent:
    """Adds up the seconds of each activity of a run since this object was made.

    JAX reports how long it compiles. Time in which it compiles counts as `compile`, whatever it compiles for.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._seconds = dict.fromkeys(ACTIVITIES, 0.0)
        self._earlier: Mapping[str, float] = {}
        self._compiling: list[tuple[float, float]] = []  # start and end, one after the other
        self._thread = threading.get_ident()  # compiling in another thread does not keep this one from training
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def resume(self, earlier: Mapping[str, float]) -> None:
        """Adds the `totals` of earlier starts of the run."""
        self._earlier = earlier

    def close(self) -> None:
        """Stops to listen to JAX."""
        jax.monitoring.unregister_event_duration_listener(self._on_event)

    def add(self, activity: str, seconds: float) -> None:
        """Adds seconds to an activity."""
        self._seconds[activity] += seconds

    @contextlib.contextmanager
    def on(self, activity: str) -> Iterator[None]:
        """Adds the time within the context to an activity, without the time in which JAX compiles."""
        began, compiled = time.monotonic(), self._seconds["compile"]
        try:
            yield
        finally:
            self.add(activity, time.monotonic() - began - (self._seconds["compile"] - compiled))

    def totals(self) -> dict[str, float]:
        """Returns the seconds of `train` and of each activity, over all starts of the run."""
        wall = time.monotonic() - self._began
        seconds = {"train": wall - sum(self._seconds.values())} | self._seconds
        return {name: value + self._earlier.get(name, 0.0) for name, value in seconds.items()}

    def _on_event(self, event: str, seconds: float, **_: object) -> None:
        """Adds an event that ends now. A function may be traced within another one, whose event comes later."""
        if not event.startswith(_COMPILE_EVENTS) or threading.get_ident() != self._thread:
            return
        end = time.monotonic()
        start, inner = end - seconds, 0.0
        while self._compiling and self._compiling[-1][0] >= start:
            first, last = self._compiling.pop()
            inner += last - first
        self._compiling.append((start, end))
        self.add("compile", seconds - inner)
