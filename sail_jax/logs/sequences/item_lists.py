"""Lists of numbers per item (labels, users, vectors) on disk, looked up by the hash of the item's id.

FOLDER/
  keys.npy      [n] uint64 hashes of the ids, ascending
  bounds.npy    [n, 2] int64, where each list begins and ends
  values.bin    the lists, concatenated

All files are memory-mapped for reading. Writing holds 32 bytes per item in memory.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np


class ItemLists:
    """Opens the lists in a folder.

    Args:
        folder: the folder that `write` filled.
        dtype: of the values.
    """

    def __init__(self, folder: Path, dtype: np.dtype | type):
        self._keys = np.load(folder / "keys.npy", mmap_mode="r")
        self._bounds = np.load(folder / "bounds.npy", mmap_mode="r")
        empty = not (folder / "values.bin").stat().st_size  # an empty file cannot be memory-mapped
        self._values = np.zeros(0, dtype) if empty else np.memmap(folder / "values.bin", dtype, mode="r")

    @classmethod
    def write(
        cls, folder: Path, dtype: np.dtype | type, batches: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]
    ) -> "ItemLists":
        """Writes lists to a folder, batch by batch; if an item occurs several times, its first list counts.

        Args:
            folder: the folder to create.
            dtype: of the values.
            batches: (keys [n] uint64, lengths [n], values [sum of the lengths]).
        """
        folder.mkdir(parents=True)
        keys, lengths = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        with (folder / "values.bin").open("wb") as file:
            for some, sizes, values in batches:
                keys.append(np.asarray(some, np.uint64))
                lengths.append(np.asarray(sizes, np.int64))
                file.write(np.ascontiguousarray(values, dtype).tobytes())
        sizes = np.concatenate(lengths)
        unique, first = np.unique(np.concatenate(keys), return_index=True)
        ends = np.cumsum(sizes)[first]
        np.save(folder / "keys.npy", unique)
        np.save(folder / "bounds.npy", np.stack([ends - sizes[first], ends], axis=1))
        return cls(folder, dtype)

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Looks up the lists of some items.

        Args:
            keys: [n] uint64.

        Returns:
            starts: [n + 1] int64; the list of item i is values[starts[i]:starts[i + 1]], empty for an unknown item.
            values: the lists, in memory.
        """
        bounds = np.zeros((len(keys), 2), np.int64)
        if len(self._keys):
            slots = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
            bounds = np.where((self._keys[slots] == keys)[:, None], self._bounds[slots], 0)
        starts = np.concatenate([[0], np.cumsum(bounds[:, 1] - bounds[:, 0])])
        return starts, self._values[ranges(bounds[:, 0], bounds[:, 1])]


def ranges(begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Concatenates integer ranges: begins[0], ..., ends[0] - 1, begins[1], ...

    Args:
        begins: [n] int64.
        ends: [n] int64, exclusive.
    """
    sizes = ends - begins
    return np.repeat(begins - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
