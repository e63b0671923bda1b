"""Prepares the batches of a run ahead of the steps, by Grain: in a thread, or in worker processes.

A whole batch is prepared inside one worker: batches, not records, are sent between processes.
"""

import contextlib
import functools
import gc
import itertools
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Generator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import grain
from absl import flags

from sail_jax.config import Config
from sail_jax.data.pipeline import BatchSource, LoadedBatch
from sail_jax.data.shared_batches import BlockReader, BlockWriter, shared_folder
from sail_jax.errors import Stopped

# Seconds that a worker lives on after SIGTERM.
_LAST_BATCHES = 60.0


def make_iterator(source: BatchSource, config: Config, start: int) -> Generator[LoadedBatch, None, None]:
    """Iterates over the batches of steps `start`, `start + 1`, ... in order, with prefetching.

    Close it (`contextlib.closing`) to stop the workers and to free prefetched batches.

    Args:
        source: the batches by step.
        config: `data.workers` processes prepare whole batches, each with a prefetch of `data.prefetch`.
        start: the first step.
    """
    if not config.data.workers:
        yield from _prepared(source, config, start)
        return
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, which only an absl program parses
    with shared_folder() as folder:
        reader, sent = BlockReader(folder), _SentBatches(source, folder)
        with contextlib.closing(_prepared(sent, config, start, functools.partial(_begin_worker, folder))) as batches:
            yield from map(reader.loads, batches)


class _SentBatches:
    """The batches of a `BatchSource`, pickled for the pipe from a worker process."""

    def __init__(self, source: BatchSource, folder: Path) -> None:
        self._source, self._folder = source, folder
        self._writer: BlockWriter | None = None

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, step: int) -> bytes:
        if self._writer is None:  # created in the worker process, each of which has its own blocks
            self._writer = BlockWriter(self._folder)
            self._source.empty = self._writer.empty
        try:
            return self._writer.dumps(self._source[step])
        finally:
            self._writer.reclaim()


def _prepared(
    source: Any, config: Config, start: int, begin_worker: Callable[..., None] | None = None
) -> Generator[Any, None, None]:
    """Yields the elements of a source from `start` on, read ahead by a thread or by worker processes."""
    data = config.data
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=max(1, data.prefetch))
    steps = grain.MapDataset.source(source)[start:].to_iter_dataset(reading)
    if begin_worker is not None:
        workers = grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=max(1, data.prefetch))
        steps = steps.mp_prefetch(workers, worker_init_fn=begin_worker)
    batches = iter(steps)
    try:
        # A worker would die of a signal that comes while it still imports. Grain starts workers from a thread that it
        # starts now; a thread inherits which signals are held back from its parent, and a process from its thread.
        resource_tracker.ensure_running()  # whose start, by the first worker, would let signals to the second one pass
        held = signal.pthread_sigmask(signal.SIG_BLOCK, Stopped.SIGNALS)
        try:
            first = list(itertools.islice(batches, 1))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        yield from itertools.chain(first, batches)
    finally:
        batches.close()
        gc.collect()  # Grain leaves batches in reference cycles, whose memory would outlive the run


def _begin_worker(folder: Path, *_: int) -> None:
    """Initialises a worker process: it outlives signals to stop, and ends when the training process ends."""
    # Ctrl-C reaches all processes of a terminal, and a scheduler's signal all of a job: the training process needs the
    # next batch before it stops. SIGTERM is also what multiprocessing ends a worker with.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: threading.Timer(_LAST_BATCHES, os._exit, (1,)).start())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, Stopped.SIGNALS)
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()


def _end_with_parent(folder: Path) -> None:
    multiprocessing.parent_process().join()
    shutil.rmtree(folder, ignore_errors=True)  # a killed training process leaves it behind
    os._exit(1)
