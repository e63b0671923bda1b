"""Partitions entries by their 64-bit keys into files, so that each file can be sorted in memory."""

import pathlib
from collections.abc import Iterable, Iterator

import numpy as np


def partitioned(
    folder: pathlib.Path, chunks: Iterable[np.ndarray], buckets: int, dtype: np.dtype, waiting: int
) -> Iterator[np.ndarray]:
    """Yields the entries of all chunks by the high bits of their keys, bucket by bucket.

    Args:
        folder: the folder of the files, which is made, and removed at the end.
        chunks: structured arrays with a field "key", uint64 hashes.
        buckets: number of files.
        dtype: type of the entries.
        waiting: entries that are written at once.
    """
    folder.mkdir(parents=True)
    pending, count = [np.empty(0, dtype)], 0
    for chunk in chunks:
        pending.append(chunk)
        count += len(chunk)
        if count >= waiting:
            append_to_buckets(folder, np.concatenate(pending), buckets)
            pending, count = [np.empty(0, dtype)], 0
    append_to_buckets(folder, np.concatenate(pending), buckets)
    for bucket in range(buckets):
        yield np.fromfile(folder / str(bucket), dtype)
        (folder / str(bucket)).unlink()
    folder.rmdir()


def append_to_buckets(folder: pathlib.Path, entries: np.ndarray, buckets: int) -> None:
    """Appends entries to the files 0, 1, ... of a folder by the high bits of their keys.

    The order of the files is the order of the keys: sorted one by one and joined, they give all entries, sorted.

    Args:
        folder: the folder of the files.
        entries: a structured array with a field "key", uint64 hashes.
        buckets: number of files.
    """
    # The high 32 bits, scaled to [0, buckets).
    bucket = (entries["key"] >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32)
    order = np.argsort(bucket, kind="stable")
    bounds = np.searchsorted(bucket[order], np.arange(buckets + 1, dtype=np.uint64))
    for i in range(buckets):
        with (folder / str(i)).open("ab") as file:
            file.write(entries[order[bounds[i] : bounds[i + 1]]].tobytes())
