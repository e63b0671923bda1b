"""Items of a store that have equal content under several ids: which of them is the first.

    index/
      same.keys.u64, same.first_keys.u64          hashes of the ids of the others, sorted, and those of their first ones
      same.records.u64, same.first_records.u64    their record numbers, sorted, and those of their first ones

The files take 32 bytes per item that repeats the content of an earlier one, and are memory-mapped. A store without such
items has none. Nor has one of an earlier version, whose items count as different.
"""

import contextlib
import hashlib
import pathlib
import shutil
from collections.abc import Iterable, Iterator

import numpy as np

from sail_jax.data.key_buckets import partitioned

_U64 = np.dtype("<u8")
_ITEM = np.dtype([("key", _U64), ("item", _U64), ("record", _U64)])
_PAIR = np.dtype([("key", _U64), ("first", _U64)])
# What is looked up -> its field of an item.
_KINDS = {"keys": "item", "records": "record"}
# Entries sorted in memory at a time.
_BUCKET = 1 << 22


class SameContent:
    """The items whose content an earlier one has, opened for reading; it may be pickled.

    Args:
        folder: the index of a store; None for no such items.
    """

    def __init__(self, folder: pathlib.Path | None = None) -> None:
        self._folder = folder
        self._of = {kind: (_mapped(folder, kind), _mapped(folder, f"first_{kind}")) for kind in _KINDS}

    def __reduce__(self):
        return SameContent, (self._folder,)

    def __len__(self) -> int:
        return len(self._of["keys"][0])

    def of_keys(self, keys: np.ndarray) -> np.ndarray:
        """The hashes of the ids of the first items with the same content, [n] uint64 -> [n] uint64."""
        return self._first("keys", keys)

    def of_records(self, records: np.ndarray) -> np.ndarray:
        """The record numbers of the first items with the same content, [n] int64 -> [n] int64."""
        return self._first("records", records.astype(_U64)).astype(np.int64)

    def digest(self) -> str:
        """A hash of all of it."""
        digest = hashlib.blake2b(digest_size=16)
        for values in self._of["keys"]:
            digest.update(memoryview(values))
        return digest.hexdigest()

    def _first(self, kind: str, values: np.ndarray) -> np.ndarray:
        found, first = self._of[kind]
        if not len(found):
            return values
        at = np.minimum(np.searchsorted(found, values), len(found) - 1)
        return np.where(found[at] == values, first[at], values)


def _mapped(folder: pathlib.Path | None, name: str) -> np.ndarray:
    path = None if folder is None else _path(folder, name)
    if path is None or not path.is_file() or not path.stat().st_size:
        return np.zeros(0, _U64)
    return np.memmap(path, _U64, mode="r").view(np.ndarray)


def _path(folder: pathlib.Path, name: str) -> pathlib.Path:
    return folder / f"same.{name}.u64"


def write_same(
    folder: pathlib.Path, shards: Iterable[tuple[np.ndarray, np.ndarray]], records: int, hidden: np.ndarray
) -> None:
    """Writes which items have equal content, in memory that does not grow with the store.

    Args:
        folder: the index of the store.
        shards: for each shard [n] uint64 hashes of the ids, and [n] of the contents, 0 for an unknown one.
        records: number of records of all shards.
        hidden: [h] int64 record numbers that are passed over.
    """
    scratch, buckets = folder / "same.partial", -(-records // _BUCKET)
    scratch.mkdir()
    with contextlib.ExitStack() as opened:
        pairs = {kind: opened.enter_context((scratch / kind).open("wb")) for kind in _KINDS}
        for entries in partitioned(scratch / "contents", _items(shards, hidden), buckets, _ITEM, _BUCKET):
            entries = entries[np.lexsort((entries["record"], entries["key"]))]
            again = np.flatnonzero(entries["key"][1:] == entries["key"][:-1]) + 1
            earliest = np.arange(len(entries))
            earliest[again] = 0
            first = entries[np.maximum.accumulate(earliest)[again]]
            for kind, field in _KINDS.items():
                found = np.empty(len(again), _PAIR)
                found["key"], found["first"] = entries[field][again], first[field]
                pairs[kind].write(found.tobytes())
    for kind in _KINDS if (scratch / "keys").stat().st_size else ():
        # Entries are partitioned by their high bits, which those of record numbers have to become.
        shift = np.uint64(64 - records.bit_length() if kind == "records" else 0)
        with _path(folder, kind).open("wb") as values, _path(folder, f"first_{kind}").open("wb") as firsts:
            for entries in partitioned(scratch / f"of_{kind}", _pairs(scratch / kind, shift), buckets, _PAIR, _BUCKET):
                entries = entries[np.argsort(entries["key"])]
                values.write((entries["key"] >> shift).tobytes())
                firsts.write(entries["first"].tobytes())
    shutil.rmtree(scratch)


def _items(shards: Iterable[tuple[np.ndarray, np.ndarray]], hidden: np.ndarray) -> Iterator[np.ndarray]:
    start = 0
    for keys, contents in shards:
        entries = np.empty(len(keys), _ITEM)
        entries["key"], entries["item"] = contents, keys
        entries["record"] = np.arange(start, start + len(keys))
        start += len(keys)
        yield entries[(contents != 0) & ~np.isin(entries["record"], hidden)]


def _pairs(path: pathlib.Path, shift: np.uint64) -> Iterator[np.ndarray]:
    """Yields the pairs of a file in stretches, with their keys shifted to the left."""
    with path.open("rb") as file:
        while len(entries := np.fromfile(file, _PAIR, _BUCKET)):
            entries["key"] <<= shift
            yield entries
