"""Batches that go from worker processes to the training process in shared memory that is used again and again.

Pages that a process sees for the first time cost several times what it costs to fill them, and Grain makes its shared memory anew for
every batch. So a worker lays the large arrays of a batch in blocks that it keeps; the training process reads them where they
lie, and a block is free again when no array is left there that looks at it.
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

# Smaller arrays are sent through the pipe with the rest.
_LEAST_BYTES = 1 << 16
# Where the array lies in its block; before it is a byte that says whether the block is taken.
_OFFSET = mmap.PAGESIZE
_FREE, _TAKEN = 0, 1
# Memory that looks like a folder, where the system has it.
_MEMORY = Path("/dev/shm")


@contextlib.contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder for blocks, which is removed at the end; arrays that look at them stay as they are."""
    parent = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="sail_jax-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


class BlockWriter:
    """The blocks of a worker process.

    Args:
        folder: where the blocks lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blocks: list[_Block] = []
        self._given: list[_Block] = []  # those of arrays that were given out and not sent

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array with anything in it, as `np.empty`; a large one lies in a block, and is sent from there.

        Raises:
            SailError: when there is no room for another block.
        """
        array = np.empty(0, dtype)
        size = int(np.prod(shape)) * array.itemsize
        if size < _LEAST_BYTES:
            return np.empty(shape, dtype)
        block = self._block(size)
        self._given.append(block)
        return np.frombuffer(block.memory, dtype, size // array.itemsize, _OFFSET).reshape(shape)

    def dumps(self, value: Any) -> bytes:
        """Pickles a value; its large arrays become what `BlockReader.loads` finds them by.

        Raises:
            SailError: when there is no room for another block.
        """
        buffers: list[pickle.PickleBuffer] = []
        data = pickle.dumps(value, protocol=5, buffer_callback=lambda buffer: self._in_band(buffer, buffers))
        blocks = [self._holding(buffer.raw()) for buffer in buffers]
        for block, _ in blocks:
            self._given.remove(block)
        return pickle.dumps((data, [(block.number, block.path.name, size) for block, size in blocks]))

    def reclaim(self) -> None:
        """Frees the blocks of arrays that were given out and not sent; due after every batch."""
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
        """The block in which an array lies, or into which it is copied, and its bytes."""
        array = np.frombuffer(raw, np.uint8)
        block = next((block for block in self._given if block.address == _address(array)), None)
        if block is None:
            self.empty(array.shape, np.uint8)[:] = array
            block = self._given[-1]
        return block, array.nbytes

    def _block(self, size: int) -> "_Block":
        """A free block of at least so many bytes: the smallest, else a larger one in place of the largest, else a new one."""
        free = sorted((block for block in self._blocks if block.memory[0] == _FREE), key=lambda block: block.size)
        block = next((block for block in free if block.size >= size), None)
        if block is None:
            number = free[-1].number if free else len(self._blocks)
            block = _Block(self._folder, number, size)
            self._blocks[number : number + 1] = [block]
        block.memory[0] = _TAKEN
        return block


class _Block:
    """A file of shared memory, of which the reader takes the name away when it has opened it."""

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
                f"There is no room for {size:,} bytes of a batch in {folder} ({error.strerror}). Give the container more "
                "shared memory (docker run --shm-size), or lower config.data.workers or config.data.prefetch."
            ) from error
        self.address = _address(np.frombuffer(self.memory, np.uint8, size, _OFFSET))


def _reserve(file: int, size: int) -> None:
    # On Linux a page that cannot be had later would kill the process.
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.ftruncate(file, size)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


class BlockReader:
    """Reads in the training process what workers sent.

    Args:
        folder: where their blocks lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # (worker, number) -> name and memory of its block.
        self._memory: dict[tuple[str, int], tuple[str, mmap.mmap]] = {}

    def loads(self, data: bytes) -> Any:
        """The value; its large arrays look at their blocks."""
        pickled, sent = pickle.loads(data)
        return pickle.loads(pickled, buffers=[self._lease(*where) for where in sent])

    def _lease(self, number: int, name: str, size: int) -> np.ndarray:
        key = name.split("-")[0], number
        known, memory = self._memory.get(key, ("", None))
        if known != name:
            path = self._folder / name
            with path.open("rb+") as file:
                memory = mmap.mmap(file.fileno(), 0)
            # A process that is killed leaves behind what has a name.
            path.unlink()
            self._memory[key] = name, memory
        return np.asarray(_Lease(memory, size))


class _Lease:
    """What all arrays that look at a block hold on to; when it goes, the block is free."""

    def __init__(self, memory: mmap.mmap, size: int) -> None:
        address = _address(np.frombuffer(memory, np.uint8, size, _OFFSET))
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (size,), "data": (address, False)}
        weakref.finalize(self, memory.__setitem__, 0, _FREE).atexit = False
