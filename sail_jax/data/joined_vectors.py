"""ID embeddings that were joined to a finished item store, read beside its records.

    items/vectors/NAME/
      vectors.f32   [N, D] the vectors of the items that have one, in the order of their table
      rows.u64      [items] for each position of the store its row among them, counted from 1; 0 for an item without one
      joined.json   what was joined: width, counts, and a digest of the table

Shards stay as they are. The files are memory-mapped: reading an item touches a page of each.
"""

import json
import pathlib
from typing import Any

import numpy as np

from sail_jax.errors import SailError

# The folder within that of the store.
FOLDER = "vectors"
FACTS = "joined.json"
FORMAT = {"format": "sail_jax joined vectors", "version": 1}
_COUNTS = ("items", "vectors", "width", "unknown", "bad")
_U64, _F32 = np.dtype("<u8"), np.dtype("<f4")


class JoinedVectors:
    """The joined vectors of one name, opened for reading; safe in threads.

    Args:
        folder: items/vectors/NAME.
        items: number of items of the store.

    Attributes:
        folder: the folder.
        facts: the content of joined.json.

    Raises:
        SailError: the files are damaged, or of another store.
    """

    def __init__(self, folder: pathlib.Path, items: int) -> None:
        self.folder, self.facts = folder, read_facts(folder)
        shape = self.facts["vectors"], self.facts["width"]
        self._mend = f"Remove {folder} and join the table again."
        if self.facts["items"] != items:
            raise SailError(
                f"{folder} was joined to a store of {self.facts['items']:,} items, not {items:,}. {self._mend}"
            )
        sizes = {rows_path(folder): items * _U64.itemsize, vectors_path(folder): shape[0] * shape[1] * _F32.itemsize}
        for path, size in sizes.items():
            if not path.is_file() or path.stat().st_size != size:
                raise SailError(f"{path} is missing, or has not its {size:,} bytes. {self._mend}")
        self._rows = np.memmap(rows_path(folder), _U64, mode="r").view(np.ndarray)
        self._vectors = np.memmap(vectors_path(folder), _F32, mode="r", shape=shape)

    def get(self, position: int) -> np.ndarray | None:
        """The vector of the item at a position, [D] float32; None if it has none.

        Raises:
            SailError: the file of the rows is damaged.
        """
        row = int(self._rows[position])
        if row > len(self._vectors):
            raise SailError(
                f"{rows_path(self.folder)} is damaged: the item at {position} has the row {row}. {self._mend}"
            )
        return np.array(self._vectors[row - 1]) if row else None


def open_joined(store: pathlib.Path, items: int) -> dict[str, JoinedVectors]:
    """Opens all vectors that were joined to the store in a folder: name -> vectors."""
    return {folder.name: JoinedVectors(folder, items) for folder in _folders(store)}


def joined_digests(store: pathlib.Path) -> dict[str, str]:
    """The digests of the tables that were joined to the store in a folder, by name."""
    return {folder.name: read_facts(folder)["digest"] for folder in _folders(store)}


def read_facts(folder: pathlib.Path) -> dict[str, Any]:
    """What joined.json says of the vectors in a folder.

    Raises:
        SailError: it is missing or damaged.
    """
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        whole = {key: facts[key] for key in FORMAT} == FORMAT and isinstance(facts["digest"], str)
        whole = whole and all(type(facts[key]) is int and facts[key] >= 0 for key in _COUNTS)
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise SailError(f"{folder / FACTS} is missing or damaged. Remove {folder} and join the table again.")
    return facts


def vectors_path(folder: pathlib.Path) -> pathlib.Path:
    """The file of the vectors of a name."""
    return folder / "vectors.f32"


def rows_path(folder: pathlib.Path) -> pathlib.Path:
    """The file that has the row of each position."""
    return folder / "rows.u64"


def _folders(store: pathlib.Path) -> list[pathlib.Path]:
    # Names have no dot, so that a folder that is being written, NAME.partial, is none of them.
    return sorted(path for path in (store / FOLDER).glob("*") if path.is_dir() and not path.suffix)
