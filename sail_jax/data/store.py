"""The item store: every item once, in ArrayRecord shards, read at random by position or by id.

    items/
      items-00000.array_record   the items of a shard, one msgpack record each
      items-00000.ids            for passes that need no media, in record order: their ids, one msgpack list, and hashes
                                 of their contents, 8 bytes each (a shard of an earlier version has none)
      index/                     the memory-mapped index of `store_index`
      vectors/NAME/              ID embeddings that were joined later (`joined_vectors`)
      store.json                 written last: the store is complete

A "record number" counts the records of all shards in order; a "position" counts items in the same order, without the
records whose id occurred before.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from sail_jax.buckets import fetch, fetch_once, names, place, put_folder, remove
from sail_jax.data import same_content, store_index
from sail_jax.data.joined_vectors import open_joined
from sail_jax.data.same_content import SameContent
from sail_jax.errors import BadRecordError, SailError
from sail_jax.files import commit, commit_bytes
from sail_jax.items import Item, content_key, item_key, text_item

# The store's folder within the folder that `ingest` writes.
FOLDER = "items"

_MARKER = "store.json"
_FORMAT = {"format": "sail_jax item store", "version": 1}
# Media are compressed already. With groups of one record, compression would cost more space than it saves on short
# texts.
_WRITER_OPTIONS = "group_size:1,uncompressed"
# No read-ahead and a small buffer for random access, as in array_record's own data source.
_READER_OPTIONS = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}


def encode_item(item: Item) -> bytes:
    """Encodes an item as one msgpack record; missing parts are left out."""
    fields = {
        "text": dict(item.text),
        "frames": list(item.frames),
        "audio": item.audio,
        "audio_embedding": None if item.audio_embedding is None else _vector_bytes(item.audio_embedding),
        "labels": list(item.labels),
        "id_embeddings": {name: _vector_bytes(vector) for name, vector in item.id_embeddings.items()},
    }
    return msgpack.packb({"id": item.item_id} | {name: value for name, value in fields.items() if value})


def decode_item(data: bytes) -> Item:
    """Decodes a record of `encode_item`; vectors are read-only [K] float32."""
    fields = msgpack.unpackb(data)
    vector = fields.get("audio_embedding")
    return Item(
        item_id=fields["id"],
        text=fields.get("text", {}),
        frames=tuple(fields.get("frames", ())),
        audio=fields.get("audio"),
        audio_embedding=None if vector is None else np.frombuffer(vector, "<f4"),
        labels=tuple(fields.get("labels", ())),
        id_embeddings={name: np.frombuffer(data, "<f4") for name, data in fields.get("id_embeddings", {}).items()},
    )


def _vector_bytes(vector: np.ndarray) -> bytes:
    return np.asarray(vector, "<f4").tobytes()


class ItemStore:
    """A complete item store, opened for reading.

    Its memory does not grow with the number of items, except for the pages of the index that lookups have touched, at
    most 16 bytes per item, which the system may reclaim. It may be pickled (a worker process reopens the files) and
    used by several threads.

    Args:
        path: the folder.
        max_open_shards: shards kept open; each takes a file handle and 8 bytes per record.

    Attributes:
        joined: ID embedding -> the vectors that were joined to the store, which its items have like others.
        contents: a digest of the ids and contents of all items; empty for a store of an earlier version.

    Raises:
        SailError: the folder is missing, unfinished, or not an item store of this version.
    """

    def __init__(self, path: str | pathlib.Path, *, max_open_shards: int = 512):
        self.path = pathlib.Path(path)
        self._max_open_shards = max_open_shards
        self.contents = _read_marker(self.path).get("contents", "")
        self._index = store_index.Index(self.path)
        self.joined = open_joined(self.path, len(self._index))
        self._reader = functools.lru_cache(max_open_shards)(functools.partial(_open_reader, self.path))

    @property
    def same(self) -> SameContent:
        """The items with the content of an earlier one, which count as one item among negatives."""
        return self._index.same

    def first_positions(self, positions: np.ndarray) -> np.ndarray:
        """The positions of the first items with the same content, [n] int64 -> [n] int64."""
        return self._index.first_positions(positions)

    @classmethod
    def open(cls, path: str | pathlib.Path) -> "ItemStore":
        """Opens the store in folder `path`."""
        path = place(path)
        fetch(path, leave_out=is_shard)
        return cls(path)

    def __reduce__(self):
        return functools.partial(ItemStore, max_open_shards=self._max_open_shards), (self.path,)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, position: int) -> Item:
        """The item at a position, 0 <= position < len(store)."""
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} is outside of {self.path} with its {len(self)} items")
        return self._read(self._index.record(position))

    def entry(self, entry: int | np.integer | str) -> Item:
        """Returns the item at a position, or a free text as an item."""
        return text_item(entry) if isinstance(entry, str) else self[int(entry)]

    def positions(self, ids: Sequence[str]) -> np.ndarray:
        """The positions of a batch of items, without reading records.

        Ids are distinguished by their 64-bit hash, and by the ids themselves if two ids of the store share a hash: an
        unknown id is taken for a known one with probability len(store) / 2^64.

        Args:
            ids: [n] item ids.

        Returns:
            [n] int64, -1 for an unknown id.
        """
        keys = np.fromiter((item_key(item_id) for item_id in ids), np.uint64, len(ids))
        positions, shared = self._index.lookup(keys)
        for i in np.flatnonzero(shared):
            positions[i] = self._search(ids[i], keys[i])[0]
        return positions

    def position(self, item_id: str) -> int | None:
        """The position of one item, verified by the id in its record; None for an unknown id."""
        position, item = self._search(item_id, np.uint64(item_key(item_id)))
        return None if item is None else position

    def get(self, item_id: str) -> Item:
        """Reads the item with an id.

        Raises:
            BadRecordError: there is no such item.
        """
        item = self._search(item_id, np.uint64(item_key(item_id)))[1]
        if item is None:
            raise BadRecordError(
                f"There is no item {item_id!r} in {self.path} with its {len(self)} items",
                remedy="Ingest it, or leave it out of the table",
            )
        return item

    def item_ids(self) -> Iterator[str]:
        """Yields all ids in the order of the positions, without reading media."""
        hidden = set(self._index.hidden.tolist())
        shards = range(len(self._index.starts) - 1)
        ids = itertools.chain.from_iterable(read_ids(self.path, shard) for shard in shards)
        return (item_id for record, item_id in enumerate(ids) if record not in hidden)

    def _search(self, item_id: str, key: np.uint64) -> tuple[int, Item | None]:
        for record in self._index.records_of(key):
            item = self._read(record)
            if item.item_id == item_id:
                return self._index.position(record), item
        return -1, None

    def _read(self, record: int) -> Item:
        shard, offset = self._index.place(record)
        try:
            item = decode_item(self._reader(shard).read([offset])[0])
        except (RuntimeError, ValueError, KeyError, msgpack.UnpackException) as error:
            raise BadRecordError(
                f"the record cannot be read ({error})",
                remedy="The file is damaged: copy it again or repeat the ingestion",
                source=str(_shard_path(self.path, shard)),
                record=str(offset),
            ) from error
        return self._with_joined(item, record) if self.joined else item

    def _with_joined(self, item: Item, record: int) -> Item:
        position = self._index.position(record)
        found = {name: of.get(position) for name, of in self.joined.items()}
        found = {name: vector for name, vector in found.items() if vector is not None}
        return dataclasses.replace(item, id_embeddings={**item.id_embeddings, **found})


def known_positions(ids: list[str], store: ItemStore, table: str) -> np.ndarray:
    """[n] int64 positions of items in a store.

    Args:
        ids: their ids.
        store: where they lie.
        table: what refers to them, for messages.

    Raises:
        SailError: an item is not in the store; the message names it and the table.
    """
    positions = store.positions(ids)
    unknown = np.flatnonzero(positions < 0)
    if len(unknown):
        raise SailError(
            f"{table} refers to the item {ids[unknown[0]]!r}, which {store.path} does not hold"
            f"{f', and to {len(unknown) - 1} more' if len(unknown) > 1 else ''}; ingest again."
        )
    return positions


class ItemStoreWriter:
    """Writes an item store, shard by shard; a file gets its final name when it is complete.

    Args:
        path: the folder, which may hold the finished shards of an interrupted writer.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    def finished(self, shard: int) -> bool:
        """Whether a shard is complete."""
        return _shard_path(self.path, shard).exists()

    def write_shard(self, shard: int, items: Iterable[Item]) -> int:
        """Writes a shard, replacing an existing one, and returns its number of items.

        Items are taken one at a time, so the shard need not fit in memory. The same items give the same bytes.
        """
        path = _shard_path(self.path, shard)
        partial = path.with_suffix(".partial")
        ids, contents = [], []
        writer = ArrayRecordWriter(str(partial), _WRITER_OPTIONS)
        try:
            for item in items:
                writer.write(encode_item(item))
                ids.append(item.item_id)
                contents.append(content_key(item))
        finally:
            writer.close()
        hashes = np.array(contents, "<u8").tobytes()
        commit_bytes(path.with_suffix(".ids"), msgpack.packb(ids) + msgpack.packb(hashes))
        commit(partial, path)
        return len(ids)

    def read(self, shard: int, record: int) -> Item:
        """Reads a record of a finished shard."""
        return decode_item(_open_reader(self.path, shard).read([record])[0])

    def finalize(
        self, shards: int, on_duplicate: Callable[[str, tuple[int, int], tuple[int, int]], None] | None = None
    ) -> None:
        """Builds the index and marks the store as complete.

        Of several records with one id the first is visible; the others are hidden.

        Args:
            shards: number of shards.
            on_duplicate: called as on_duplicate(item_id, first, repeated) for each hidden record, with (shard, record
                of the shard) of the two.

        Raises:
            SailError: a shard is missing, or there are no items.
        """
        present = names(self.path)
        missing = [shard for shard in range(shards) if _shard_path(self.path, shard).name not in present]
        if missing:
            raise SailError(f"{self.path} cannot be completed: shard {missing[0]} of {shards} is missing.")
        remove(self.path / _MARKER)
        items = store_index.build(
            self.path, shards, functools.partial(read_ids, self.path), item_key, on_duplicate or (lambda *_: None)
        )
        index = store_index.Index(self.path)
        digest = hashlib.blake2b(digest_size=8)
        keys = (_digested(_read_keys(self.path, shard), digest) for shard in range(shards))
        same_content.write_same(self.path / store_index.FOLDER, keys, int(index.starts[-1]), index.hidden)
        put_folder(self.path / store_index.FOLDER, self.path / store_index.FOLDER)
        marker = _FORMAT | {"items": items, "shards": shards, "contents": digest.hexdigest()}
        commit_bytes(self.path / _MARKER, json.dumps(marker).encode())


def _digested(keys: tuple[np.ndarray, np.ndarray], digest: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the hashes of the ids and contents of a shard, of which a digest takes note."""
    for hashes in keys:
        digest.update(hashes.astype("<u8").tobytes())
    return keys


def read_ids(path: pathlib.Path, shard: int) -> list[str]:
    """The ids of a shard in record order."""
    return next(_read_lists(path, shard))


def is_shard(name: str) -> bool:
    """Returns whether a file of a store is one of the many that are downloaded when they are read first."""
    return name.endswith((".array_record", ".ids"))


def _read_lists(path: pathlib.Path, shard: int) -> msgpack.Unpacker:
    """What is known of the records of a shard: a list of ids, and hashes of contents unless it is of an old version."""
    ids = _shard_path(path, shard).with_suffix(".ids")
    fetch_once(ids)
    data = ids.read_bytes()
    lists = msgpack.Unpacker(max_buffer_size=len(data))
    lists.feed(data)
    return lists


def _read_keys(path: pathlib.Path, shard: int) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of the ids and of the contents of a shard, [n] uint64 each; those of unknown contents are 0."""
    lists = _read_lists(path, shard)
    ids = np.fromiter(map(item_key, next(lists)), np.uint64)
    contents = next(lists, None)
    return ids, np.zeros_like(ids) if contents is None else np.frombuffer(contents, "<u8")


def _shard_path(path: pathlib.Path, shard: int) -> pathlib.Path:
    return path / f"items-{shard:05d}.array_record"


def _open_reader(path: pathlib.Path, shard: int) -> ArrayRecordReader:
    fetch_once(_shard_path(path, shard))
    return ArrayRecordReader(str(_shard_path(path, shard)), **_READER_OPTIONS)


def _read_marker(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_dir():
        raise SailError(f"There is no item store {path}. Run ingest, or set config.data.dir to the folder it wrote.")
    if not (path / _MARKER).is_file():
        if any(path.glob("items-*")):
            raise SailError(f"The item store {path} is unfinished. Run the same ingest again: it continues.")
        raise SailError(
            f"{path} is not an item store: it holds no {_MARKER}. Set config.data.dir to what ingest wrote."
        )
    try:
        marker = json.loads((path / _MARKER).read_text())
        found = {key: marker[key] for key in _FORMAT}
    except (ValueError, KeyError, TypeError):
        found = None
    if found != _FORMAT:
        raise SailError(f"{path / _MARKER} is not that of an item store of version {_FORMAT['version']}. Ingest again.")
    return marker
