"""Resolves a task against the item store: its queries, corpus, and the relevant rows of each query.

Axes: Q queries, N rows of the corpus, P listed pairs.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sail_jax.buckets import place
from sail_jax.config import Config
from sail_jax.config.evaluation import GRADED, EvalTaskConfig
from sail_jax.data.features import View
from sail_jax.data.store import ItemStore
from sail_jax.data.tables import PairTable, pair_positions
from sail_jax.data.views import task_views
from sail_jax.errors import SailError
from sail_jax.items import Item
from sail_jax.patterns import Pattern, check_modalities


@dataclasses.dataclass(frozen=True)
class RetrievalTask:
    """A task, resolved against the item store.

    Attributes:
        name: its name in the config.
        settings: its settings.
        queries: the entries to embed on the query side, each a position in the store (int) or a free text (str): the
            queries, or the items of the sequences.
        corpus: [N] int64 positions in the store, ascending; or N texts, the labels of a classification.
        relevant: Q arrays of rows of `corpus`, ascending; empty for a query without relevant rows.
        exclude: [Q] int64 row of `corpus` that is the query itself, which a search must not return, or -1.
        query_view: how queries are shown to the model.
        target_view: how the corpus is shown to the model.
        pairs: [P, 2] int64, query and row of the corpus of each listed pair, each once, ascending.
        positive: [P] bool, whether the pair is relevant; the others have a score below `min_score`.
        sequences: Q arrays of places in `queries`, if each query is a sequence of items; else None.
        left_out: number of queries that have nothing relevant and are not among `queries`.
        grades: [P] float32, the score of each listed pair, NaN for a pair without one; None if the task has no scores.
    """

    name: str
    settings: EvalTaskConfig
    queries: list[int | str]
    corpus: np.ndarray | list[str]
    relevant: list[np.ndarray]
    exclude: np.ndarray
    query_view: View
    target_view: View
    pairs: np.ndarray
    positive: np.ndarray
    sequences: list[np.ndarray] | None = None
    left_out: int = 0
    grades: np.ndarray | None = None

    @property
    def own_view(self) -> Pattern:
        """Returns the modalities of the query and of the corpus under the task's own view."""
        return Pattern(self.query_view.modalities, self.target_view.modalities)

    def further_views(self) -> list[Pattern]:
        """Returns the further views, each with the same modalities on both sides; labels are always text."""
        views = [check_modalities(v, setting=f"config.eval.tasks.{self.name}.views") for v in self.settings.views]
        labels = isinstance(self.corpus, list)
        return [Pattern(view, self.target_view.modalities if labels else view) for view in views]

    def query_items(self, store: ItemStore) -> Iterator[Item]:
        """Yields the entries of `queries` as items, read one at a time."""
        return (store.entry(query) for query in self.queries)

    def corpus_item(self, row: int, store: ItemStore) -> Item:
        """Returns a row of the corpus as an item."""
        return store.entry(self.corpus[row])

    def corpus_items(self, store: ItemStore) -> Iterator[Item]:
        """Yields the rows of the corpus as items, read one at a time."""
        return (store.entry(entry) for entry in self.corpus)


def load_retrieval(config: Config, name: str, store: ItemStore) -> RetrievalTask:
    """Resolves a task of kind "retrieval", whose queries and relevant items are the rows of a pair table.

    Items with equal content are one, the first of them. The search leaves out the query itself, unless the table lists
    it as relevant, as it does where the two sides show different modalities of one item.

    Raises:
        SailError: a setting is wrong, the table has no row in the split, or none of the grades that a graded task
            needs, or an id is unknown.
    """
    settings = config.eval.tasks[name]
    query_view, target_view = task_views(config, name)
    queries, listed, positive, scores = _read_pairs(config, name, store)
    corpus = all_contents(store) if settings.corpus == "items" else np.unique(listed[:, 1])
    found = np.stack([listed[:, 0], np.searchsorted(corpus, listed[:, 1])], axis=1)
    pairs, positive, grades = merge_pairs(found, positive, scores)
    if GRADED in settings.metrics:
        _check_grades(name, settings, pairs, grades)
    own = rows_in(corpus, queries)
    relevant = relevant_rows(pairs[positive], len(queries))
    finds_itself = np.array([row in rows for row, rows in zip(own, relevant, strict=True)])
    return RetrievalTask(
        name=name,
        settings=settings,
        queries=queries,
        corpus=corpus,
        relevant=relevant,
        exclude=np.where(finds_itself, -1, own),
        query_view=query_view,
        target_view=target_view,
        pairs=pairs,
        positive=positive,
        grades=grades,
    )


def all_contents(store: ItemStore) -> np.ndarray:
    """Returns the positions of all items, ascending; of those with equal content only the first one."""
    positions = np.arange(len(store))
    return positions[store.first_positions(positions) == positions]


def rows_in(corpus: np.ndarray | list[str], queries: list[int | str]) -> np.ndarray:
    """Returns the row of the corpus that each query is, [n] int64, or -1; `corpus` as in `RetrievalTask`."""
    if isinstance(corpus, list) or not len(corpus):
        return np.full(len(queries), -1, np.int64)
    positions = np.array([-1 if isinstance(query, str) else query for query in queries], np.int64)
    rows = np.minimum(np.searchsorted(corpus, positions), len(corpus) - 1)
    return np.where(corpus[rows] == positions, rows, -1)


def relevant_rows(pairs: np.ndarray, queries: int) -> list[np.ndarray]:
    """Returns the corpus rows of each query, given pairs of query and row, [P, 2], in ascending order."""
    return np.split(pairs[:, 1], np.searchsorted(pairs[:, 0], np.arange(1, queries)))


def merge_pairs(
    pairs: np.ndarray, positive: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the pairs in ascending order, each once; a pair is relevant if any listing of it is.

    Its score is the highest of its listings.
    """
    merged, place = np.unique(pairs, axis=0, return_inverse=True)
    any_positive = np.zeros(len(merged), bool)
    any_positive[place.ravel()[positive]] = True
    highest = np.full(len(merged), np.nan, np.float32)
    np.fmax.at(highest, place.ravel(), scores)
    return merged, any_positive, highest


def _check_grades(name: str, settings: EvalTaskConfig, pairs: np.ndarray, grades: np.ndarray) -> None:
    """Raises SailError unless grades are at least 0, and some query has items of two different grades."""
    task, remedy = f"config.eval.tasks.{name}", f"or take {GRADED!r} out of its metrics."
    known = np.flatnonzero(~np.isnan(grades))
    if not len(known):
        raise SailError(
            f"{task} is graded, and no row of {settings.table} in the split {settings.split!r} has a score: name the "
            f"column of the grades in config.ingest.tables.{Path(settings.table).stem}.score and ingest again, {remedy}"
        )
    wrong = known[(grades[known] < 0) | np.isinf(grades[known])]
    if len(wrong):
        raise SailError(
            f"{task} is graded, and {settings.table} has the score {grades[wrong[0]]:g}: grades are finite and at "
            f"least 0; shift them and ingest again, {remedy}"
        )
    if not np.any((np.diff(pairs[known, 0]) == 0) & (np.diff(grades[known]) != 0)):
        raise SailError(
            f"{task} is graded, and no query of {settings.table} in the split {settings.split!r} has items of two "
            f"different scores: list items of lower grades too, {remedy}"
        )


def _read_pairs(
    config: Config, name: str, store: ItemStore
) -> tuple[list[int | str], np.ndarray, np.ndarray, np.ndarray]:
    """Reads the queries, in table order, and the pairs of a task.

    Returns:
        The queries; [P, 2] int64 query and position of the target; [P] bool, whether the pair is relevant; [P] float32
        scores, NaN for a row without one.
    """
    settings = config.eval.tasks[name]
    table = PairTable.open(place(config.data.dir) / place(settings.table), split=settings.split)
    places: dict[int | str, int] = {}
    listed: list[tuple[int, int]] = []
    scores: list[float] = []

    def add(query: int | str, target: int, score: float) -> None:
        listed.append((places.setdefault(query, len(places)), target))
        scores.append(score)

    for batch in table.iter_batches():
        for pair, query, target in zip(batch, *pair_positions(batch, store, str(table.path)), strict=True):
            score = math.nan if pair.score is None else pair.score
            add(query, target, score)
            if settings.both_ways and not isinstance(query, str):
                add(target, query, score)
    if not listed:
        raise SailError(f"config.eval.tasks.{name}: {settings.table} has no row in the split {settings.split!r}.")
    positive = ~(np.array(scores) < settings.min_score)
    return list(places), np.array(listed, np.int64), positive, np.array(scores, np.float32)
