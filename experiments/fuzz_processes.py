"""Runs numbered cases in processes that are started again where one dies or hangs."""

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait

# (outcome, what was said) of the case of a number.
Run = Callable[[int], tuple[str, str]]
# Seconds that a case may take; the first one of a process may have to import and to compile.
LIMIT, FIRST_LIMIT = 20.0, 180.0
# Bytes of memory of a process, beyond which a header with a lie in it would take those of the whole machine.
_MEMORY = 8 << 30


def run_cases(run: Run, numbers: range, processes: int) -> Iterator[tuple[int, str, str]]:
    """Yields (number, outcome, what was said) of cases, in the order in which they end.

    Args:
        run: runs a case, by its number; is pickled. Its outcome is "died" or "hung" where the process does.
        numbers: the cases.
        processes: how many run at a time.
    """
    left, busy = iter(numbers), {}
    workers = [_Worker(run) for _ in range(min(processes, len(numbers)))]
    idle = list(workers)
    try:
        while True:
            while idle and (number := next(left, None)) is not None:
                worker = idle.pop()
                worker.give(number)
                busy[worker.pipe] = worker
            if not busy:
                return
            ready = wait(list(busy), timeout=1.0)
            for pipe in [pipe for pipe, worker in busy.items() if pipe in ready or worker.is_late()]:
                worker = busy.pop(pipe)
                idle.append(worker)
                yield worker.number, *worker.outcome(ended=pipe in ready)
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process that runs one case after another, and its successors."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._run), daemon=True)
        self._process.start()
        theirs.close()
        self._limit = FIRST_LIMIT

    def give(self, number: int) -> None:
        """Gives it a case."""
        self.number, self._began = number, time.monotonic()
        self.pipe.send(number)

    def is_late(self) -> bool:
        """Returns whether its case takes too long."""
        return time.monotonic() - self._began > self._limit

    def outcome(self, *, ended: bool) -> tuple[str, str]:
        """Returns the outcome of its case, which has ended or is late; starts again where its process is gone."""
        if not ended:
            self.stop()
            self._start()
            return "hung", f"over {LIMIT:.0f} s"
        try:
            found = self.pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            self._start()
            return "died", signal.strsignal(-code) or f"signal {-code}" if code < 0 else f"status {code}"
        self._limit = LIMIT
        return found

    def stop(self) -> None:
        """Kills its process."""
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _work(pipe: Connection, run: Run) -> None:
    """Runs the cases whose numbers come through a pipe, silently."""
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silent, stream)
    while True:
        pipe.send(run(pipe.recv()))
