"""The processes that compute together on one mesh: they share work, small values and folders."""

import contextlib
import dataclasses
import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from sail_jax.errors import SailError

Value = TypeVar("Value")

# Bytes that a process contributes to one exchange of rows; every device holds the parts of all processes at a time.
_PIECE = 1 << 20
_LEAST = 1 << 12


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes of a mesh, as one of them sees them.

    All of them call the same methods in the same order.

    Attributes:
        index: number of this process, from 0.
        count: number of processes; 1 where this process computes alone, and then nothing is exchanged.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def of(cls, mesh: Mesh) -> "Processes":
        """Returns the processes of a mesh, which has devices of one process or of all of them."""
        spanned = {device.process_index for device in mesh.devices.flat}
        return cls(jax.process_index(), jax.process_count()) if len(spanned) > 1 else cls()

    @property
    def first(self) -> bool:
        """Returns whether this is the process that writes what all of them have computed."""
        return self.index == 0

    def rows(self, total: int) -> slice:
        """Returns the consecutive rows, out of `total`, that fall to this process."""
        return slice(total * self.index // self.count, total * (self.index + 1) // self.count)

    def gather(self, value: Value) -> list[Value]:
        """Returns the values of all processes, in their order; each is small and can be pickled."""
        if self.count == 1:
            return [value]
        data = np.frombuffer(pickle.dumps(value), np.uint8)
        lengths = multihost_utils.process_allgather(np.array(len(data), np.int32))
        # Sizes are rounded up to powers of two, since each is compiled.
        padded = np.zeros(max(_LEAST, 1 << int(lengths.max() - 1).bit_length()), np.uint8)
        padded[: len(data)] = data
        found = multihost_utils.process_allgather(padded)
        return [pickle.loads(row[:length].tobytes()) for row, length in zip(found, lengths, strict=True)]

    def join(self, part: np.ndarray) -> np.ndarray:
        """Returns the rows of all processes, [n, ...], in their order; `part` are those of this process."""
        if self.count == 1:
            return part
        size = max(1, _PIECE // max(part[:1].nbytes, 1))
        pieces = [self.gather(part[at * size :][:size]) for at in range(max(self.gather(-(-len(part) // size))))]
        return np.concatenate([part[:0], *(piece[process] for process in range(self.count) for piece in pieces)])

    def on_first(self, do: Callable[[], Any]) -> Any:
        """Calls a function on the first process only; the others wait for it.

        Returns:
            What the function returns, on all processes; it is small and can be pickled.

        Raises:
            SailError: the function raised it, on all processes.
        """
        if self.count == 1:
            return do()
        value, problem = None, None
        if self.first:
            try:
                value = do()
            except SailError as error:
                problem = error
        value, problem = self.gather((value, problem))[0]
        if problem is not None:
            raise problem
        return value

    def wait(self) -> None:
        """Waits until all processes have come here."""
        if self.count > 1:
            multihost_utils.sync_global_devices("processes")

    @contextlib.contextmanager
    def scratch(self, parent: Path, prefix: str) -> Iterator[Path]:
        """Makes a folder for all processes in a folder that they share, and removes it in the end."""
        with contextlib.ExitStack() as removal:
            made = removal.enter_context(tempfile.TemporaryDirectory(".partial", prefix, parent)) if self.first else ""
            yield Path(self.gather(made)[0])
            self.wait()


ALONE = Processes()


def everyone() -> Processes:
    """Returns all processes that JAX knows, whichever of them a mesh has."""
    return Processes(jax.process_index(), jax.process_count())
