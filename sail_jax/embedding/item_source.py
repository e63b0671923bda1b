"""Sources of bulk embedding: an item store, a table of items, or a folder of media and text files."""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sail_jax.buckets import fetch
from sail_jax.config import Config
from sail_jax.config.data import IngestConfig
from sail_jax.config.schema import to_dict
from sail_jax.data.ingest.cells import id_cell
from sail_jax.data.ingest.records import RecordReader
from sail_jax.data.ingest.sources import TABLE_SUFFIXES, RowSource, open_table
from sail_jax.data.item_dicts import to_item
from sail_jax.data.media.folders import SUFFIXES, kind_of, walk
from sail_jax.data.pipeline import open_store
from sail_jax.data.store import FOLDER, ItemStore, is_shard
from sail_jax.errors import BadRecordError, SailError, is_of_the_machine
from sail_jax.files import PassedOver
from sail_jax.items import Item, item_key

# The rest of a text file is not read; no prompt has room for it.
_MAX_CHARACTERS = 1 << 20


class Entry(NamedTuple):
    """An item that is loaded later.

    Attributes:
        item_id: its id; empty if it has none, which `load` reports.
        load: loads it, in any thread; raises BadRecordError if it cannot be used.
    """

    item_id: str
    load: Callable[[], Item]


@dataclasses.dataclass(frozen=True)
class ItemSource:
    """Items in a fixed order.

    Attributes:
        name: the folder or file, for messages.
        rows: number of items, bad ones included.
        identity: setting -> value, for everything that the items depend on; another identity is another source.
        entries: entries(start) yields the items from index `start` on.
        passed_over: what lies beside the items in their folder and is no item; empty for nothing.
        assumed: what is taken to separate the cells of a table; empty if it has no separators.
    """

    name: str
    rows: int
    identity: dict[str, object]
    entries: Callable[[int], Iterator[Entry]]
    passed_over: str = ""
    assumed: str = ""


def open_source(path: Path | None, config: Config) -> ItemSource:
    """Opens the items that a path holds.

    Args:
        path: None for the item store of the config's data folder; else
            - an item store, or the folder that `ingest` wrote;
            - a table of items (CSV, JSONL, Parquet) with the columns of `config.ingest.source`, media files relative to
              its folder; a folder of only such tables; or an export folder that holds `config.ingest.source.path`;
            - a folder of files, each of them an item whose id is its path within the folder.
        config: the experiment.

    Raises:
        SailError: nothing there can be read, a column is missing, or the folder is ambiguous.
    """
    if path is None:
        return _store_source(open_store(config))
    fetch(path, leave_out=is_shard)
    if path.is_file():
        return _table_source(path.parent, path.name, config.ingest)
    if not path.is_dir():
        raise SailError(f"There is no {path}: name a --source that is an item store, a table, or a folder of files.")
    for folder in (path, path / FOLDER):
        if (folder / "store.json").is_file():
            return _store_source(ItemStore.open(folder))
    named = config.ingest.source.path
    if named and (path / named).exists():
        return _table_source(path, named, config.ingest)
    tables = sorted(p.name for p in path.iterdir() if p.suffix.lower() in TABLE_SUFFIXES)
    if not tables:
        return _folder_source(path, config.ingest)
    if next(_files(path), None) is not None:
        raise SailError(
            f"{path} holds media or texts next to the tables {', '.join(tables[:5])}: name the table itself."
        )
    return _table_source(path.parent, path.name, config.ingest)


# ----------------------------------------------------------------------------------------------------------- item store


def _store_source(store: ItemStore) -> ItemSource:
    def entries(start: int) -> Iterator[Entry]:
        ids = enumerate(store.item_ids())
        for position, item_id in itertools.islice(ids, start, None):
            yield Entry(item_id, functools.partial(store.__getitem__, position))

    return ItemSource(str(store.path), len(store), {"source": f"item store {_identity(store)}"}, entries)


def _identity(store: ItemStore) -> str:
    if store.contents:
        return store.contents
    files = sorted(path for path in store.path.iterdir() if path.is_file())
    return _digest(f"{path.name} {path.stat().st_size}" for path in files)


# ---------------------------------------------------------------------------------------------------------------- table


def _table_source(folder: Path, name: str, config: IngestConfig) -> ItemSource:
    # Columns that no model is shown may be missing.
    columns = dataclasses.replace(config.source, labels="", id_embeddings={})
    config = dataclasses.replace(config, source=columns)
    table = open_table(folder, name, "--source", config.source.header)
    reader = RecordReader(config, folder, check=False)  # the model's extractor decodes what is shown
    table = table.require(reader.columns())
    rows, repeated = _repeated(functools.partial(_row_ids, table, columns.id))

    def entries(start: int) -> Iterator[Entry]:
        for number, row in enumerate(table.read(start), start):
            item_id = _row_id(row.cells.get(columns.id))
            load = (
                functools.partial(_refuse_repeated, columns.id)
                if number in repeated
                else functools.partial(reader, row)
            )
            yield Entry(item_id, load)

    settings = {key: getattr(config, key) for key in ("max_pixels", "max_audio_seconds", "frames_per_video")}
    identity = {f"config.ingest.{key}": value for key, value in settings.items()}
    identity |= {f"config.ingest.source.{key}": value for key, value in to_dict(columns).items() if key != "path"}
    identity |= {"config.ingest.outside_paths": True} if config.outside_paths else {}
    identity = {"source": f"table {table.fingerprint}"} | identity
    return ItemSource(str(folder / name), rows, identity, entries, table.passed_over, table.assumed)


def _repeated(read_ids: Callable[[], Iterator[str]]) -> tuple[int, set[int]]:
    """Returns the number of rows, and the rows that repeat an earlier id; 8 bytes of memory per id."""
    keys = np.fromiter((item_key(item_id) for item_id in read_ids()), np.uint64)
    ordered = np.sort(keys)
    shared = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    seen: set[str] = set()
    repeated: set[int] = set()
    if shared:
        for number, (item_id, key) in enumerate(zip(read_ids(), keys.tolist(), strict=True)):
            if item_id and key in shared:
                if item_id in seen:
                    repeated.add(number)
                seen.add(item_id)
    return len(keys), repeated


def _row_ids(table: RowSource, column: str) -> Iterator[str]:
    """Yields the ids of all rows; other columns of Parquet files, which may hold media, are not read."""
    yield from (_row_id(row.cells.get(column)) for row in table.read(0, wanted=frozenset([column])))


def _refuse_repeated(column: str) -> Item:
    raise BadRecordError("an earlier row has the same id", remedy="Give each item an id of its own", field=column)


def _row_id(cell: object) -> str:
    try:
        return id_cell(cell) or ""
    except BadRecordError:  # the reader reports it
        return ""


# ------------------------------------------------------------------------------------------------------ folder of files


def _folder_source(folder: Path, config: IngestConfig) -> ItemSource:
    def entries(start: int) -> Iterator[Entry]:
        for name in itertools.islice(_files(folder), start, None):
            # File names are bytes; names that are not valid UTF-8 cannot be ids.
            item_id = os.fsencode(name).decode("utf-8", "backslashreplace")
            yield Entry(item_id, functools.partial(_load_file, folder, name, item_id, config))

    digest, rows, others = hashlib.blake2b(digest_size=16), 0, PassedOver()
    for name in walk(folder):
        if kind_of(name):
            digest.update(json.dumps([name, _size(folder / name)]).encode())
            rows += 1
        else:
            others.add(name)
    if not rows:
        kinds = "; ".join(f"{kind} {' '.join(suffixes)}" for kind, suffixes in SUFFIXES.items())
        raise SailError(
            f"{folder} holds no item store, no table and no file of a known kind ({kinds}). {others}".strip()
        )
    settings = {key: getattr(config, key) for key in ("max_pixels", "max_audio_seconds", "frames_per_video")}
    identity = {f"config.ingest.{key}": value for key, value in settings.items()}
    return ItemSource(str(folder), rows, {"source": f"folder {digest.hexdigest()}"} | identity, entries, str(others))


def _files(folder: Path) -> Iterator[str]:
    """Yields the names of files of known kinds in a folder, in a fixed order."""
    return filter(kind_of, walk(folder))


def _size(path: Path) -> int:
    """Returns the bytes of a file, or -1 for a broken link, which `_load_file` reports."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _load_file(folder: Path, name: str, item_id: str, config: IngestConfig) -> Item:
    path = folder / name
    kind = kind_of(name)
    try:
        if item_id != name:
            raise BadRecordError("the file's name is not valid UTF-8", remedy="Rename it")
        return to_item({"id": name, kind: _text(path) if kind == "text" else path}, config)
    except BadRecordError as error:
        raise error.at(source=str(folder), record=item_id) from error


def _text(path: Path) -> str:
    if not path.is_file():  # opening a pipe would block for ever
        raise BadRecordError("it is not a regular file", remedy="Make it a file, or remove it")
    try:
        with path.open(encoding="utf-8-sig") as stream:
            return stream.read(_MAX_CHARACTERS)
    except UnicodeDecodeError as error:
        raise BadRecordError(f"the file is not UTF-8 text ({error})", remedy="Save it as UTF-8") from error
    except OSError as error:
        if is_of_the_machine(error):
            raise
        raise BadRecordError(f"the file cannot be read ({error.strerror})", remedy="Make it readable") from error


def _digest(lines: Iterator[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()
