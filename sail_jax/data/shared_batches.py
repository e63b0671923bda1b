"""Batches that go from worker processes to the training process in shared memory that is used again and again.

Pages that a process sees for the first time cost several times what it costs to fill them. So a worker lays the large arrays of a
batch in blocks that it keeps; the training process reads them where they lie, and a block is free again when no array is
left there that looks at it.
"""

import contextlib
import mmap
import os
import pickle
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

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
        self._given: dict[int, _Block] = {}  # address -> block of an array that was given out and not sent

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
        array = np.frombuffer(block.memory, dtype, size // array.itemsize, _OFFSET).reshape(shape)
        self._given[array.__array_interface__["data"][0]] = block
        return array

    def dumps(self, value: Any) -> bytes:
        """Pickles a value; its large arrays become what `BlockReader.loads` finds them by."""
        buffers: list[pickle.PickleBuffer] = []
        data = pickle.dumps(value, protocol=5, buffer_callback=lambda buffer: self._in_band(buffer, buffers))
        sent = [self._sent(buffer.raw()) for buffer in buffers]
        self.reclaim()
        return pickle.dumps((data, sent))

    def reclaim(self) -> None:
        """Frees the blocks of arrays that were given out and not sent."""
        for block in self._given.values():
            block.memory[0] = _FREE
        self._given.clear()

    @staticmethod
    def _in_band(buffer: pickle.PickleBuffer, buffers: list[pickle.PickleBuffer]) -> bool:
        if buffer.raw().nbytes < _LEAST_BYTES:
            return True
        buffers.append(buffer)
        return False

    def _sent(self, raw: memoryview) -> tuple[str, int]:
        """The block in which an array lies, or into which it is copied, and its bytes."""
        array = np.frombuffer(raw, np.uint8)
        block = self._given.pop(array.__array_interface__["data"][0], None)
        if block is None:
            copy = self.empty(array.shape, np.uint8)
            copy[:] = array
            block = self._given.pop(copy.__array_interface__["data"][0])
        return block.name, array.nbytes

    def _block(self, size: int) -> "_Block":
        """A free block of at least so many bytes: the smallest, else the largest made larger, else a new one."""
        free = sorted((block for block in self._blocks if block.memory[0] == _FREE), key=lambda block: block.size)
        block = next((block for block in free if block.size >= size), free[-1] if free else None)
        if block is None:
            block = _Block(self._folder / f"{os.getpid()}-{len(self._blocks)}")
            self._blocks.append(block)
        block.reserve(size)
        block.memory[0] = _TAKEN
        return block


class _Block:
    """A file of shared memory."""

    def __init__(self, path: Path) -> None:
        self.name, self.size = path.name, 0
        self._file: BinaryIO = path.open("wb+", buffering=0)  # for as long as the process runs

    def reserve(self, size: int) -> None:
        if size <= self.size:
            return
        try:
            if hasattr(
                os, "posix_fallocate"
            ):  # Linux; without room kept for it, a page that cannot be had kills the process
                os.posix_fallocate(self._file.fileno(), 0, _OFFSET + size)
            else:
                os.ftruncate(self._file.fileno(), _OFFSET + size)
        except OSError as error:
            raise SailError(
                f"There is no room for {size:,} bytes of a batch in {Path(self._file.name).parent} ({error.strerror}). Give the "
                "container more shared memory (docker run --shm-size), or lower config.data.workers or config.data.prefetch."
            ) from error
        self.memory, self.size = mmap.mmap(self._file.fileno(), _OFFSET + size), size


class BlockReader:
    """Reads in the training process what workers sent.

    Args:
        folder: where their blocks lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._memory = folder, {}

    def loads(self, data: bytes) -> Any:
        """The value; its large arrays look at their blocks."""
        pickled, sent = pickle.loads(data)
        return pickle.loads(pickled, buffers=[self._lease(name, size) for name, size in sent])

    def _lease(self, name: str, size: int) -> np.ndarray:
        memory = self._memory.get(name)
        if memory is None or len(memory) < _OFFSET + size:
            with (self._folder / name).open("rb+") as file:
                memory = self._memory[name] = mmap.mmap(file.fileno(), 0)
        return np.asarray(_Lease(memory, size))


class _Lease:
    """What all arrays that look at a block hold on to; when it goes, the block is free."""

    def __init__(self, memory: mmap.mmap, size: int) -> None:
        address = np.frombuffer(memory, np.uint8, size, _OFFSET).__array_interface__["data"][0]
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (size,), "data": (address, False)}
        weakref.finalize(self, memory.__setitem__, 0, _FREE).atexit = False
