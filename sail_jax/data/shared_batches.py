"""Sends batches from worker processes to the training process in shared memory that is reused.

A process pays several times more for the first access to a page than for filling it, and Grain allocates new shared
memory for every batch. So a worker writes the large arrays of a batch into blocks that it keeps; the training process
reads them in place, and a block is free again when no array refers to it.
"""

import contextlib
import mmap
import os
import pickle
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sail_jax.errors import SailError

# Smaller arrays are pickled and sent through the pipe.
_LEAST_BYTES = 1 << 16
# Offset of the array in its block; the first byte is 1 while the block is in use.
_OFFSET = mmap.PAGESIZE
_FREE, _TAKEN = 0, 1
# A folder in memory, if the system has one.
_MEMORY = Path("/dev/shm")


@contextlib.contextmanager
def shared_folder() -> Iterator[Path]:
    """Yields a folder for blocks and removes it at the end; arrays in the blocks stay valid."""
    parent = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="sail_jax-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


class BlockWriter:
    """The blocks of a worker process.

    Args:
        folder: the folder of the blocks.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blocks: list[_Block] = []
        self._given: list[_Block] = []  # blocks of arrays that were allocated and not sent yet

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Allocates an uninitialised array like `np.empty`; a large one is in a block, sent without a copy.

        Raises:
            SailError: there is no room for another block.
        """
        array = np.empty(0, dtype)
        size = int(np.prod(shape)) * array.itemsize
        if size < _LEAST_BYTES:
            return np.empty(shape, dtype)
        block = self._block(size)
        self._given.append(block)
        return np.frombuffer(block.memory, dtype, size // array.itemsize, _OFFSET).reshape(shape)

    def dumps(self, value: Any) -> bytes:
        """Pickles a value; its large arrays are replaced by references to blocks for `BlockReader.loads`.

        Raises:
            SailError: there is no room for another block.
        """
        buffers: list[pickle.PickleBuffer] = []
        data = pickle.dumps(value, protocol=5, buffer_callback=lambda buffer: self._in_band(buffer, buffers))
        blocks = [self._holding(buffer.raw()) for buffer in buffers]
        for block, _ in blocks:
            self._given.remove(block)
        return pickle.dumps((data, [(block.number, block.path.name, size) for block, size in blocks]))

    def reclaim(self) -> None:
        """Frees the blocks of arrays that were allocated and not sent; call it after every batch."""
        for block in self._given:
            block.memory[0] = _FREE
        self._given.clear()

    @staticmethod
    def _in_band(buffer: pickle.PickleBuffer, buffers: list[pickle.PickleBuffer]) -> bool:
        if buffer.raw().nbytes < _LEAST_BYTES:
            return True
        buffers.append(buffer)
        return False

    def _holding(self, raw: memoryview) -> tuple["_Block", int]:
        """The block of an array, copied into one if necessary, and its number of bytes."""
        array = np.frombuffer(raw, np.uint8)
        block = next((block for block in self._given if block.address == _address(array)), None)
        if block is None:
            self.empty(array.shape, np.uint8)[:] = array
            block = self._given[-1]
        return block, array.nbytes

    def _block(self, size: int) -> "_Block":
        """A free block of at least `size` bytes, else a new one that replaces the largest free one, if any."""
        free = sorted((block for block in self._blocks if block.memory[0] == _FREE), key=lambda block: block.size)
        block = next((block for block in free if block.size >= size), None)
        if block is None:
            number = free[-1].number if free else len(self._blocks)
            block = _Block(self._folder, number, size)
            self._blocks[number : number + 1] = [block]
        block.memory[0] = _TAKEN
        return block


class _Block:
    """A file of shared memory; the reader unlinks its name after opening it."""

    def __init__(self, folder: Path, number: int, size: int) -> None:
        self.number, self.size = number, size
        self.path = folder / f"{os.getpid()}-{number}-{size}"
        try:
            with self.path.open("xb", buffering=0) as file:
                _reserve(file.fileno(), _OFFSET + size)
            with self.path.open("rb+") as file:
                self.memory = mmap.mmap(file.fileno(), 0)
        except OSError as error:
            self.path.unlink(missing_ok=True)
            raise SailError(
                f"There is no room for {size:,} bytes of a batch in {folder} ({error.strerror}). Give the container "
                "more shared memory (docker run --shm-size), or lower config.data.workers or config.data.prefetch."
            ) from error
        self.address = _address(np.frombuffer(self.memory, np.uint8, size, _OFFSET))


def _reserve(file: int, size: int) -> None:
    # Without this, Linux kills the process later when a page cannot be allocated.
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.ftruncate(file, size)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


class BlockReader:
    """Reads, in the training process, what workers sent.

    Args:
        folder: the folder of the workers' blocks.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # (worker, number) -> name and memory of its block.
        self._memory: dict[tuple[str, int], tuple[str, mmap.mmap]] = {}

    def loads(self, data: bytes) -> Any:
        """Unpickles a value; its large arrays refer to the blocks."""
        pickled, sent = pickle.loads(data)
        return pickle.loads(pickled, buffers=[self._lease(*where) for where in sent])

    def _lease(self, number: int, name: str, size: int) -> np.ndarray:
        key = name.split("-")[0], number
        known, memory = self._memory.get(key, ("", None))
        if known != name:
            path = self._folder / name
            with path.open("rb+") as file:
                memory = mmap.mmap(file.fileno(), 0)
            # Unlink the name now, because a killed process would leave the file behind.
            path.unlink()
            self._memory[key] = name, memory
        return np.asarray(_Lease(memory, size))


class _Lease:
    """The object that all arrays in a block reference; its end marks the block as free."""

    def __init__(self, memory: mmap.mmap, size: int) -> None:
        address = _address(np.frombuffer(memory, np.uint8, size, _OFFSET))
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (size,), "data": (address, False)}
        weakref.finalize(self, memory.__setitem__, 0, _FREE).atexit = False
