"""Imports the writer of TensorBoard's event files without PyTorch."""

import contextlib
import sys
from collections.abc import Iterator


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

__all__ = ["SummaryWriter"]
