"""Measures one model on one task, under one view and at one width.

Axes: Q queries, N rows of the corpus, D width, P pairs, K results.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sail_jax.config import Config
from sail_jax.config.evaluation import GRADED
from sail_jax.evaluation.classification import ACCURACY_KS, accuracy_at_k
from sail_jax.evaluation.metrics.auc import auc
from sail_jax.evaluation.metrics.bijective import bijective_alignment
from sail_jax.evaluation.metrics.chance import accuracy_by_chance, recall_by_chance
from sail_jax.evaluation.metrics.clustering import clustering_nmi
from sail_jax.evaluation.metrics.graded import graded_metrics
from sail_jax.evaluation.metrics.nearest import nearest
from sail_jax.evaluation.metrics.rank_agreement import rank_agreement
from sail_jax.evaluation.metrics.ranking import ranking_metrics
from sail_jax.evaluation.metrics.recall import recall_at_k
from sail_jax.evaluation.metrics.separability import separability
from sail_jax.evaluation.metrics.spread import spread
from sail_jax.evaluation.pairs import pair_cosines, sample_negatives, sample_rows
from sail_jax.evaluation.retrieval import RetrievalTask
from sail_jax.sharding.process_group import ALONE, Processes

GALLERY = 8  # results kept per query for the report's gallery
# Limits of the samples from which metrics on pairs are computed. The seed decides the sample, which all models share.
_PAIRS = 20_000
_CLUSTERED_PAIRS = 10_000
_RANKED_PAIRS = 512
_ANCHORS = 32
_RANKED_KS = (10,)
_GRADED_QUERIES = 10_000
_SPREAD_ROWS = 100_000
# Families that tasks of other kinds than pairs have, where their settings name them.
_OF_KIND = {"sequence": ("recall", "ranking", "spread"), "classification": ("accuracy", "spread")}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The metrics of one model on one task, under one view and at one width.

    Attributes:
        metrics: name -> value; families other than recall and ranking have a prefix: "separability/overlap".
        queries: number of queries scored.
        skipped: number of queries left out.
        rows: [Q, K] int64, the nearest rows of the corpus.
        cosines: [Q, K] float32.
        chance: recall or accuracy of a random ranking of the same rows.
        histograms: cosines of matching and of other pairs, or None; see `separability`.
    """

    metrics: dict[str, float]
    queries: int
    skipped: int
    rows: np.ndarray
    cosines: np.ndarray
    chance: dict[str, float]
    histograms: dict[str, list] | None = None


def families_of(task: RetrievalTask) -> tuple[str, ...]:
    """Returns the families of metrics of a task, always with "recall" or "accuracy"."""
    kind = task.settings.kind
    asked = dict.fromkeys(("accuracy" if kind == "classification" else "recall", *task.settings.metrics))
    return tuple(family for family in asked if family in _OF_KIND.get(kind, asked))


def measure(
    task: RetrievalTask,
    queries: np.ndarray,
    corpus: np.ndarray,
    config: Config,
    *,
    families: Sequence[str],
    own_view: bool,
    processes: Processes = ALONE,
) -> Measurement | None:
    """Measures some families of metrics.

    Under the task's own view, a query is scored if it and at least one of its relevant items have an embedding. Other
    views are scored on the queries with relevant items, whether or not these have an embedding: a missing one counts as
    a miss. Metrics on pairs use only pairs with embeddings on both sides, and are left out if there are none.

    Args:
        task: the task.
        queries: [Q, D] embeddings; zeros for a query without one.
        corpus: [N, D] likewise; may be memory-mapped.
        config: the experiment; `eval` and `seed` are read.
        families: names as in `families_of`.
        own_view: whether the view is the task's own.
        processes: the processes that search together; all of them pass the same arguments and get the measurement.

    Returns:
        The measurement; None if no query can be scored, or one of the sides has no embedding at all.
    """
    present = queries.any(axis=-1), corpus.any(axis=-1)
    relevant = [rows[present[1][rows]] for rows in task.relevant] if own_view else task.relevant
    counts = np.array([len(rows) > 0 for rows in relevant])
    counts &= present[0] | (not own_view)
    kept = np.flatnonzero(counts)
    if not len(kept) or not all(side.any() for side in present):
        return None
    ks, block = config.eval.ks, config.eval.corpus_block
    search = {"block": block, "processes": processes}
    rows, cosines = nearest(queries, corpus, max(*ks, *ACCURACY_KS, GALLERY), exclude=task.exclude, **search)
    metrics = ranked_metrics(rows[kept], [relevant[i] for i in kept], ks, families)
    of_pairs, histograms = _Pairs(task, queries, corpus, present, config).metrics(families)
    if "bijective" in families:
        share = bijective_alignment(queries, corpus, rows[:, 0], task.exclude, **search)
        of_pairs["bijective"] = share
    if "spread" in families:
        sampled = sample_rows(np.random.default_rng(config.seed), np.flatnonzero(present[1]), _SPREAD_ROWS)
        of_pairs |= {f"spread/{name}": value for name, value in spread(corpus, sampled).items()}
    return Measurement(
        metrics=metrics | of_pairs,
        queries=len(kept),
        skipped=len(counts) - len(kept) + task.left_out,
        rows=rows[:, :GALLERY],
        cosines=cosines[:, :GALLERY],
        chance=_by_chance(task, present, kept, relevant, ks),
        histograms=histograms,
    )


def _by_chance(
    task: RetrievalTask,
    present: tuple[np.ndarray, np.ndarray],
    kept: np.ndarray,
    relevant: Sequence[np.ndarray],
    ks: Sequence[int],
) -> dict[str, float]:
    """Returns recall or accuracy of a random ranking for the `kept` queries; other arguments as in `measure`."""
    own = task.exclude[kept]
    candidates = np.where(present[0][kept], present[1].sum() - ((own >= 0) & present[1][own]), 0)
    unique = [np.unique(relevant[query]) for query in kept]
    findable = np.array([present[1][rows].sum() for rows in unique]) * present[0][kept]
    if task.settings.kind == "classification":
        return accuracy_by_chance(candidates, findable, ACCURACY_KS)
    return recall_by_chance(candidates, findable, np.array([len(rows) for rows in unique]), ks)


def ranked_metrics(
    rows: np.ndarray, relevant: Sequence[np.ndarray], ks: Sequence[int], families: Sequence[str]
) -> dict[str, float]:
    """Returns the metrics that need only the results of the search; arguments as in `recall_at_k`."""
    metrics = recall_at_k(rows, relevant, ks) if "recall" in families else {}
    if "accuracy" in families:
        metrics |= accuracy_at_k(rows, relevant)
    return metrics | (ranking_metrics(rows, relevant, ks) if "ranking" in families else {})


class _Pairs:
    """Computes the metrics on pairs that have embeddings on both sides."""

    def __init__(
        self,
        task: RetrievalTask,
        queries: np.ndarray,
        corpus: np.ndarray,
        present: tuple[np.ndarray, np.ndarray],
        config: Config,
    ) -> None:
        self.task, self.queries, self.corpus, self.present, self.config = task, queries, corpus, present, config
        usable = present[0][task.pairs[:, 0]] & present[1][task.pairs[:, 1]]
        self.usable = usable
        self.positive = task.pairs[usable & task.positive]
        self.negative = task.pairs[usable & ~task.positive]

    def metrics(self, families: Sequence[str]) -> tuple[dict[str, float], dict[str, list] | None]:
        """Returns the metrics by name, and the histograms of separability."""
        metrics: dict[str, float] = {}
        histograms = None
        if len(self.positive) and {"separability", "auc"} & set(families):
            figures, histograms = self._score(families)
            metrics |= figures
        if len(self.positive) and "clustering" in families:
            metrics["clustering/nmi"] = self._nmi()
        if "agreement" in families:
            metrics |= self._agreement()
        if GRADED in families:
            metrics |= self._graded()
        return metrics, histograms

    def _score(self, families: Sequence[str]) -> tuple[dict[str, float], dict[str, list] | None]:
        rng = self._rng()
        positive = self._cosines(sample_rows(rng, self.positive, _PAIRS))
        known = [self.task.pairs, np.stack([np.arange(len(self.task.exclude)), self.task.exclude], axis=1)]
        sampled = self._cosines(sample_negatives(rng, self.present, np.concatenate(known), _PAIRS))
        listed = self._cosines(sample_rows(rng, self.negative, _PAIRS)) if len(self.negative) else sampled
        metrics: dict[str, float] = {}
        histograms = None
        if "separability" in families and len(sampled):
            figures, histograms = separability(positive, sampled)
            metrics |= {f"separability/{name}": value for name, value in figures.items()}
        if "auc" in families and len(listed):
            metrics["auc"] = auc(positive, listed)
        return metrics, histograms

    def _nmi(self) -> float:
        left, right = sample_rows(self._rng(), self.positive, _CLUSTERED_PAIRS).T
        settings = self.config.eval
        return clustering_nmi(self.queries[left], self.corpus[right], clusters=settings.clusters, seed=self.config.seed)

    def _agreement(self) -> dict[str, float]:
        """Returns the rank agreement on pairs of different queries, each with one of its targets."""
        rng = self._rng()
        shuffled = self.positive[rng.permutation(len(self.positive))]
        _, first = np.unique(shuffled[:, 0], return_index=True)
        left, right = sample_rows(rng, shuffled[first], _RANKED_PAIRS).T
        ks = [k for k in _RANKED_KS if k < len(left)]
        if not ks:
            return {}
        anchors = sample_rows(rng, np.arange(len(left)), _ANCHORS)
        figures = rank_agreement(self.queries[left], self.corpus[right], anchors, ks)
        return {f"agreement/{name}": value for name, value in figures.items()}

    def _graded(self) -> dict[str, float]:
        """Returns the agreement with the grades of the listed pairs, of at most 10,000 queries."""
        graded = self.usable & ~np.isnan(self.task.grades)
        asked = sample_rows(self._rng(), np.unique(self.task.pairs[graded, 0]), _GRADED_QUERIES)
        graded &= np.isin(self.task.pairs[:, 0], asked)
        pairs = self.task.pairs[graded]
        figures = graded_metrics(pairs[:, 0], self.task.grades[graded], self._cosines(pairs), self.config.eval.ks)
        return {f"{GRADED}/{name}": value for name, value in figures.items()}

    def _cosines(self, pairs: np.ndarray) -> np.ndarray:
        return pair_cosines(self.queries, self.corpus, pairs)

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(self.config.seed)
