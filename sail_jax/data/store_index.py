"""The index of an item store on disk: from the hash of an id to its record, from positions to shards.

    index/
      keys.u64      [items] hashes of the ids, sorted
      records.u64   [items] the record number of each
      starts.u64    [shards + 1] number of the first record of each shard, and of all records
      hidden.u64    record numbers that repeat an id, sorted
      shared.u64    hashes that several ids of the store share, sorted
      same.*.u64    items with the content of an earlier one (`same_content`)

The first two grow with the store and are memory-mapped, 16 bytes per item; the others are small.
"""

import pathlib
import shutil
from collections.abc import Callable, Iterator

import numpy as np

from sail_jax.data.key_buckets import partitioned
from sail_jax.data.same_content import SameContent
from sail_jax.errors import SailError

FOLDER = "index"

_U64 = np.dtype("<u8")
_ENTRY = np.dtype([("key", _U64), ("record", _U64)])
# Entries sorted in memory at a time.
_BUCKET = 1 << 22


class Index:
    """The index of the item store in folder `path`, opened for reading.

    Attributes:
        starts: [shards + 1] int64 number of the first record of each shard.
        hidden: [h] int64 numbers of the records that repeat an id.
        same: the items with the content of an earlier one.
    """

    def __init__(self, path: pathlib.Path):
        folder = path / FOLDER
        # Plain array views, in which a search takes half the time of one in a memmap.
        self._keys = np.memmap(folder / "keys.u64", _U64, mode="r").view(np.ndarray)
        self._records = np.memmap(folder / "records.u64", _U64, mode="r").view(np.ndarray)
        self._shared = np.fromfile(folder / "shared.u64", _U64)
        self.starts = np.fromfile(folder / "starts.u64", _U64).astype(np.int64)
        self.hidden = np.fromfile(folder / "hidden.u64", _U64).astype(np.int64)
        # The number of positions before each hidden record.
        self._gaps = self.hidden - np.arange(len(self.hidden))
        self.same = SameContent(folder)

    def __len__(self) -> int:
        return len(self._keys)

    def lookup(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Finds the positions of hashed ids.

        Args:
            keys: [n] uint64.

        Returns:
            [n] int64 positions, -1 for an unknown key; [n] bool, whether several ids share the key, so that the
            position may be that of another id.
        """
        slots = np.minimum(np.searchsorted(self._keys, keys), len(self) - 1)
        records = self._records[slots].astype(np.int64)
        positions = records - np.searchsorted(self.hidden, records)
        return np.where(self._keys[slots] == keys, positions, -1), np.isin(keys, self._shared)

    def records_of(self, key: np.uint64) -> list[int]:
        """The record numbers of all ids with this hash."""
        first, last = self._keys.searchsorted(key, "left"), self._keys.searchsorted(key, "right")
        return self._records[first:last].tolist()

    def position(self, record: int) -> int:
        """The position of a record that is not hidden."""
        return record - int(self.hidden.searchsorted(record))

    def record(self, position: int) -> int:
        """The record number of a position."""
        return position + int(np.searchsorted(self._gaps, position, "right"))

    def first_positions(self, positions: np.ndarray) -> np.ndarray:
        """The positions of the first items with the same content as those at some positions, [n] int64."""
        records = self.same.of_records(positions + np.searchsorted(self._gaps, positions, "right"))
        return records - np.searchsorted(self.hidden, records)

    def place(self, record: int) -> tuple[int, int]:
        """(shard, record of the shard) of a record number."""
        return _place(self.starts, record)


def build(
    path: pathlib.Path,
    shards: int,
    read_ids: Callable[[int], list[str]],
    item_key: Callable[[str], int],
    on_duplicate: Callable[[str, tuple[int, int], tuple[int, int]], None],
) -> int:
    """Writes the index of the store in folder `path` and returns its number of items.

    Entries are first partitioned into files by the high bits of the key, then each file is sorted in memory: the memory
    used does not depend on the size of the store.

    Args:
        path: the store.
        shards: number of shards.
        read_ids: shard -> ids in record order.
        item_key: the 64-bit hash of an id.
        on_duplicate: called as on_duplicate(item_id, first, repeated) with two (shard, record of the shard).

    Raises:
        SailError: there are no items.
    """
    partial = path / f"{FOLDER}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    starts = np.cumsum([0, *(len(read_ids(shard)) for shard in range(shards))])
    if not starts[-1]:
        raise SailError(f"The item store {path} has no items.")
    buckets = -(-int(starts[-1]) // _BUCKET)

    def id_of(record: int) -> str:
        shard, offset = _place(starts, record)
        return read_ids(shard)[offset]

    hidden, shared, items = [], [], 0
    with (partial / "keys.u64").open("wb") as keys, (partial / "records.u64").open("wb") as records:
        chunks = _entries(starts, read_ids, item_key)
        for entries in partitioned(partial / "buckets", chunks, buckets, _ENTRY, _BUCKET):
            entries = entries[np.lexsort((entries["record"], entries["key"]))]
            repeated = _resolve(entries, id_of, shared)
            for again, first in repeated.items():
                on_duplicate(id_of(again), _place(starts, first), _place(starts, again))
            hidden += repeated
            entries = entries[~np.isin(entries["record"], np.array(list(repeated), _U64))]
            items += len(entries)
            keys.write(entries["key"].tobytes())
            records.write(entries["record"].tobytes())
    for name, values in (("starts", starts), ("hidden", sorted(hidden)), ("shared", shared)):
        np.array(values, _U64).tofile(partial / f"{name}.u64")
    shutil.rmtree(path / FOLDER, ignore_errors=True)
    partial.replace(path / FOLDER)
    return items


def _entries(starts: np.ndarray, read_ids: Callable, item_key: Callable) -> Iterator[np.ndarray]:
    """Yields the entries of each shard."""
    for shard in range(len(starts) - 1):
        entries = np.empty(starts[shard + 1] - starts[shard], _ENTRY)
        entries["key"] = np.fromiter(map(item_key, read_ids(shard)), _U64, len(entries))
        entries["record"] = np.arange(starts[shard], starts[shard + 1])
        yield entries


def _resolve(entries: np.ndarray, id_of: Callable[[int], str], shared: list[int]) -> dict[int, int]:
    """Compares the ids of equal keys: repeated record -> first record of the same id; fills `shared`."""
    keys = entries["key"]
    repeated: dict[int, int] = {}
    for key in np.unique(keys[1:][keys[1:] == keys[:-1]]):
        first: dict[str, int] = {}
        for record in entries["record"][np.searchsorted(keys, key) : np.searchsorted(keys, key, "right")].tolist():
            earliest = first.setdefault(id_of(record), record)
            if earliest != record:
                repeated[record] = earliest
        if len(first) > 1:
            shared.append(int(key))
    return repeated


def _place(starts: np.ndarray, record: int) -> tuple[int, int]:
    shard = int(starts.searchsorted(record, "right")) - 1
    return shard, record - int(starts[shard])
