"""Runs the work of several clients one piece at a time, in turns that none can take for itself."""

import collections
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from sail_jax.errors import SailError

_Work = tuple[Future, Callable[[], Any]]


class BusyError(SailError):
    """An error of a request that comes while too many others wait."""


class Turns:
    """One thread that works for all clients; who has had a turn goes to the end of the row.

    Args:
        most: requests of all clients that may be waiting or running.
        most_of_one: those of one client.
    """

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most, self._most_of_one = most, most_of_one
        self._admitted: collections.Counter[str] = collections.Counter()
        self._row: dict[str, collections.deque[_Work]] = {}  # by client, in the order of their next turns
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="search")

    @contextlib.contextmanager
    def admitted(self, client: str) -> Iterator[None]:
        """Counts a request as long as it is entered, from before it is read until it is answered.

        Raises:
            BusyError: this client, or all together, have as many requests as they may have.
        """
        with self._lock:
            if self._admitted[client] >= self._most_of_one or self._admitted.total() >= self._most:
                raise BusyError("Too many searches are waiting; try again in a moment.")
            self._admitted[client] += 1
        try:
            yield
        finally:
            with self._lock:
                self._admitted -= collections.Counter([client])  # keeps no zeros

    def submit(self, client: str, work: Callable[[], Any]) -> Future:
        """Returns the future result of some work; work that is cancelled before its turn is left out."""
        future: Future = Future()
        with self._lock:
            self._row.setdefault(client, collections.deque()).append((future, work))
        self._thread.submit(self._work)
        return future

    def _work(self) -> None:
        """Does the first work of the client whose turn it is."""
        with self._lock:
            client = next(iter(self._row))
            queue = self._row.pop(client)
            future, work = queue.popleft()
            if queue:
                self._row[client] = queue
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

    def finish(self) -> None:
        """Waits for the running work and leaves out all that waits."""
        with self._lock:
            for queue in self._row.values():
                for future, _ in queue:
                    future.cancel()
        self._thread.shutdown(wait=True)
