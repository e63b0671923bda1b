"""Runs the tasks of a config on the trained model, on the model as it was before training, and on the text baseline."""

import dataclasses
import tempfile
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

from sail_jax import embedder as embedder_lib
from sail_jax.config import Config, MeshConfig
from sail_jax.convert.initial import check_sources, initial_params
from sail_jax.data.features import View
from sail_jax.data.pipeline import make_extractor, open_store
from sail_jax.data.prompts import shown_fields
from sail_jax.data.store import ItemStore
from sail_jax.embedder import Embedder, embed_pass
from sail_jax.errors import SailError
from sail_jax.evaluation.recall import recall_at_k, top_k
from sail_jax.evaluation.retrieval import RetrievalTask, load_task
from sail_jax.evaluation.tfidf import tfidf_top_k
from sail_jax.items import Item
from sail_jax.parallel.mesh import make_mesh

_GALLERY = 8  # results kept per query for the report's pictures


@dataclasses.dataclass(frozen=True)
class Result:
    """Figures of one model on one task under one view.

    Attributes:
        model: "trained", "untrained" or "tfidf".
        task: name of the task.
        view: "QUERY->TARGET" modalities.
        main: whether it is the task's own view.
        metrics: name -> value.
        queries: queries that count.
        skipped: queries left out, because they or all that is relevant to them lack the task's modalities.
        corpus: items that are searched.
        rows: [Q, 8] int64, the nearest rows of the corpus.
        cosines: [Q, 8] float32.
        width: the Matryoshka size of the figures; 0 where there is none.
        histograms: {"edges": [B + 1], "positive": [B], "negative": [B]} of cosines, or None.
        sample: rows [n] of the task's corpus and their vectors [n, D], for the map; or None.
    """

    model: str
    task: str
    view: str
    main: bool
    metrics: dict[str, float]
    queries: int
    skipped: int
    corpus: int
    rows: np.ndarray
    cosines: np.ndarray
    width: int = 0
    histograms: dict | None = None
    sample: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def prefix(self) -> str:
        """Where its figures stand in metrics.json: the task, and the view unless it is the task's own."""
        return self.task if self.main else f"{self.task}/{self.view.partition('->')[0]}"


def run_suite(config: Config, workdir: Path) -> tuple[list[Result], dict[str, RetrievalTask], ItemStore]:
    """Evaluates the run in `workdir`.

    Raises:
        SailError: when there is no task or no checkpoint, or a setting is wrong.
    """
    if not config.eval.tasks:
        raise SailError("config.eval.tasks is empty: name at least one task.")
    if not config.eval.ks:
        raise SailError("config.eval.ks is empty: name at least one cut-off.")
    if config.eval.untrained:
        try:
            check_sources(config)
        except SailError as error:
            raise SailError(f"{error} Or leave the untrained model out: --config.eval.untrained=False.") from error
    store = open_store(config)
    tasks = {name: load_task(config, name, store) for name in config.eval.tasks}
    results: list[Result] = []
    models = {"trained": lambda: embedder_lib.load(workdir, config)}
    if config.eval.untrained:
        models["untrained"] = lambda: _untrained(config)
    for name, make in models.items():
        with tempfile.TemporaryDirectory(prefix="embeddings-", dir=workdir) as scratch:
            runner = _Runner(name, make(), store, config, Path(scratch))
            for task in tasks.values():
                results += runner.run(task)
    if config.eval.tfidf:
        results += [_run_tfidf(task, store, config) for task in tasks.values() if _has_text(task)]
    return results, tasks, store


def _untrained(config: Config) -> Embedder:
    """The model as it was before the first step of training."""
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    params, _ = initial_params(config, mesh)
    return Embedder(config, params, make_extractor(config), mesh)


class _Runner:
    """One model's pass over the tasks; a corpus that several tasks share is embedded once."""

    def __init__(self, name: str, embedder: Embedder, store: ItemStore, config: Config, scratch: Path) -> None:
        self.name, self.embedder, self.store, self.config, self.scratch = name, embedder, store, config, scratch
        self._corpora: dict[tuple, dict[str, np.ndarray]] = {}

    def run(self, task: RetrievalTask) -> list[Result]:
        own = task.query_view.modalities, task.target_view.modalities
        further = [(view, view) for view in task.further_views() if (view, view) != own]
        corpus = self._corpus(task, [target for _, target in (own, *further)])
        queries = self._queries(task, corpus, [query for query, _ in (own, *further)])
        return [
            self._score(task, queries[query], corpus[target], query, target, main=(query, target) == own)
            for query, target in (own, *further)
        ]

    def _corpus(self, task: RetrievalTask, views: list[str]) -> dict[str, np.ndarray]:
        """View -> [N, D]; tasks that search the same corpus, shown in the same way, share what is embedded."""
        settings = task.settings
        searched = () if settings.corpus == "items" else (settings.table, settings.split, settings.both_ways)
        shared = self._corpora.setdefault((task.target_view.fields, task.target_view.instruction, searched), {})
        missing = tuple(dict.fromkeys(view for view in views if view not in shared))
        if missing:
            items = task.corpus_items(self.store)
            shared |= self._embed(items, len(task.corpus), task.target_view, missing, f"{task.name} corpus")
        return shared

    def _queries(self, task: RetrievalTask, corpus: dict[str, np.ndarray], views: list[str]) -> dict[str, np.ndarray]:
        """View -> [Q, D]; queries that stand in the corpus, shown in the same way, are taken from there."""
        same_view = dataclasses.replace(task.query_view, modalities=task.target_view.modalities) == task.target_view
        if same_view and np.all(task.exclude >= 0) and all(view in corpus for view in views):
            return {view: corpus[view][task.exclude] for view in views}
        items, wanted = task.query_items(self.store), tuple(dict.fromkeys(views))
        return self._embed(items, len(task.queries), task.query_view, wanted, f"{task.name} queries")

    def _embed(
        self, items: Iterable[Item], count: int, view: View, views: tuple[str, ...], what: str
    ) -> dict[str, np.ndarray]:
        path = self.scratch / f"{len(list(self.scratch.iterdir()))}.npy"
        return embed_pass(self.embedder, items, count, view, views, path, what=f"{self.name}: {what}")

    def _score(
        self, task: RetrievalTask, queries: np.ndarray, corpus: np.ndarray, query: str, target: str, main: bool
    ) -> Result:
        ks = self.config.eval.ks
        rows, cosines = top_k(
            queries, corpus, max(*ks, _GALLERY), block=self.config.eval.corpus_block, exclude=task.exclude
        )
        # A further view is compared with the main one on the same queries, so what it cannot see counts as missed.
        relevant = [_present(corpus, wanted) for wanted in task.relevant] if main else task.relevant
        counts = np.array([len(wanted) > 0 for wanted in relevant])
        counts &= queries.any(axis=-1) | (not main)
        kept = np.flatnonzero(counts)
        if not len(kept):
            raise SailError(
                f"No query of config.eval.tasks.{task.name} can be scored under the view {query}->{target}."
            )
        metrics = recall_at_k(rows[kept], [relevant[i] for i in kept], ks)
        return Result(
            model=self.name,
            task=task.name,
            view=f"{query}->{target}",
            main=main,
            metrics=metrics,
            queries=len(kept),
            skipped=len(counts) - len(kept),
            corpus=len(corpus),
            rows=rows[:, :_GALLERY],
            cosines=cosines[:, :_GALLERY],
        )


def _present(corpus: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return rows[corpus[rows].any(axis=-1)]


def _has_text(task: RetrievalTask) -> bool:
    return "T" in task.query_view.modalities and "T" in task.target_view.modalities


def _run_tfidf(task: RetrievalTask, store: ItemStore, config: Config) -> Result:
    queries = [shown_fields(item, task.query_view.fields) for item in task.query_items(store)]
    corpus = [shown_fields(item, task.target_view.fields) for item in task.corpus_items(store)]
    ks = config.eval.ks
    rows, cosines = tfidf_top_k(queries, corpus, max(*ks, _GALLERY), exclude=task.exclude)
    return Result(
        model="tfidf",
        task=task.name,
        view="T->T",
        main=True,
        metrics=recall_at_k(rows, task.relevant, ks),
        queries=len(queries),
        skipped=0,
        corpus=len(corpus),
        rows=rows[:, :_GALLERY],
        cosines=cosines[:, :_GALLERY],
    )


def metrics_tree(results: list[Result]) -> dict[str, dict[str, float]]:
    """Model -> "TASK/METRIC" (or "TASK/VIEW/METRIC" for further views) -> value, as metrics.json holds it."""
    tree: dict[str, dict[str, float]] = {}
    for result in results:
        figures = {**result.metrics, "queries": result.queries, "skipped": result.skipped, "corpus": result.corpus}
        tree.setdefault(result.model, {}).update({f"{result.prefix}/{name}": v for name, v in figures.items()})
    return tree
