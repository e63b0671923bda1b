"""Uploads the checkpoints of a run that lies in a bucket.

Orbax saves a checkpoint in the mirror of the run, and a thread uploads it while training goes on. Until all of its
files are in the bucket, nobody sees any of them (`buckets.put_folder`).
"""

import shutil
import threading
import uuid
from collections.abc import Collection

from sail_jax import buckets
from sail_jax.errors import SailError
from sail_jax.runs.directory import RunDirectory
from sail_jax.sharding.process_group import everyone

_POLL = 0.1


class CheckpointUploads:
    """Uploads checkpoints from the first process, one at a time, of a run that lies in a bucket.

    Args:
        run: the run directory.
        keep: number of latest checkpoints that are kept in the bucket.
        always: steps whose checkpoints are kept as well.
    """

    def __init__(self, run: RunDirectory, keep: int, always: Collection[int]) -> None:
        self._run, self._keep, self._always = run, keep, always
        self._thread: threading.Thread | None = None
        self._saved = threading.Event()
        self._error: Exception | None = None

    def begin(self, step: int) -> None:
        """Starts to upload a checkpoint as soon as orbax has saved it; `finish` was called before."""
        if buckets.address(self._run.path) and everyone().first:
            self._saved.clear()
            self._thread = threading.Thread(target=self._upload, args=(step,), daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Waits for the upload, which orbax's save must precede, and raises what was wrong with it."""
        self._saved.set()
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._error:
            error, self._error = self._error, None
            raise error

    def _upload(self, step: int) -> None:
        folder = self._run.checkpoints / str(step)  # orbax gives it this name last
        while not folder.is_dir():
            if self._saved.wait(_POLL) and not folder.is_dir():
                return  # the save failed, and says so itself
        try:
            self._run.put_logs()  # a run that goes on from here has all lines before
            buckets.put_folder(folder, folder)
            kept = {*sorted(self._run.steps(), reverse=True)[: self._keep], *self._always}
            for old in set(self._run.steps()) - kept:
                buckets.remove(self._run.checkpoints / str(old))
        except Exception as error:
            self._error = error


def require_one_mirror(run: RunDirectory) -> None:
    """Checks, before anything is done, that all processes share the mirror of a run in a bucket.

    Raises:
        SailError: they do not.
    """
    if not buckets.address(run.path):
        return
    mark = run.path / f"{everyone().on_first(lambda: uuid.uuid4().hex)}.partial"

    def make() -> None:
        run.path.mkdir(parents=True, exist_ok=True)
        mark.touch()

    everyone().on_first(make)
    shared = all(everyone().gather(mark.exists()))
    everyone().on_first(mark.unlink)
    if not shared:
        raise SailError(
            f"{buckets.address(run.path)}: several hosts save one checkpoint in a folder that they share, before it is "
            "uploaded. Set SAIL_JAX_BUCKETS to a folder that all hosts see, or mount the bucket."
        )


def remove_unfinished(run: RunDirectory) -> None:
    """Removes from a run's mirror the checkpoints of a killed process, which the bucket does not have."""

    def remove() -> None:
        steps = set(map(str, run.steps()))
        for folder in run.checkpoints.iterdir() if run.checkpoints.is_dir() else ():
            if folder.name not in steps:
                shutil.rmtree(folder, ignore_errors=True)

    if buckets.address(run.path):
        everyone().on_first(remove)
