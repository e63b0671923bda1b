"""Makes results of the baselines of `eval.baselines`, under the protocol of the models.

Axes: Q queries, N rows of the corpus, K results.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sail_jax.buckets import place
from sail_jax.config import Config
from sail_jax.data.row_groups import splits_of
from sail_jax.data.store import ItemStore
from sail_jax.data.tables import PairTable, pair_positions
from sail_jax.errors import SailError
from sail_jax.evaluation.co_counts import Factors, Scorer, co_counts, decompose, popularity, read_histories, svd
from sail_jax.evaluation.retrieval import RetrievalTask
from sail_jax.evaluation.suite import TaskResult, most_results, ranked_result
from sail_jax.evaluation.two_tower import train_two_tower

_SCORES = 1 << 24  # scores held at a time


def baseline_results(config: Config, tasks: dict[str, RetrievalTask], store: ItemStore) -> list[TaskResult]:
    """Returns the results of the baselines on each task between items.

    They learn from the train rows of the task's own pair table, which they hold in memory, and read no content. Tasks
    whose queries are texts, and tables without train rows, have none.

    Raises:
        SailError: a baseline lacks its table of histories, or a table is wrong.
    """
    check_baselines(config)
    sources, results = _Sources(config, store), []
    for task in tasks.values():
        if config.eval.baselines and task.settings.kind == "retrieval" and not _has_texts(task):
            path = place(config.data.dir) / place(task.settings.table)
            pairs = _train_pairs(path, store) if "train" in splits_of(path) else np.zeros((0, 2), np.int64)
            if len(pairs):
                results += [_result(name, _MAKE[name](sources, pairs), task, config) for name in config.eval.baselines]
    return results


def check_baselines(config: Config) -> None:
    """Raises SailError if a baseline of the settings lacks its table of histories."""
    for name in config.eval.baselines:
        if name.startswith("svd") and not config.eval.histories:
            raise SailError(
                f"config.eval.baselines names {name!r}, which reads users' histories: set config.eval.histories to "
                "the table `histories` that the verb `sequences` makes, or leave it out."
            )


class _Sources:
    """What the baselines of all tasks read: the items, the seed, and the histories of users, decomposed once."""

    def __init__(self, config: Config, store: ItemStore) -> None:
        self.items, self.seed = len(store), config.seed
        self._histories, self._store = place(config.data.dir) / place(config.eval.histories), store

    @functools.cached_property
    def factors(self) -> Factors:
        return decompose(read_histories(self._histories, self._store))


def _two_tower(sources: _Sources, pairs: np.ndarray) -> Scorer:
    query, target = train_two_tower(pairs, sources.items, sources.seed)
    return lambda queries: query[queries] @ target.T


# Baseline -> the function that makes it, given the train pairs of a task.
_MAKE: dict[str, Callable[[_Sources, np.ndarray], Scorer]] = {
    "popularity": lambda sources, pairs: popularity(pairs, sources.items),
    "co_counts": lambda sources, pairs: co_counts(pairs, sources.items),
    "svd_cosine": lambda sources, pairs: svd(sources.factors, scaled=False),
    "svd_dot": lambda sources, pairs: svd(sources.factors, scaled=True),
    "two_tower": _two_tower,
}


def _has_texts(task: RetrievalTask) -> bool:
    return any(isinstance(query, str) for query in task.queries)


def _train_pairs(path: Path, store: ItemStore) -> np.ndarray:
    """Reads the train rows of a pair table between items: [P, 2] int64 positions."""
    found = []
    for batch in PairTable.open(path, split="train").iter_batches():
        queries, targets = pair_positions(batch, store, str(path))
        found += [(query, target) for query, target in zip(queries, targets, strict=True) if isinstance(query, int)]
    return np.array(found, np.int64).reshape(-1, 2)


def _result(name: str, score: Scorer, task: RetrievalTask, config: Config) -> TaskResult:
    queries, k = np.array(task.queries), min(most_results(config), len(task.corpus))
    rows = np.full((len(queries), most_results(config)), -1, np.int64)
    scores = np.full(rows.shape, -np.inf, np.float32)
    block = max(1, _SCORES // max(1, len(task.corpus)))
    for start in range(0, len(queries), block):
        found = np.array(score(queries[start : start + block])[:, task.corpus], np.float64)
        own = task.exclude[start : start + block]
        found[np.flatnonzero(own >= 0), own[own >= 0]] = -np.inf
        for row, of_query in enumerate(found, start):
            best = _best(of_query, k)
            rows[row, : len(best)], scores[row, : len(best)] = best, of_query[best]
    return ranked_result(name, task.own_view, task, rows, scores, config)


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Returns the rows of the k highest finite scores, best first; equal ones in the order of their rows."""
    least = np.partition(scores, -k)[-k]
    rows = np.flatnonzero((scores >= least) & np.isfinite(scores))
    return rows[np.argsort(-scores[rows], kind="stable")][:k]
