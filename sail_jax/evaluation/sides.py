"""The vectors of the two sides of a task: computed by a model, or read from folders of embeddings.

Axes: n things of a side (items or texts), N items of the corpus, D width.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from rich.console import Console

from sail_jax.data.features import View
from sail_jax.data.store import ItemStore
from sail_jax.embedding.embed_pass import embed_pass
from sail_jax.embedding.embedder import Embedder
from sail_jax.errors import SailError
from sail_jax.evaluation.retrieval import RetrievalTask, rows_in
from sail_jax.evaluation.sequence_tasks import mean_pool
from sail_jax.patterns import Pattern
from sail_jax.vectors.embedding_set import EmbeddingSet

_COPIED = 16_384  # rows copied at a time

Things = Sequence[int | str] | np.ndarray


class Sides(Protocol):
    """Where the vectors of a task come from.

    Attributes:
        name: what the model is called in the results.
        width: D.
    """

    name: str
    width: int

    def views(self, task: RetrievalTask, wanted: Sequence[Pattern]) -> list[Pattern]:
        """Those views of a task, query and corpus, that there are vectors for; its own one first."""

    def vectors(
        self, task: RetrievalTask, views: Sequence[Pattern]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """View -> [n, D] of what is embedded on the query side, and of the corpus; zeros where there is nothing."""

    def pool(self, vectors: np.ndarray, sequences: Sequence[np.ndarray], width: int) -> np.ndarray:
        """[Q, width], the vectors of sequences of rows of `vectors` [n, D]."""


@dataclasses.dataclass(frozen=True)
class _Embedded:
    """Items that are embedded already: those at ascending positions, shown in one way, under some views."""

    shown: tuple
    positions: np.ndarray
    vectors: dict[str, np.ndarray]

    def rows_of(self, things: Things, shown: tuple, views: Sequence[str]) -> np.ndarray | None:
        """Where some things stand among them, or None where one does not, or not under all of the views."""
        if shown != self.shown or not set(views) <= set(self.vectors):
            return None
        rows = rows_in(self.positions, things)
        return rows if np.all(rows >= 0) else None


class ModelSides:
    """A model's vectors; items that several tasks show in the same way are embedded once.

    Args:
        name: what the model is called in the results.
        embedder: the model.
        store: where the items lie.
        scratch: a folder for the vectors, which are memory-mapped.
    """

    def __init__(self, name: str, embedder: Embedder, store: ItemStore, scratch: Path) -> None:
        self.name, self.width = name, embedder.width
        self._embedder, self._store, self._scratch = embedder, store, scratch
        self._known: list[_Embedded] = []

    def views(self, task: RetrievalTask, wanted: Sequence[Pattern]) -> list[Pattern]:
        """All of them: a model shows what it is asked to."""
        return list(wanted)

    def vectors(
        self, task: RetrievalTask, views: Sequence[Pattern]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """As `Sides.vectors`; the towers run once over each item, for all views.

        Raises:
            SailError: when too many items cannot be loaded.
        """
        queries, targets = (tuple(dict.fromkeys(side)) for side in zip(*views, strict=True))
        corpus = self._side(task, task.corpus, task.target_view, targets, "corpus")
        return self._side(task, task.queries, task.query_view, queries, "queries"), corpus

    def pool(self, vectors: np.ndarray, sequences: Sequence[np.ndarray], width: int) -> np.ndarray:
        """As `Sides.pool`: the mean of the cut vectors, or what the model's sequence encoder makes of the whole ones, cut."""
        if self._embedder.config.model.sequence.pooling == "mean":
            return mean_pool(vectors[:, :width], sequences)
        return self._embedder.pool(vectors, sequences)[:, :width]

    def _side(self, task: RetrievalTask, things: Things, view: View, views: tuple[str, ...], what: str) -> dict:
        shown = view.fields, view.instruction
        for known in self._known:
            rows = known.rows_of(things, shown, views)
            if rows is not None:
                return {name: self._taken(known.vectors[name], rows) for name in views}
        if what == "queries":
            return self._embed(task.query_items(self._store), len(things), view, views, f"{task.name} {what}")
        if isinstance(things, list):  # texts
            return self._embed(task.corpus_items(self._store), len(things), view, views, f"{task.name} {what}")
        known = self._entry(shown, things)
        missing = tuple(name for name in views if name not in known.vectors)
        known.vectors.update(
            self._embed(task.corpus_items(self._store), len(things), view, missing, f"{task.name} {what}")
        )
        return {name: known.vectors[name] for name in views}

    def _entry(self, shown: tuple, positions: np.ndarray) -> _Embedded:
        for known in self._known:
            if known.shown == shown and np.array_equal(known.positions, positions):
                return known
        self._known.append(_Embedded(shown, positions, {}))
        return self._known[-1]

    def _taken(self, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
        if len(rows) == len(vectors) and np.array_equal(rows, np.arange(len(rows))):
            return vectors
        taken = _scratch_array(self._scratch, (len(rows), vectors.shape[1]))
        for start in range(0, len(rows), _COPIED):
            taken[start : start + _COPIED] = vectors[rows[start : start + _COPIED]]
        return taken

    def _embed(
        self, items: Iterator, count: int, view: View, views: tuple[str, ...], what: str
    ) -> dict[str, np.ndarray]:
        path = _scratch_path(self._scratch)
        return embed_pass(self._embedder, items, count, view, views, path, what=f"{self.name}: {what}")


class StoredSides:
    """Vectors of folders that `embed` wrote: FOLDER/TASK/queries and FOLDER/TASK/corpus, and FOLDER where they are missing.

    Items are looked up by their ids, free texts and labels by the text itself. What has no vector takes no part, and is counted.

    Args:
        folder: the folder.
        tasks: the tasks, all of which must be there.
        store: where the items lie.
        scratch: a folder for the vectors, which are memory-mapped.

    Raises:
        SailError: a folder is missing or unfinished, or folders differ in model or width.
    """

    def __init__(self, folder: Path, tasks: Sequence[RetrievalTask], store: ItemStore, scratch: Path) -> None:
        self.name = "embeddings"
        self._store, self._scratch = store, scratch
        self._sets = {task.name: (_open(folder, task, "queries"), _open(folder, task, "corpus")) for task in tasks}
        sets = [opened for pair in self._sets.values() for opened in pair]
        self.width = sets[0].info.dims
        for other in sets[1:]:
            other.require_model(sets[0].info.fingerprint, what=str(sets[0].path))
            if other.info.dims != self.width:
                raise SailError(
                    f"{other.path} holds vectors of {other.info.dims} dimensions, {sets[0].path} of {self.width}; embed them "
                    "with one --dims."
                )

    def views(self, task: RetrievalTask, wanted: Sequence[Pattern]) -> list[Pattern]:
        """The one that is stored, in place of the task's own."""
        return [Pattern(*(opened.info.modalities for opened in self._sets[task.name]))]

    def vectors(
        self, task: RetrievalTask, views: Sequence[Pattern]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """As `Sides.vectors`.

        Raises:
            SailError: when a side has no vector at all.
        """
        sides = zip(self._sets[task.name], (task.queries, task.corpus), ("queries", "corpus"), views[0], strict=True)
        queries, corpus = (
            {view: self._lookup(opened, things, f"config.eval.tasks.{task.name}, {what}")}
            for opened, things, what, view in sides
        )
        return queries, corpus

    def pool(self, vectors: np.ndarray, sequences: Sequence[np.ndarray], width: int) -> np.ndarray:
        """As `Sides.pool`: the mean."""
        return mean_pool(vectors[:, :width], sequences)

    def _lookup(self, opened: EmbeddingSet, things: Things, what: str) -> np.ndarray:
        """[n, D]; of rows with the same id, the last one counts."""
        out = _scratch_array(self._scratch, (len(things), self.width))
        texts = {thing: place for place, thing in enumerate(things) if isinstance(thing, str)}
        order = np.argsort(_item_positions(things), kind="stable")
        ascending = _item_positions(things)[order]
        found = np.zeros(len(things), bool)
        for ids, z in opened.batches():
            rows = rows_in(ascending, self._store.positions(ids).tolist()) if len(texts) < len(things) else None
            places = np.where(rows >= 0, order[rows], -1) if rows is not None else np.full(len(ids), -1)
            if texts:
                places = np.array([texts.get(text, place) for text, place in zip(ids, places, strict=True)])
            here = places >= 0
            out[places[here]] = z[here]
            found[places[here]] = True
        _report_missing(found, things, what, opened)
        return out


def _item_positions(things: Things) -> np.ndarray:
    """[n] int64 positions; below zero, and each another, for texts."""
    if isinstance(things, np.ndarray):
        return things
    return np.array([-2 - i if isinstance(thing, str) else thing for i, thing in enumerate(things)], np.int64)


def _report_missing(found: np.ndarray, things: Things, what: str, opened: EmbeddingSet) -> None:
    missing = np.flatnonzero(~found)
    if not len(missing):
        return
    example = things[missing[0]]
    named = f"the text {example!r}" if isinstance(example, str) else f"the item at position {example} of the store"
    if len(missing) == len(things):
        raise SailError(
            f"{opened.path} has no vector for any of the {len(things)} of {what} (such as {named}); ids are item ids, and free "
            "texts stand under the text itself. Embed them, or name another folder."
        )
    Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(
        f"{opened.path} has no vector for {len(missing)} of {len(things)} of {what} (such as {named}); they take no part."
    )


def _open(folder: Path, task: RetrievalTask, side: str) -> EmbeddingSet:
    own = folder / task.name / side
    if own.is_dir():
        return EmbeddingSet(own)
    things = task.queries if side == "queries" else task.corpus
    if any(isinstance(thing, str) for thing in things):
        raise SailError(
            f"config.eval.tasks.{task.name} has free texts on its {side} side, and there is no {own}: embed them there, under "
            "their own text as the id."
        )
    return EmbeddingSet(folder)


def _scratch_array(scratch: Path, shape: tuple[int, int]) -> np.ndarray:
    """A memory-mapped float32 array of zeros."""
    return np.lib.format.open_memmap(_scratch_path(scratch), mode="w+", dtype=np.float32, shape=shape)


def _scratch_path(scratch: Path) -> Path:
    return scratch / f"{len(list(scratch.iterdir()))}.npy"
