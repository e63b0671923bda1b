"""Writes the training log for TensorBoard, without importing PyTorch."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def _absent(module: str) -> Iterator[None]:
    """Makes imports of a module fail as if it were not installed, unless it has been imported already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # Python's import system then raises ModuleNotFoundError
    try:
        yield
    finally:
        del sys.modules[module]


# tensorboardX imports PyTorch if it is installed, which takes seconds. It needs it only for PyTorch tensors.
with _absent("torch"):
    from tensorboardX import SummaryWriter


class TensorBoard:
    """Event files of TensorBoard, which hides what an earlier start wrote of steps after `start`.

    Args:
        folder: the folder of the files.
        start: steps done.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=start + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes a line."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self) -> None:
        """Closes the file."""
        self._writer.close()
