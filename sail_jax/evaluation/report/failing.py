"""Finds out what failed on a task: missed queries, and wrong answers that may be right."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sail_jax.config import Config
from sail_jax.data.prompts import shown_fields
from sail_jax.data.store import ItemStore
from sail_jax.evaluation.report.cards import card_of
from sail_jax.evaluation.report.data import TaskFailures, WorstQuery
from sail_jax.evaluation.report.gallery import GalleryRow
from sail_jax.evaluation.report.taught import taught_first
from sail_jax.evaluation.report.words import MODALITY_WORDS, listed
from sail_jax.evaluation.retrieval import RetrievalTask
from sail_jax.evaluation.suite import TaskResult
from sail_jax.items import TEXT_FIELDS, Item

_WORST = 4
_SAMPLED = 64  # queries whose wrong answers are looked at
_DRAWN = 64  # items of the corpus that say how common a label is
_SURE, _ALIKE = 0.95, 0.5
_TIMES = 1.5  # a label says something where what is found has it so much more often than the corpus


class _Facts(NamedTuple):
    """What is compared of an item: its labels, its text, and the modalities that it has."""

    labels: frozenset[str]
    text: str
    modalities: frozenset[str]


def failures_of(config: Config, result: TaskResult, task: RetrievalTask, store: ItemStore) -> TaskFailures | None:
    """Returns what failed on a task; None for a task of sequences, or one whose results are not kept."""
    if result.rows is None or task.sequences is not None:
        return None
    asked = np.array([query for query, right in enumerate(task.relevant) if len(right)], np.int64)
    right = np.array([np.isin(result.rows[query], task.relevant[query]).any() for query in asked], bool)
    missed = asked[~right]
    taught = taught_first(config, result, task, store)
    wrong = missed[~taught[missed]]
    surest = wrong[np.argsort(-result.cosines[wrong, 0], kind="stable")][:_WORST]
    rng = np.random.default_rng(config.seed)
    sample = rng.permutation(asked)[:_SAMPLED]
    drawn = np.sort(rng.choice(len(task.corpus), min(_DRAWN, len(task.corpus)), replace=False))
    # An item is read with its media: the drawn ones are looked at for each query.
    facts = functools.cache(lambda row: _facts(task.corpus_item(row, store)))
    alike = [s for q in sample if (s := _alike(q, result.rows[q], task, facts)) is not None]
    common = [s for q in sample if (s := _alike(q, drawn, task, facts)) is not None]
    twins = [t for q in sample if (t := _is_twin(q, result.rows[q], task, facts)) is not None]
    known = frozenset().union(*(facts(int(row)).modalities for row in drawn))
    return TaskFailures(
        task=task.name,
        queries=len(asked),
        missed=len(missed),
        found=result.rows.shape[1],
        worst=[_worst(int(query), result, task, store, drawn, facts, known) for query in surest],
        doubtful=float(np.mean(alike)) if alike else None,
        common=float(np.mean(common)) if common else 0.0,
        twins=float(np.mean(twins)) if twins else 0.0,
        taught=int(sum(taught[query] and result.rows[query][0] not in task.relevant[query] for query in asked)),
    )


def _facts(item: Item) -> _Facts:
    return _Facts(frozenset(item.labels), shown_fields(item, TEXT_FIELDS).strip(), frozenset(item.modalities))


def _alike(query: int, rows: np.ndarray, task: RetrievalTask, facts: Callable[[int], _Facts]) -> float | None:
    """Returns, of those rows that are wrong, the share with a label of the first right answer; None without labels."""
    wanted = facts(int(task.relevant[query][0])).labels
    wrong = rows[(rows >= 0) & ~np.isin(rows, task.relevant[query])]
    if not wanted or not len(wrong):
        return None
    return float(np.mean([bool(wanted & facts(int(row)).labels) for row in wrong]))


def _is_twin(query: int, rows: np.ndarray, task: RetrievalTask, facts: Callable[[int], _Facts]) -> bool | None:
    """Returns whether the first row found has the text of a right answer; None if it is right, or without a text."""
    first = int(rows[0])
    if first < 0 or first in task.relevant[query]:
        return None
    texts = {facts(int(row)).text for row in task.relevant[query][:_SAMPLED]} - {""}
    return facts(first).text in texts if texts else None


def _worst(
    query: int,
    result: TaskResult,
    task: RetrievalTask,
    store: ItemStore,
    drawn: np.ndarray,
    facts: Callable[[int], _Facts],
    known: frozenset[str],
) -> WorstQuery:
    item = store.entry(task.queries[query])
    found = [
        card_of(task.corpus_item(int(row), store), relevant=False, score=float(cosine))
        for row, cosine in zip(result.rows[query], result.cosines[query], strict=True)
        if row >= 0
    ]
    wanted = task.corpus_item(int(task.relevant[query][0]), store)
    why = []
    expected = [letter for letter in task.query_view.modalities if letter in known]  # some data have no sound at all
    lacks = [MODALITY_WORDS[letter] for letter in expected if letter not in item.modalities]
    if lacks:
        why.append(f"The query lacks {listed(lacks)}.")
    if result.cosines[query, 0] >= _SURE:
        why.append("The first item found has nearly the same vector as the query.")
    if _is_twin(query, result.rows[query], task, facts):
        why.append("The first item found has the very text of a right answer.")
    alike = _alike(query, result.rows[query], task, facts)
    common = _alike(query, drawn, task, facts) or 0.0
    if alike is not None and alike >= max(_ALIKE, _TIMES * common):
        why.append(f"{alike:.0%} of what it finds carries a label of this right answer: the list may be incomplete.")
    elif alike == 0.0:
        why.append("Nothing that it finds carries a label of this right answer.")
    asked = card_of(item, modalities=task.query_view.modalities)
    return WorstQuery(GalleryRow(task.name, asked, found), card_of(wanted), why)
