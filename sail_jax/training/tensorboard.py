"""The writer of TensorBoard's event files, imported without PyTorch."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def _absent(module: str) -> Iterator[None]:
    """Lets imports of a module fail that has not been imported yet, as if it were not installed."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # what Python's import system takes for "not there"
    try:
        yield
    finally:
        del sys.modules[module]


# tensorboardX imports PyTorch wherever it is installed, which takes seconds, for tensors that it is never given here.
with _absent("torch"):
    from tensorboardX import SummaryWriter

__all__ = ["SummaryWriter"]
