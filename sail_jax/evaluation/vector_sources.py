"""Gets the vectors of a task's queries and corpus, from a model or from folders of embeddings.

Axes: n entries of a side (items or texts), N items of the corpus, D width.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from sail_jax.buckets import fetch
from sail_jax.data.features import View
from sail_jax.data.store import ItemStore
from sail_jax.embedding.embed_pass import embed_pass
from sail_jax.embedding.embedder import Embedder
from sail_jax.errors import SailError
from sail_jax.evaluation.retrieval import RetrievalTask, rows_in
from sail_jax.evaluation.sequence_tasks import mean_pool
from sail_jax.patterns import Pattern
from sail_jax.sharding.process_group import ALONE, Processes
from sail_jax.terminal import Terminal
from sail_jax.vectors.embedding_set import EmbeddingSet

_COPIED = 16_384  # rows copied at a time

# One side of a task: positions in the item store, or texts.
Entries = Sequence[int | str] | np.ndarray


class VectorSource(Protocol):
    """Provides the vectors of a task.

    Attributes:
        name: name of the model in the results.
        width: D.
        processes: the processes that measure these vectors together.
        step: the step of the checkpoint that they are of, if they are of one.
    """

    name: str
    width: int
    step: int | None
    processes: Processes

    def views(self, task: RetrievalTask, wanted: Sequence[Pattern]) -> list[Pattern]:
        """Returns the views of a task for which there are vectors, its own view first."""

    def vectors(
        self, task: RetrievalTask, views: Sequence[Pattern]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Returns {view: vectors [n, D]} of the query side and of the corpus.

        Vectors of entries that have no modality of the view are zeros.
        """

    def pool(self, vectors: np.ndarray, sequences: Sequence[np.ndarray], width: int) -> np.ndarray:
        """Returns the vectors of sequences, [Q, width], given the rows of `vectors` [n, D] of their items."""


@dataclasses.dataclass(frozen=True)
class _Embedded:
    """Vectors of items at ascending positions, shown with some fields and instruction, under some views."""

    shown: tuple
    positions: np.ndarray
    vectors: dict[str, np.ndarray]

    def rows_of(self, entries: Entries, shown: tuple, views: Sequence[str]) -> np.ndarray | None:
        """Returns the rows of some entries, or None unless all of them are embedded under all of the views."""
        if shown != self.shown or not set(views) <= set(self.vectors):
            return None
        rows = rows_in(self.positions, entries)
        return rows if np.all(rows >= 0) else None


class ModelVectors:
    """Computes vectors by a model; items that several tasks show in the same way are embedded once.

    Args:
        name: name of the model in the results.
        embedder: the model, perhaps of several processes; all of them ask for the same vectors.
        store: the item store.
        scratch: an empty folder for the vectors, which are memory-mapped; all processes of the embedder share it.
    """

    def __init__(self, name: str, embedder: Embedder, store: ItemStore, scratch: Path) -> None:
        self.name, self.width, self.processes = name, embedder.width, embedder.processes
        self.step = embedder.step
        self._embedder, self._store = embedder, store
        self._paths = (scratch / f"{number}.npy" for number in itertools.count())
        self._cache: list[_Embedded] = []

    def views(self, task: RetrievalTask, wanted: Sequence[Pattern]) -> list[Pattern]:
        """Returns all views: a model can embed items under any view."""
        return list(wanted)

    def vectors(
        self, task: RetrievalTask, views: Sequence[Pattern]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Embeds both sides, as `VectorSource.vectors`; the towers run once over each item, for all views.

        Raises:
            SailError: too many items cannot be loaded.
        """
        queries, targets = (tuple(dict.fromkeys(side)) for side in zip(*views, strict=True))
        corpus = self._side(task, task.corpus, task.target_view, targets, "corpus")
        return self._side(task, task.queries, task.query_view, queries, "queries"), corpus

    def pool(self, vectors: np.ndarray, sequences: Sequence[np.ndarray], width: int) -> np.ndarray:
        """Returns the mean of the cut vectors, or the cut output of the model's sequence encoder."""
        if self._embedder.config.model.sequence.pooling == "mean":
            return mean_pool(vectors[:, :width], sequences)
        return self._embedder.pool(vectors, sequences)[:, :width]

    def _side(self, task: RetrievalTask, entries: Entries, view: View, views: tuple[str, ...], what: str) -> dict:
        shown = view.fields, view.instruction
        for known in self._cache:
            rows = known.rows_of(entries, shown, views)
            if rows is not None:
                return {name: self._copied_rows(known.vectors[name], rows) for name in views}
        if isinstance(entries, list):  # queries, or texts
            return self._embed(entries, view, views, f"{task.name} {what}")
        known = self._cached(shown, entries)
        missing = tuple(name for name in views if name not in known.vectors)
        known.vectors.update(self._embed(entries, view, missing, f"{task.name} {what}"))
        return {name: known.vectors[name] for name in views}

    def _cached(self, shown: tuple, positions: np.ndarray) -> _Embedded:
        for known in self._cache:
            if known.shown == shown and np.array_equal(known.positions, positions):
                return known
        self._cache.append(_Embedded(shown, positions, {}))
        return self._cache[-1]

    def _copied_rows(self, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
        if len(rows) == len(vectors) and np.array_equal(rows, np.arange(len(rows))):
            return vectors
        path = next(self._paths)

        def copy() -> None:
            shape = (len(rows), vectors.shape[1])
            taken = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            for start in range(0, len(rows), _COPIED):
                taken[start : start + _COPIED] = vectors[rows[start : start + _COPIED]]
            taken.flush()

        self.processes.on_first(copy)
        return np.load(path, mmap_mode="r")

    def _embed(self, entries: Entries, view: View, views: tuple[str, ...], what: str) -> dict[str, np.ndarray]:
        loaders = (functools.partial(self._store.entry, entry) for entry in entries)
        what = f"{self.name}: {what}"
        return embed_pass(self._embedder, loaders, len(entries), view, views, next(self._paths), what=what)


class StoredVectors:
    """Reads vectors from folders that `embed` wrote.

    They are FOLDER/TASK/queries and FOLDER/TASK/corpus; for a side without its own folder, FOLDER. Items are looked up
    by their ids, free texts and labels by the text itself. Entries without a vector are left out and counted.

    Args:
        folder: the folder.
        tasks: the tasks, all of which need a folder.
        store: the item store.
        scratch: a folder for the vectors, which are memory-mapped.

    Raises:
        SailError: a folder is missing or unfinished, or folders differ in model or width.
    """

    def __init__(self, folder: Path, tasks: Sequence[RetrievalTask], store: ItemStore, scratch: Path) -> None:
        self.name, self.processes, self.step = "embeddings", ALONE, None
        self._store, self._scratch = store, scratch
        self._sets = {task.name: (_open(folder, task, "queries"), _open(folder, task, "corpus")) for task in tasks}
        sets = [opened for pair in self._sets.values() for opened in pair]
        self.width = sets[0].info.dims
        for other in sets[1:]:
            other.require_model(sets[0].info.fingerprint, what=str(sets[0].path))
            if other.info.dims != self.width:
                raise SailError(
                    f"{other.path} has vectors of {other.info.dims} dimensions, {sets[0].path} of {self.width}; embed "
                    "them with one --dims."
                )

    def views(self, task: RetrievalTask, wanted: Sequence[Pattern]) -> list[Pattern]:
        """Returns the stored view, which replaces the task's own."""
        return [Pattern(*(opened.info.modalities for opened in self._sets[task.name]))]

    def vectors(
        self, task: RetrievalTask, views: Sequence[Pattern]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Looks up the vectors of both sides, as `VectorSource.vectors`.

        Raises:
            SailError: a side has no vector at all.
        """
        sides = zip(self._sets[task.name], (task.queries, task.corpus), ("queries", "corpus"), views[0], strict=True)
        queries, corpus = (
            {view: self._lookup(opened, entries, f"config.eval.tasks.{task.name}, {what}")}
            for opened, entries, what, view in sides
        )
        return queries, corpus

    def pool(self, vectors: np.ndarray, sequences: Sequence[np.ndarray], width: int) -> np.ndarray:
        """Returns the mean of the cut vectors of each sequence."""
        return mean_pool(vectors[:, :width], sequences)

    def _lookup(self, opened: EmbeddingSet, entries: Entries, what: str) -> np.ndarray:
        """Looks up the vectors of entries, [n, D]; of rows with the same id, the last one counts."""
        out = _scratch_array(self._scratch, (len(entries), self.width))
        texts = {entry: place for place, entry in enumerate(entries) if isinstance(entry, str)}
        order = np.argsort(_item_positions(entries), kind="stable")
        ascending = _item_positions(entries)[order]
        found = np.zeros(len(entries), bool)
        for ids, z in opened.batches(finite=True):
            rows = rows_in(ascending, self._store.positions(ids).tolist()) if len(texts) < len(entries) else None
            places = np.where(rows >= 0, order[rows], -1) if rows is not None else np.full(len(ids), -1)
            if texts:
                places = np.array([texts.get(text, place) for text, place in zip(ids, places, strict=True)])
            here = places >= 0
            out[places[here]] = z[here]
            found[places[here]] = True
        _report_missing(found, entries, what, opened)
        return out


def _item_positions(entries: Entries) -> np.ndarray:
    """Returns the positions of entries, [n] int64; those of texts are distinct negative numbers."""
    if isinstance(entries, np.ndarray):
        return entries
    return np.array([-2 - i if isinstance(entry, str) else entry for i, entry in enumerate(entries)], np.int64)


def _report_missing(found: np.ndarray, entries: Entries, what: str, opened: EmbeddingSet) -> None:
    missing = np.flatnonzero(~found)
    if not len(missing):
        return
    example = entries[missing[0]]
    named = f"the text {example!r}" if isinstance(example, str) else f"the item at position {example} of the store"
    if len(missing) == len(entries):
        raise SailError(
            f"{opened.path} has no vector for any of the {len(entries)} of {what} (such as {named}); ids are item ids, "
            "and the id of a free text is the text itself. Embed them, or name another folder."
        )
    Terminal(stderr=True, highlight=False).print(
        f"{opened.path} has no vector for {len(missing)} of {len(entries)} of {what} (such as {named}); they are left "
        "out."
    )


def _open(folder: Path, task: RetrievalTask, side: str) -> EmbeddingSet:
    own = folder / task.name / side
    fetch(own)
    if own.is_dir():
        return EmbeddingSet(own)
    entries = task.queries if side == "queries" else task.corpus
    if any(isinstance(entry, str) for entry in entries):
        raise SailError(
            f"config.eval.tasks.{task.name} has free texts on its {side} side, and there is no {own}: embed them "
            "there, with the text as the id."
        )
    return EmbeddingSet(folder)


def _scratch_array(scratch: Path, shape: tuple[int, int]) -> np.ndarray:
    """Creates a memory-mapped float32 array of zeros."""
    path = scratch / f"{len(list(scratch.iterdir()))}.npy"
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
