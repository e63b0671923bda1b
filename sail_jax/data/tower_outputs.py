"""Outputs of frozen towers on disk, read in place of the pixels and the sound of items.

    FOLDER/
      NAME.rows.npy   [n, bytes] uint8, the outputs, memory-mapped by readers; the name is random
      NAME.keys.npy   [n] uint64, what they are the outputs for; written last: rows without keys do not count

A key is a hash of the encoded file, so that an item that changes finds no output of what it was.
"""

import functools
import hashlib
import math
import pathlib
import uuid
from typing import Any, NamedTuple

import numpy as np

from sail_jax.errors import SailError
from sail_jax.files import partial_file

_KEYS, _ROWS = ".keys.npy", ".rows.npy"
_OPEN_FILES = 512


def media_key(data: bytes, part: int = 0) -> int:
    """Returns a 64-bit hash of a picture, or of a sound and the number of a clip of it."""
    digest = hashlib.blake2b(data, digest_size=8, salt=part.to_bytes(2, "little"))
    return int.from_bytes(digest.digest(), "little")


class Form(NamedTuple):
    """Shape and type of a tower's output for one frame or clip."""

    shape: tuple[int, ...]
    dtype: Any

    @property
    def nbytes(self) -> int:
        """The bytes of an output."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class TowerOutputs:
    """The outputs of one tower in a folder, opened for reading.

    It may be pickled (a worker process opens the files again) and used by several threads. The index takes 16 bytes of
    memory per output.

    Args:
        folder: the folder; one that is not there has no outputs.
        form: shape and type of an output.
    """

    def __init__(self, folder: pathlib.Path, form: Form) -> None:
        self.folder, self.form = folder, form
        files = sorted(folder.glob(f"*{_KEYS}"))
        keys = [np.load(file) for file in files]
        self._rows_of = [file.with_name(file.name.removesuffix(_KEYS) + _ROWS) for file in files]
        self._starts = np.cumsum([0, *map(len, keys)])
        every = np.concatenate([np.zeros(0, np.uint64), *keys])
        self._places = np.argsort(every)
        self._keys = every[self._places]
        self._rows = functools.lru_cache(_OPEN_FILES)(self._open)

    def __reduce__(self):
        return TowerOutputs, (self.folder, self.form)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: int) -> bool:
        return self._place(key) is not None

    def get(self, key: int) -> np.ndarray | None:
        """Returns the output with a key, read-only; None if there is none.

        Raises:
            SailError: its file is missing or damaged.
        """
        place = self._place(key)
        if place is None:
            return None
        file = int(np.searchsorted(self._starts, place, "right")) - 1
        return self._rows(file)[place - self._starts[file]].view(self.form.dtype).reshape(self.form.shape)

    def _place(self, key: int) -> int | None:
        at = int(np.searchsorted(self._keys, np.uint64(key)))
        return int(self._places[at]) if at < len(self._keys) and self._keys[at] == key else None

    def _open(self, file: int) -> np.ndarray:
        path, rows = self._rows_of[file], self._starts[file + 1] - self._starts[file]
        try:
            found = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise SailError(f"{path} cannot be read ({error}). Remove {self.folder}: it is made again.") from error
        if found.shape != (rows, self.form.nbytes):
            raise SailError(f"{path} holds {found.shape} bytes, not {(rows, self.form.nbytes)}. Remove {self.folder}.")
        return found


def write_outputs(folder: pathlib.Path, keys: list[int], outputs: np.ndarray) -> None:
    """Adds outputs, [n, ...], to a folder; several processes may add to it at once.

    What is not complete when the process is killed is never read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex
    files = {_ROWS: np.ascontiguousarray(outputs).reshape(len(keys), -1).view(np.uint8), _KEYS: np.uint64(keys)}
    for suffix, array in files.items():
        with partial_file(folder / f"{name}{suffix}") as partial, partial.open("wb") as file:
            np.save(file, array)


class Encodings(NamedTuple):
    """The outputs that batches hold in place of pixels and of sound.

    A field is None where the tower runs in the step.

    Attributes:
        frames: of the vision tower.
        clips: of the audio tower.
    """

    frames: TowerOutputs | None = None
    clips: TowerOutputs | None = None


NO_ENCODINGS = Encodings()
