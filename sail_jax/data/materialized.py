"""Materialized records: a training set, joined and shuffled, in shards that are read sequentially.

They are for storage on which random reads are slow.

    OUTPUT/
      records-00000.array_record   the examples of a shard, one msgpack record each: a pair and its items
      identity.json                the settings and inputs that determine the examples; written first

Example number e of the training set is record e of the folder, counted through the shards, so that a batch stays a
function of its step. Shards are written in order: the folder is complete when the last one exists.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import msgpack
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from sail_jax.buckets import fetch
from sail_jax.data.store import ItemStore, decode_item, encode_item
from sail_jax.data.tables import Pair
from sail_jax.errors import BadRecordError, SailError
from sail_jax.files import commit_json, partial_file
from sail_jax.items import Item
from sail_jax.progress import NameColumn, Progress

_IDENTITY = "identity.json"
# What a process that was killed in its first moments leaves.
_OF_KILLED = {f"{_IDENTITY}.partial"}
_FORMAT = {"format": "sail_jax materialized records", "version": 1}
# Groups of one record, because a block of examples may begin anywhere; media are compressed already.
_WRITER_OPTIONS = "group_size:1,uncompressed"
# Examples per read: batches take them in order, and each request to an object store is slow.
_BLOCK = 32
_CACHED_BLOCKS = 4


class Example(NamedTuple):
    """One example of a training set.

    Attributes:
        pair: the row of the table.
        items: id -> item, for those items of the pair that are materialized.
    """

    pair: Pair
    items: Mapping[str, Item]


def write_materialized(
    path: str | pathlib.Path,
    pairs: Iterator[Pair],
    store: ItemStore,
    identity: Mapping[str, Any],
    examples_per_shard: int,
) -> None:
    """Writes examples, shard by shard.

    An interrupted run continues after its last complete shard, and writes the same bytes.

    Args:
        path: the folder.
        pairs: `identity["examples"]` pairs in the order in which training reads them.
        store: their items.
        identity: the settings and inputs that determine the examples, as JSON values.
        examples_per_shard: examples per shard.

    Raises:
        SailError: the folder holds examples with another identity, or other files.
    """
    path = pathlib.Path(path)
    fetch(path)
    whole = {**_FORMAT, **identity, "examples_per_shard": examples_per_shard}
    if (path / _IDENTITY).is_file():
        _check_identity(path, whole, "Write into another folder, or remove this one.")
    elif path.exists() and not (path.is_dir() and {entry.name for entry in path.iterdir()} <= _OF_KILLED):
        raise SailError(f"{path} is not empty and holds no materialized records. Write into another folder.")
    path.mkdir(parents=True, exist_ok=True)
    commit_json(path / _IDENTITY, whole)
    total = identity["examples"]
    with _progress() as progress:
        task = progress.add_task("examples", total=total)
        for shard, begin in enumerate(range(0, total, examples_per_shard)):
            length = min(examples_per_shard, total - begin)
            members = [next(pairs) for _ in range(length)]
            if not _shard_path(path, shard).exists():
                _write_shard(_shard_path(path, shard), members, store, lambda: progress.advance(task))
            progress.update(task, completed=begin + length)


def _write_shard(path: pathlib.Path, pairs: list[Pair], store: ItemStore, on_example: Callable[[], None]) -> None:
    with partial_file(path) as partial:
        writer = ArrayRecordWriter(str(partial), _WRITER_OPTIONS)
        try:
            for pair in pairs:
                writer.write(_encode(pair, store))
                on_example()
        finally:
            writer.close()


def _encode(pair: Pair, store: ItemStore) -> bytes:
    items = {}
    for item_id in [pair.target_id] if pair.query_id is None else [pair.query_id, pair.target_id]:
        try:
            items[item_id] = encode_item(store.get(item_id))
        except BadRecordError:
            continue  # training reads this item from the store, and reports the store's error
    return msgpack.packb([*pair, items])


def _decode(data: bytes) -> Example:
    *pair, items = msgpack.unpackb(data)
    return Example(Pair(*pair), {item_id: decode_item(item) for item_id, item in items.items()})


class MaterializedSet:
    """The examples that `write_materialized` wrote, opened for reading.

    The object may be pickled, and used by several threads.

    Args:
        path: the folder.
        identity: the expected identity, without the numbers of epochs and examples.

    Attributes:
        epochs: how often the table was written, each time in another order.
        examples: the number of examples.

    Raises:
        SailError: the folder is missing, unfinished, or holds other examples.
    """

    def __init__(self, path: str | pathlib.Path, identity: Mapping[str, Any]):
        self.path, self._expected = pathlib.Path(path), dict(identity)
        fetch(self.path)
        if not (self.path / _IDENTITY).is_file():
            raise SailError(f"There are no materialized records in {self.path}. Write them with `materialize`.")
        remedy = "Write them again with `materialize`, or leave config.data.datasets.*.materialized empty."
        found = _check_identity(self.path, _FORMAT | self._expected, remedy)
        self.epochs, self.examples, self._per_shard = (found[k] for k in ("epochs", "examples", "examples_per_shard"))
        for shard in range(-(-self.examples // self._per_shard)):
            if not _shard_path(self.path, shard).exists():
                raise SailError(
                    f"{_shard_path(self.path, shard)} is missing. Run the same `materialize` again: it continues."
                )
        self._reader = functools.lru_cache(2)(self._open)
        self._block = functools.lru_cache(_CACHED_BLOCKS)(self._read_block)

    def __reduce__(self):
        return MaterializedSet, (self.path, self._expected)

    def __getitem__(self, example: int) -> Example:
        """The example with a number, counted over epochs.

        Raises:
            SailError: the number is beyond the epochs that were written, or the shard is damaged.
        """
        if not 0 <= example < self.examples:
            raise SailError(
                f"Example {example:,} is beyond the {self.epochs} epochs ({self.examples:,}) in {self.path}."
            )
        shard, record = divmod(example, self._per_shard)
        return _decode(self._block(shard, record // _BLOCK)[record % _BLOCK])

    def _read_block(self, shard: int, block: int) -> list[bytes]:
        stop = min(self._per_shard, self.examples - shard * self._per_shard, (block + 1) * _BLOCK)
        try:
            return self._reader(shard).read(block * _BLOCK, stop)
        except (RuntimeError, ValueError) as error:
            raise SailError(
                f"{_shard_path(self.path, shard)} is damaged ({error}). Remove it and run `materialize` again."
            ) from error

    def _open(self, shard: int) -> ArrayRecordReader:
        return ArrayRecordReader(
            str(_shard_path(self.path, shard)), options="readahead_buffer_size:0", file_reader_buffer_size=1 << 20
        )


def _check_identity(path: pathlib.Path, wanted: Mapping[str, Any], remedy: str) -> dict[str, Any]:
    """Checks the identity of a folder against the wanted values, and returns it."""
    try:
        found = json.loads((path / _IDENTITY).read_text())
    except ValueError as error:
        raise SailError(
            f"{path / _IDENTITY} cannot be read ({error}). Remove the folder and run `materialize` again."
        ) from error
    differing = [f"{key} {found.get(key)!r}, not {value!r}" for key, value in wanted.items() if found.get(key) != value]
    if differing:
        raise SailError(f"{path} holds other materialized records: {'; '.join(differing)}. {remedy}")
    return found


def _shard_path(path: pathlib.Path, shard: int) -> pathlib.Path:
    return path / f"records-{shard:05d}.array_record"


def _progress() -> Progress:
    columns = [NameColumn(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    return Progress(*columns, refresh_per_second=2)
