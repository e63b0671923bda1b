"""Runs the tasks of a config on the trained model, the untrained model, and the TF-IDF baseline."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sail_jax.config import Config
from sail_jax.convert.init_from import check_sources, initial_params
from sail_jax.data.pipeline import make_extractor, open_store
from sail_jax.data.prompts import shown_fields
from sail_jax.data.store import ItemStore
from sail_jax.embedding import embedder as embedder_lib
from sail_jax.embedding.embedder import Embedder
from sail_jax.embedding.forward import inference_mesh
from sail_jax.errors import SailError
from sail_jax.evaluation.classification import ACCURACY_KS
from sail_jax.evaluation.metrics.measure import GALLERY, Measurement, families_of, measure, ranked_metrics
from sail_jax.evaluation.pairs import sample_rows
from sail_jax.evaluation.retrieval import RetrievalTask
from sail_jax.evaluation.tasks import load_tasks
from sail_jax.evaluation.tfidf import tfidf_top_k
from sail_jax.evaluation.vector_sources import ModelVectors, StoredVectors, VectorSource
from sail_jax.patterns import MODALITY_SETS, Pattern
from sail_jax.sharding.process_group import everyone

_SAMPLE = 10_000  # rows of the corpus whose vectors are kept, for a map


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """Figures of one model on one task, under one view and at one width.

    Attributes:
        model: "trained", "untrained", "embeddings" (vectors read from a folder), "tfidf", one of `eval.baselines`,
            "ceiling" (of a perfect model, see `evaluation.ceilings`) or "chance" (of a random ranking).
        task: name of the task.
        view: the modalities of queries and of the corpus.
        main: whether it is the task's own view at full width.
        metrics: name -> value.
        queries: number of queries scored.
        skipped: number of queries left out, because a query has no relevant item, or because the query or all its
            relevant items have none of the view's modalities.
        corpus: number of items, or labels, searched.
        width: number of dimensions of the vectors used; 0 for TF-IDF and for bounds.
        rows: [Q, 8] int64, the nearest rows of the corpus; None unless it is a main result.
        cosines: [Q, 8] float32, likewise.
        histograms: "edges", "positive" and "negative" of the cosines; None where separability is not measured.
        sample: rows of the corpus, at most 10,000, and their vectors [n, D]; only of main results, and not of TF-IDF.
        own_view: whether it is the task's own view.
        full: whether `width` is the full width.
        chance: recall or accuracy of a random ranking; None for TF-IDF and for views that are only in the matrix.
    """

    model: str
    task: str
    view: Pattern
    main: bool
    metrics: dict[str, float]
    queries: int
    skipped: int
    corpus: int
    width: int
    rows: np.ndarray | None = None
    cosines: np.ndarray | None = None
    histograms: dict[str, list] | None = None
    sample: tuple[np.ndarray, np.ndarray] | None = None
    own_view: bool = True
    full: bool = True
    chance: dict[str, float] | None = None

    def bound(self, model: str, metrics: dict[str, float]) -> "TaskResult":
        """Returns a result of what bounds the figures of this one, on the same queries and items."""
        counts = {"queries": self.queries, "skipped": self.skipped, "corpus": self.corpus}
        of_view = {"view": self.view, "main": self.own_view, "own_view": self.own_view}
        return TaskResult(model, self.task, metrics=metrics, width=0, **of_view, **counts)

    @property
    def prefix(self) -> str:
        """Returns the prefix of its figures in metrics.json: TASK[/VIEW][/dWIDTH].

        VIEW is left out for the task's own view, and dWIDTH for the full width. VIEW is "V" if both sides show the same
        modalities, and "V->T" if they differ.
        """
        view = "" if self.own_view else f"/{self.view.short}"
        return f"{self.task}{view}{'' if self.full else f'/d{self.width}'}"


class SuiteResults(NamedTuple):
    """What an evaluation found, and on what.

    Attributes:
        results: of all models, tasks, views and widths.
        tasks: name -> task.
        store: the items.
        step: the step of the checkpoint; None for embeddings read from a folder.
    """

    results: list[TaskResult]
    tasks: dict[str, RetrievalTask]
    store: ItemStore
    step: int | None


def run_suite(
    config: Config, workdir: Path, embeddings: Path | None = None, *, step: int | None = None
) -> SuiteResults:
    """Evaluates the run in `workdir`, or a folder of embeddings.

    All processes that JAX knows evaluate a run together: all call this function and get the results.

    Args:
        config: the experiment; `eval` has the tasks and metrics.
        workdir: the run directory, which all processes share; vectors are stored in it during the evaluation.
        embeddings: folder that `embed` wrote, to evaluate instead of a checkpoint.
        step: the step of the checkpoint; by default the newest one that is whole.

    Raises:
        SailError: there is no task, no checkpoint or no embeddings, or a setting is wrong.
    """
    if config.eval.untrained and embeddings is None:
        try:
            check_sources(config)
        except SailError as error:
            raise SailError(f"{error} Or leave the untrained model out: --config.eval.untrained=False.") from error
    store = open_store(config)
    tasks = load_tasks(config, store)
    results: list[TaskResult] = []
    evaluated: int | None = None
    for make in _models(config, workdir, embeddings, step, tasks, store):
        with everyone().scratch(workdir, "embeddings-") as scratch:
            source = make(scratch)
            evaluated = source.step if evaluated is None else evaluated
            for task in tasks.values():
                results += evaluate_task(source, task, config)
    if config.eval.tfidf:
        results += [_run_tfidf(task, store, config) for task in tasks.values() if _has_text(task)]
    return SuiteResults(results, tasks, store, evaluated)


def _models(
    config: Config,
    workdir: Path,
    embeddings: Path | None,
    step: int | None,
    tasks: dict[str, RetrievalTask],
    store: ItemStore,
) -> Iterator[Callable[[Path], VectorSource]]:
    """Yields functions that each make a vector source to evaluate, given a folder for its vectors."""
    if embeddings is not None:
        yield lambda scratch: StoredVectors(embeddings, list(tasks.values()), store, scratch)
        return
    yield lambda scratch: ModelVectors("trained", embedder_lib.load(workdir, config, step=step), store, scratch)
    if config.eval.untrained:
        yield lambda scratch: ModelVectors("untrained", _untrained(config), store, scratch)


def _untrained(config: Config) -> Embedder:
    """Returns the model as initialised, before the first step of training."""
    mesh = inference_mesh(config.mesh)
    params, _ = initial_params(config, mesh)
    return Embedder(config, params, make_extractor(config), mesh)


def evaluate_task(
    source: VectorSource, task: RetrievalTask, config: Config, *, main_only: bool = False
) -> list[TaskResult]:
    """Measures a task under all views, its own first, each at all widths, the full one first.

    Args:
        source: the source of the vectors.
        task: the task.
        config: the experiment; `eval`, `objective.matryoshka` and `seed` are read.
        main_only: whether to measure only the task's own view at full width.

    Raises:
        SailError: no query can be scored under the task's own view.
    """
    views = source.views(task, [task.own_view] if main_only else _views(task))
    queries, corpus = source.vectors(task, views)
    results = []
    for number, view in enumerate(views):
        for width in [source.width] if main_only else _widths(config, source.width):
            found = corpus[view.target]
            cut = _cut(source, task, queries[view.query], width), found[:, :width]
            own = number == 0
            only_in_matrix = not own and view not in task.further_views()
            families = ("recall",) if only_in_matrix else families_of(task)
            measured = measure(task, *cut, config, families=families, own_view=own, processes=source.processes)
            if measured is not None:
                result = _result(source, task, view, own, width, measured, found, config)
                results.append(dataclasses.replace(result, chance=None) if only_in_matrix else result)
            elif own:
                raise SailError(
                    f"No query of config.eval.tasks.{task.name} can be scored under the view {view}: none has an "
                    "embedding and a relevant item that has one."
                )
    return results


def _views(task: RetrievalTask) -> list[Pattern]:
    """Returns the views of a task, each once."""
    views = [task.own_view, *task.further_views()]
    if task.settings.modality_matrix:
        views += [Pattern(query, target) for query in _sets(task.queries) for target in _sets(task.corpus)]
    return list(dict.fromkeys(views))


def _sets(entries: Sequence[int | str] | np.ndarray) -> tuple[str, ...]:
    """Returns the sets of modalities of one side of the matrix; texts have only "T"."""
    return ("T",) if all(isinstance(entry, str) for entry in entries) else MODALITY_SETS


def _widths(config: Config, full: int) -> list[int]:
    """Returns the widths to which vectors are cut, the full one first."""
    widths = config.eval.widths or config.objective.matryoshka
    return [full, *sorted({width for width in widths if width < full}, reverse=True)]


def _cut(source: VectorSource, task: RetrievalTask, vectors: np.ndarray, width: int) -> np.ndarray:
    """Returns the vectors of the queries at a width, [Q, width]."""
    return vectors[:, :width] if task.sequences is None else source.pool(vectors, task.sequences, width)


def _result(
    source: VectorSource,
    task: RetrievalTask,
    view: Pattern,
    own: bool,
    width: int,
    measured: Measurement,
    corpus: np.ndarray,
    config: Config,
) -> TaskResult:
    full = width == source.width
    main = own and full
    return TaskResult(
        model=source.name,
        task=task.name,
        view=view,
        main=main,
        own_view=own,
        width=width,
        full=full,
        metrics=measured.metrics,
        queries=measured.queries,
        skipped=measured.skipped,
        corpus=len(corpus),
        histograms=measured.histograms,
        chance=measured.chance,
        rows=measured.rows if main else None,
        cosines=measured.cosines if main else None,
        sample=_sample(corpus, config.seed) if main else None,
    )


def _sample(corpus: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws rows of the corpus that have a vector, ascending, and returns them with their vectors."""
    rows = sample_rows(np.random.default_rng(seed), np.flatnonzero(corpus.any(axis=-1)), _SAMPLE)
    return rows, np.array(corpus[rows])


def _has_text(task: RetrievalTask) -> bool:
    return task.sequences is None and all("T" in side for side in task.own_view)


def _run_tfidf(task: RetrievalTask, store: ItemStore, config: Config) -> TaskResult:
    queries = [shown_fields(item, task.query_view.fields) for item in task.query_items(store)]
    corpus = [shown_fields(item, task.target_view.fields) for item in task.corpus_items(store)]
    rows, cosines = tfidf_top_k(queries, corpus, most_results(config), exclude=task.exclude)
    return ranked_result("tfidf", Pattern("T", "T"), task, rows, cosines, config)


def most_results(config: Config) -> int:
    """Returns the number of results of a query that the figures need."""
    return max(*config.eval.ks, *ACCURACY_KS, GALLERY)


def ranked_result(
    model: str, view: Pattern, task: RetrievalTask, rows: np.ndarray, scores: np.ndarray, config: Config
) -> TaskResult:
    """Returns the result of a baseline that ranks rows of the corpus without vectors.

    Args:
        model: name of the baseline.
        view: what it shows of queries and corpus.
        task: the task.
        rows: [Q, K] int64, best first, -1 where there are no more.
        scores: [Q, K] float32.
        config: the experiment; `eval` is read.
    """
    kept = [query for query, relevant in enumerate(task.relevant) if len(relevant)]
    relevant = [task.relevant[query] for query in kept]
    return TaskResult(
        model=model,
        task=task.name,
        view=view,
        main=True,
        own_view=True,
        width=0,
        full=True,
        metrics=ranked_metrics(rows[kept], relevant, config.eval.ks, families_of(task)),
        queries=len(kept),
        skipped=len(task.relevant) - len(kept) + task.left_out,
        corpus=len(task.corpus),
        rows=rows[:, :GALLERY],
        cosines=scores[:, :GALLERY],
    )


def shown_results(results: list[TaskResult], tasks: dict[str, RetrievalTask]) -> list[TaskResult]:
    """Returns the results for tables: at full width, without views that are only in the matrix."""
    further = {name: task.further_views() for name, task in tasks.items()}
    return [r for r in results if r.full and (r.own_view or r.view in further[r.task])]


def headline(result: TaskResult) -> dict[str, float]:
    """Returns the metrics for tables: recalls, but those that count all of a small corpus, or accuracy."""
    found = {name: value for name, value in result.metrics.items() if name.startswith(("recall@", "accuracy@"))}
    least = min((int(name[7:]) for name in found if name.startswith("recall@")), default=0)
    most = max(least, result.corpus - 1)
    return {name: value for name, value in found.items() if name.startswith("accuracy@") or int(name[7:]) <= most}


def metrics_tree(results: list[TaskResult]) -> dict[str, dict[str, float | None]]:
    """Returns the content of metrics.json: model -> "TASK[/VIEW][/dWIDTH]/METRIC" -> value."""
    tree: dict[str, dict[str, float | None]] = {}
    for result in results:
        counts = {"queries": result.queries, "skipped": result.skipped, "corpus": result.corpus}
        figures = {**_finite(result.metrics), **counts}
        tree.setdefault(result.model, {}).update({f"{result.prefix}/{name}": v for name, v in figures.items()})
    return tree


def evaluation_record(results: list[TaskResult], step: int | None) -> dict[str, Any]:
    """Returns the content of evaluation.json: all results with their histograms.

    Args:
        results: the results.
        step: step of the checkpoint; None for embeddings read from a folder.
    """
    names = ("model", "task", "view", "main", "width", "queries", "skipped", "corpus", "histograms")
    rows = [{n: getattr(r, n) for n in names} | {"view": str(r.view), "metrics": _finite(r.metrics)} for r in results]
    return {"step": step, "results": rows}


def _finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """Replaces infinity and NaN by None, since JSON has neither."""
    return {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
