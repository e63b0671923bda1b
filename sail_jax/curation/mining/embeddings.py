"""Embeds one side of a data set, queries or targets, into a file that a killed run can reuse.

Several processes embed together and share the folder; the first one writes the files.

FOLDER/queries.npy    [Q, D] float32, rows in the order of the keys of the side
FOLDER/queries.json   written last: the model, settings and items of the embeddings
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sail_jax.buckets import remove
from sail_jax.config.schema import to_dict
from sail_jax.curation.mining.known_pairs import row_of
from sail_jax.data.features import View
from sail_jax.data.hard_negative_table import query_key
from sail_jax.data.parquet_files import missing_column, parquet_parts, readable
from sail_jax.data.prompts import shown_fields
from sail_jax.data.store import ItemStore
from sail_jax.embedding.embed_pass import embed_pass
from sail_jax.embedding.embedder import Embedder
from sail_jax.errors import BadRecordError, SailError
from sail_jax.files import commit_bytes
from sail_jax.items import Item, item_key, text_item
from sail_jax.progress import track
from sail_jax.runs.fingerprint import fingerprint
from sail_jax.sharding.process_group import Processes
from sail_jax.vectors.embedding_set import EmbeddingSet, is_complete

_BATCH = 4096


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a data set: its queries or its targets.

    Attributes:
        name: "queries" or "targets".
        keys: [n] uint64, ascending.
        items: n rows, `query_id` or `query_text`, the other one null.
        view: how they are shown to the model.
    """

    name: str
    keys: np.ndarray
    items: pa.Table
    view: View

    @property
    def only_text(self) -> bool:
        """Returns whether only text is shown; then items of equal text have equal content."""
        return self.view.modalities == "T"

    def content_keys(self, store: ItemStore, processes: Processes, *, what: str) -> np.ndarray:
        """Returns keys, [n] uint64, that are equal for rows of equal content to training.

        If only text is shown, the key is a hash of the shown text (`ItemFeatures.text_key`), for which all items are
        read; for an item that shows no text or cannot be read, it is the key of the row. Else it is that of the first
        item with the same content (`ItemFeatures.item_key`), or that of the row where the store has no such items.

        Args:
            store: the item store.
            processes: the processes that read the items together, each a part of them.
            what: name of the data set, for the progress bar.
        """
        if not self.only_text:
            return self._item_keys(store) if len(store.same) else self.keys
        own = processes.rows(len(self.keys))
        keys, items = self.keys[own].copy(), self._rows(own.start, own.stop)
        bar = track(items, f"{what}: texts of {self.name}", total=len(keys), disable=not processes.first)
        for row, item in enumerate(bar):
            with contextlib.suppress(BadRecordError):  # reported when the item is embedded
                text = shown_fields(_load(item, store), self.view.fields)
                keys[row] = item_key(text) if text else keys[row]
        return processes.join(keys)

    def _item_keys(self, store: ItemStore) -> np.ndarray:
        """Returns the key of the first item with the content of each row; that of the row for a text."""
        rows = self._rows(0, len(self.items))
        ids = (item_key(row["query_id"] or "") for row in rows)
        keys = store.same.of_keys(np.fromiter(ids, np.uint64, len(self.keys)))
        return np.where(self.items["query_id"].is_null().to_numpy(), self.keys, keys)

    def label(self, row: int) -> str:
        """Returns the id or the text of a row, for messages."""
        item = self.items.slice(row, 1).to_pylist()[0]
        return repr(item["query_text"] if item["query_id"] is None else item["query_id"])

    def select(self, wanted: np.ndarray) -> "Side":
        """Returns the side with only the rows of a mask, [n] bool."""
        if wanted.all():
            return self
        return dataclasses.replace(self, keys=self.keys[wanted], items=self.items.filter(pa.array(wanted)))

    def loaders(self, store: ItemStore) -> Iterator[Callable[[], Item]]:
        """Yields functions that load an item each."""
        return (functools.partial(_load, item, store) for item in self._rows(0, len(self.items)))

    def _rows(self, start: int, stop: int) -> Iterator[dict[str, str | None]]:
        for begin in range(start, stop, _BATCH):
            yield from self.items.slice(begin, min(_BATCH, stop - begin)).to_pylist()


def _load(item: dict[str, str | None], store: ItemStore) -> Item:
    return text_item(item["query_text"]) if item["query_id"] is None else store.get(item["query_id"])


def embed_sides(
    queries: Side, targets: Side, embedder: Embedder, store: ItemStore, folder: Path, *, model: str | None, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """Embeds both sides; items that are shown in the same way on both are embedded once.

    Args:
        queries: the queries.
        targets: the targets.
        embedder: the model.
        store: the item store.
        folder: folder of the files; existing embeddings of the same model, items and view are reused.
        model: name of the model, if it has one; its parameters are compared in any case.
        what: name of the data set, for the progress bar.

    Returns:
        [Q, D] and [N, D] float32, memory-mapped; rows of zeros for items that could not be embedded.

    Raises:
        SailError: too many items could not be loaded (see `embed_pass`).
    """
    found = embed_side(targets, embedder, store, folder, model=model, what=what)
    rows = row_of(targets.keys, queries.keys)
    if queries.view != targets.view or np.all(rows < 0):
        return embed_side(queries, embedder, store, folder, model=model, what=what), found
    missing, path = np.flatnonzero(rows < 0), folder / f"{queries.name}.copy.npy"
    others = (
        embed_side(queries.select(rows < 0), embedder, store, folder, model=model, what=what) if len(missing) else ()
    )

    def copy() -> None:
        shape = (len(rows), found.shape[1])
        copied = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            copied[start : start + _BATCH][part >= 0] = found[part[part >= 0]]
        for start in range(0, len(missing), _BATCH):
            copied[missing[start : start + _BATCH]] = others[start : start + _BATCH]
        copied.flush()

    embedder.processes.on_first(copy)
    return np.load(path, mmap_mode="r"), found


def embed_side(
    side: Side, embedder: Embedder, store: ItemStore, folder: Path, *, model: str | None, what: str
) -> np.ndarray:
    """Embeds a side, or reuses its embeddings; arguments and errors as for `embed_sides`.

    Returns:
        [n, D] float32, memory-mapped.
    """
    path, marker = folder / f"{side.name}.npy", folder / f"{side.name}.json"
    made_of, processes = _fingerprint(side, embedder, model), embedder.processes

    def is_made() -> bool:
        if path.is_file() and marker.is_file() and marker.read_text() == made_of:
            return True
        remove(marker)
        folder.mkdir(parents=True, exist_ok=True)
        return False

    if not processes.on_first(is_made):
        view, bar = side.view.modalities, f"{what}: {side.name}"
        embed_pass(embedder, side.loaders(store), len(side.keys), side.view, (view,), path, what=bar)
        processes.on_first(lambda: commit_bytes(marker, made_of.encode()))
    return np.load(path, mmap_mode="r")[0]


def _fingerprint(side: Side, embedder: Embedder, model: str | None) -> str:
    """Returns everything that the embeddings depend on, as JSON."""
    ids = hashlib.blake2b(side.keys.tobytes(), digest_size=16).hexdigest()
    made_of = {
        "ids": ids,
        "view": dataclasses.asdict(side.view),
        "name": model,
        "parameters": fingerprint(embedder.params),
    }
    settings = {"model": to_dict(embedder.config.model), "prompt": to_dict(embedder.config.prompt)}
    return json.dumps(made_of | settings, sort_keys=True)


def read_side(side: Side, path: str | Path, folder: Path, processes: Processes) -> np.ndarray:
    """Reads the embeddings of a side from Parquet, or from a folder that `embed` wrote.

    Args:
        side: the side.
        path: the file, or a folder of such files, or a folder that `embed` wrote; `id` has item ids, or the texts of
            free-text queries, in any order; others are ignored.
        folder: folder to which the embeddings are written in the order of the side.
        processes: the processes that share the folder.

    Returns:
        [n, D] float32, memory-mapped; the first process has read and written them.

    Raises:
        SailError: the file or a column is missing, vectors differ in width, or a query or target has no vector.
    """
    processes.on_first(lambda: _copy_vectors(side, Path(path), folder))
    return np.load(folder / f"{side.name}.npy", mmap_mode="r")


def _copy_vectors(side: Side, path: Path, folder: Path) -> None:
    """Writes the vectors of a side in its order; errors as for `read_side`."""
    out = None
    remove(folder / f"{side.name}.json")
    found = np.zeros(len(side.keys), bool)
    for ids, vectors in _read_vectors(path):
        if out is None:
            folder.mkdir(parents=True, exist_ok=True)
            shape = (len(side.keys), vectors.shape[1])
            out = np.lib.format.open_memmap(folder / f"{side.name}.npy", mode="w+", dtype=np.float32, shape=shape)
        if vectors.shape[1] != out.shape[1]:
            raise SailError(f"{path} has vectors of {out.shape[1]} and of {vectors.shape[1]} numbers; embed again.")
        for as_query in (lambda name: query_key(name, None), lambda name: query_key(None, name)):
            rows = row_of(side.keys, np.array([as_query(name) for name in ids], np.uint64))
            out[rows[rows >= 0]] = vectors[rows >= 0]
            found[rows[rows >= 0]] = True
    if out is not None:
        out.flush()
    if not found.all():
        first = side.label(int(np.flatnonzero(~found)[0]))
        raise SailError(
            f"{path} has no vector for {np.sum(~found)} of the {len(found)} {side.name}, the first of them {first}; "
            "embed them too, or let the model embed them."
        )


def _read_vectors(path: Path) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yields batches (ids, [n, D] float32) of a file, a folder, or a folder that `embed` wrote."""
    if is_complete(path):
        yield from EmbeddingSet(path).batches(_BATCH, finite=True)
        return
    parts = parquet_parts(path)
    if not parts:
        raise SailError(f"There is no file of embeddings {path}, and no folder with such files.")
    for part in parts:
        with readable(part), pq.ParquetFile(part) as file:
            for name in ("id", "vector"):
                if name not in file.schema_arrow.names:
                    raise SailError(missing_column(str(part), name, file.schema_arrow.names))
            for batch in file.iter_batches(_BATCH, columns=["id", "vector"]):
                yield batch.column("id").to_pylist(), _vectors(batch.column("vector"), part)


def _vectors(column: pa.Array, path: Path) -> np.ndarray:
    if not (
        pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type)
    ):
        raise SailError(f"{path} has {column.type} in column 'vector'; it needs lists of numbers.")
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    values = column.flatten()
    if len(lengths) != 1 or column.null_count or values.null_count:
        raise SailError(f"{path} has vectors of {lengths} numbers in column 'vector'; they need one width and no gaps.")
    return values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(column), -1)
