"""Joins a table of vectors to the items of a finished store; no item is read or written.

The table is streamed once: memory holds a batch of its rows, and the pages of the index and of `rows.u64` that are
touched. See `data/joined_vectors.py` for what is written.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sail_jax.buckets import fetch, place, require_local
from sail_jax.data import joined_vectors, store
from sail_jax.data.ingest.ingest import IngestReport
from sail_jax.data.ingest.journal import BAD_RECORDS, append_bad
from sail_jax.data.ingest.sources import RowSource
from sail_jax.data.ingest.vector_tables import open_vectors, repeated_id, usable_rows
from sail_jax.data.ingested import MARKER
from sail_jax.data.store import ItemStore
from sail_jax.errors import BadRecordError, SailError
from sail_jax.files import commit_json, partial_folder
from sail_jax.progress import Progress


@dataclasses.dataclass(frozen=True)
class JoinReport:
    """Counts of what was joined.

    Attributes:
        name: the ID embedding.
        width: D.
        items: items of the store.
        vectors: items that have a vector.
        unknown: rows whose id no item of the store has.
        bad: rows that cannot be used.
        folder: where the vectors lie.
    """

    name: str
    width: int
    items: int
    vectors: int
    unknown: int
    bad: int
    folder: pathlib.Path

    def __str__(self) -> str:
        return (
            f"{self.name}: vectors of {self.width} numbers for {self.vectors:,} of {self.items:,} items; "
            f"{self.items - self.vectors:,} items have none; {self.unknown:,} rows are of no item; "
            f"{self.bad:,} bad rows" + f", listed in {self.folder / BAD_RECORDS}" * bool(self.bad)
        )


def join_vectors(
    data: str | pathlib.Path, name: str, table: str | pathlib.Path, *, max_bad_records: int
) -> tuple[JoinReport, bool]:
    """Joins a table of vectors to the items of the folder that `ingest` wrote, as ID embedding `name`.

    Args:
        data: the folder.
        name: the name of the ID embedding, for `config.objective.teachers`.
        table: Parquet of `item_id` and `vector`, or a folder of its parts; the rows may be in any order.
        max_bad_records: with more bad rows, nothing is joined.

    Returns:
        The counts, and whether the table was joined now; False if it had been before.

    Raises:
        SailError: the store or the table is missing or damaged, the name is taken or no name of a folder, too many rows
            are bad, or no row is of an item.
    """
    require_local(table, "A table of vectors")
    table, data = pathlib.Path(table), place(data)
    _check_name(data, name)
    source = open_vectors(table.parent, table.name, "--table")
    items = ItemStore.open(data / store.FOLDER)
    folder = items.path / joined_vectors.FOLDER / name
    digest = hashlib.blake2b(source.fingerprint.encode(), digest_size=16).hexdigest()
    if folder.exists():
        facts = joined_vectors.read_facts(folder)
        if facts["digest"] != digest:
            raise SailError(
                f"{folder} holds vectors of another table, {facts['table']}. Choose another --name, or remove the "
                "folder to replace them; runs that were trained with them cannot be resumed then."
            )
        return _report(name, facts, folder), False
    with partial_folder(folder) as partial:
        facts = _Join(items, source, partial, max_bad_records).write()
        facts |= {"table": source.name, "digest": digest}
        commit_json(partial / joined_vectors.FACTS, joined_vectors.FORMAT | facts)
    return _report(name, facts, folder), True


def _report(name: str, facts: dict[str, Any], folder: pathlib.Path) -> JoinReport:
    counts = {key: facts[key] for key in ("width", "items", "vectors", "unknown", "bad")}
    return JoinReport(name, folder=folder, **counts)


def describe_data(data: str | pathlib.Path) -> list[str]:
    """Returns lines on what a data folder holds: items, tables, and ID embeddings with their counts.

    Args:
        data: the folder that `ingest` wrote.

    Raises:
        SailError: the folder is missing, unfinished or damaged.
    """
    data = place(data)
    report, _ = _ingested(data)
    items = ItemStore.open(data / store.FOLDER)
    joined = [str(_report(name, of.facts, of.folder)) for name, of in items.joined.items()]
    return [str(report), *(f"joined ID embedding {line}" for line in joined)]


def _ingested(data: pathlib.Path) -> tuple[IngestReport, set[str]]:
    """What `ingest` says of a folder, and the ID embeddings that it gave to the items."""
    fetch(data / MARKER)
    if not (data / MARKER).is_file():
        raise SailError(f"{data} holds no {MARKER}: name the folder that `ingest` wrote, and has finished.")
    try:
        values = json.loads((data / MARKER).read_text(encoding="utf-8"))
        settings = values["identity"]
        names = {*settings["config.ingest.vectors"], *settings["config.ingest.source"]["id_embeddings"]}
        return IngestReport(**values["report"]), names
    except (ValueError, KeyError, TypeError) as error:
        raise SailError(f"{data / MARKER} is damaged ({type(error).__name__}: {error}). Ingest again.") from error


def _check_name(data: pathlib.Path, name: str) -> None:
    """Raises SailError if a name is no name of a folder, or one that the items have had since they were ingested."""
    if not name.replace("-", "_").isidentifier():
        raise SailError(f"--name {name!r} names a folder; use letters, digits, '-' and '_'.")
    if name in _ingested(data)[1]:
        raise SailError(f"The items of {data} have {name!r} since they were ingested. Choose another --name.")


class _Join:
    """Streams a table into a folder; counts what becomes of its rows."""

    def __init__(self, items: ItemStore, source: RowSource, folder: pathlib.Path, limit: int) -> None:
        self._items, self._source, self._folder, self._limit = items, source, folder, limit
        self._rows = np.memmap(joined_vectors.rows_path(folder), "<u8", mode="w+", shape=len(items))
        self._width = self._vectors = self._unknown = self._bad = 0
        self._stranger = ""

    def write(self) -> dict[str, Any]:
        """Writes the vectors and the rows; returns what joined.json says of them."""
        with joined_vectors.vectors_path(self._folder).open("wb") as out, _progress(self._source.rows) as advance:
            for ids, vectors in usable_rows(self._source, self._on_bad, advance):
                out.write(self._known(ids, vectors).tobytes())
        self._rows.flush()
        if not self._vectors:
            example = f"; the first id is {self._stranger!r}" * bool(self._stranger)
            raise SailError(
                f"{self._source.name} has no vector of an item of {self._items.path}{example}, and that of the store "
                f"{next(self._items.item_ids())!r}. Write the ids of the items."
            )
        counts = {"items": len(self._items), "vectors": self._vectors, "width": self._width}
        return counts | {"unknown": self._unknown, "bad": self._bad}

    def _known(self, ids: list[str], vectors: np.ndarray) -> np.ndarray:
        """The vectors of a batch that are the first ones of items, whose rows it notes."""
        positions, self._width = self._items.positions(ids), vectors.shape[1]
        unknown = np.flatnonzero(positions < 0)
        if len(unknown):
            self._unknown, self._stranger = self._unknown + len(unknown), self._stranger or ids[unknown[0]]
        of_item = np.flatnonzero(positions >= 0)
        first = np.zeros(len(ids), bool)
        first[of_item[np.unique(positions[of_item], return_index=True)[1]]] = True
        first[of_item] &= self._rows[positions[of_item]] == 0
        for row in np.setdiff1d(of_item, np.flatnonzero(first)):
            self._on_bad(repeated_id(self._source, ids[row]))
        kept = np.flatnonzero(first)
        self._rows[positions[kept]] = self._vectors + 1 + np.arange(len(kept))
        self._vectors += len(kept)
        return vectors[kept]

    def _on_bad(self, error: BadRecordError) -> None:
        self._bad += 1
        if self._bad > self._limit:
            raise SailError(
                f"{self._bad:,} bad rows are more than --max-bad-records {self._limit}; the last: {error}. Mend the "
                "table, or raise the limit: bad rows are left out, and listed."
            )
        append_bad(self._folder, error)


@contextlib.contextmanager
def _progress(rows: int) -> Iterator[Callable[[int], None]]:
    with Progress(transient=True) as progress:
        task = progress.add_task("vectors", total=rows)
        yield lambda read: progress.advance(task, read)
