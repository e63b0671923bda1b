"""Runs the tasks of a config on the trained model, on the model as it was before training, and on the text baseline."""

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sail_jax.config import Config
from sail_jax.config.training import MeshConfig
from sail_jax.convert.init_from import check_sources, initial_params
from sail_jax.data.pipeline import make_extractor, open_store
from sail_jax.data.prompts import shown_fields
from sail_jax.data.store import ItemStore
from sail_jax.embedding import embedder as embedder_lib
from sail_jax.embedding.embedder import Embedder
from sail_jax.errors import SailError
from sail_jax.evaluation.classification import ACCURACY_KS
from sail_jax.evaluation.metrics.measure import GALLERY, Measurement, families_of, measure, ranked_metrics
from sail_jax.evaluation.pairs import sample_rows
from sail_jax.evaluation.retrieval import RetrievalTask
from sail_jax.evaluation.sides import ModelSides, Sides, StoredSides
from sail_jax.evaluation.tasks import load_tasks
from sail_jax.evaluation.tfidf import tfidf_top_k
from sail_jax.patterns import MODALITY_SETS, Pattern
from sail_jax.runs.checkpoints import Checkpoints
from sail_jax.runs.directory import RunDirectory
from sail_jax.sharding.mesh import make_mesh

_SAMPLE = 1500  # rows of the corpus whose vectors are kept, for a map


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """Figures of one model on one task, under one view and at one width.

    Attributes:
        model: "trained", "untrained", "embeddings" (vectors that were read) or "tfidf".
        task: name of the task.
        view: the modalities of queries and of the corpus.
        main: whether it is the task's own view at full width.
        metrics: name -> value.
        queries: queries that count.
        skipped: queries left out: nothing is relevant to them, or they or all that is relevant lack the task's modalities.
        corpus: items, or labels, that are searched.
        width: how many dimensions of the vectors count; 0 for TF-IDF.
        rows: [Q, 8] int64, the nearest rows of the corpus; None unless it is a main result.
        cosines: [Q, 8] float32, likewise.
        histograms: "edges", "positive" and "negative" of the cosines; None where separability is not measured.
        sample: rows of the corpus, at most 1,500, and their vectors [n, D]; of main results alone, and not of TF-IDF.
        own_view: whether it is the task's own view.
        full: whether the width is all there is.
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

    @property
    def prefix(self) -> str:
        """Where its figures stand in metrics.json: TASK, /VIEW unless it is the task's own, /dWIDTH unless it is the full one.

        VIEW is "V" where both sides show the same, and "V->T" where they do not.
        """
        view = "" if self.own_view else f"/{self.view.short}"
        return f"{self.task}{view}{'' if self.full else f'/d{self.width}'}"


def run_suite(
    config: Config, workdir: Path, embeddings: Path | None = None
) -> tuple[list[TaskResult], dict[str, RetrievalTask], ItemStore]:
    """Evaluates the run in `workdir`, or a folder of embeddings.

    Args:
        config: the experiment; `eval` says what is measured.
        workdir: the run directory; vectors lie there for the time.
        embeddings: folder that `embed` wrote, to be evaluated in place of a checkpoint.

    Raises:
        SailError: when there is no task, no checkpoint or no embeddings, or a setting is wrong.
    """
    if config.eval.untrained and embeddings is None:
        try:
            check_sources(config)
        except SailError as error:
            raise SailError(f"{error} Or leave the untrained model out: --config.eval.untrained=False.") from error
    store = open_store(config)
    tasks = load_tasks(config, store)
    results: list[TaskResult] = []
    for make in _models(config, workdir, embeddings, tasks, store):
        with tempfile.TemporaryDirectory(prefix="embeddings-", dir=workdir) as scratch:
            sides = make(Path(scratch))
            for task in tasks.values():
                results += evaluate_task(sides, task, config)
    if config.eval.tfidf:
        results += [_run_tfidf(task, store, config) for task in tasks.values() if _has_text(task)]
    return results, tasks, store


def _models(
    config: Config, workdir: Path, embeddings: Path | None, tasks: dict[str, RetrievalTask], store: ItemStore
) -> Iterator[Callable[[Path], Sides]]:
    """What is evaluated, each made with a folder for its vectors."""
    if embeddings is not None:
        yield lambda scratch: StoredSides(embeddings, list(tasks.values()), store, scratch)
        return
    yield lambda scratch: ModelSides("trained", embedder_lib.load(workdir, config), store, scratch)
    if config.eval.untrained:
        yield lambda scratch: ModelSides("untrained", _untrained(config), store, scratch)


def _untrained(config: Config) -> Embedder:
    """The model as it was before the first step of training."""
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    params, _ = initial_params(config, mesh)
    return Embedder(config, params, make_extractor(config), mesh)


def evaluate_task(sides: Sides, task: RetrievalTask, config: Config, *, main_only: bool = False) -> list[TaskResult]:
    """Measures a task: its own view first, then further ones and the matrix, each at all widths, the full one first.

    Args:
        sides: where the vectors come from.
        task: the task.
        config: `eval`, `objective.matryoshka` and `seed` count.
        main_only: the task's own view at full width alone.

    Raises:
        SailError: when no query can be scored under the task's own view.
    """
    views = sides.views(task, [task.own_view] if main_only else _views(task))
    queries, corpus = sides.vectors(task, views)
    results = []
    for number, view in enumerate(views):
        for width in [sides.width] if main_only else _widths(config, sides.width):
            found = corpus[view.target]
            cut = _cut(sides, task, queries[view.query], width), found[:, :width]
            own = number == 0
            in_matrix_alone = not own and view not in task.further_views()
            families = ("recall",) if in_matrix_alone else families_of(task)
            measured = measure(task, *cut, config, families=families, own_view=own)
            if measured is not None:
                results.append(_result(sides, task, view, own, width, measured, found, config))
            elif own:
                raise SailError(
                    f"No query of config.eval.tasks.{task.name} can be scored under the view {view}: none has an "
                    "embedding and something relevant that has one."
                )
    return results


def _views(task: RetrievalTask) -> list[Pattern]:
    """The views of a task, each once."""
    views = [task.own_view, *task.further_views()]
    if task.settings.modality_matrix:
        views += [Pattern(query, target) for query in _sets(task.queries) for target in _sets(task.corpus)]
    return list(dict.fromkeys(views))


def _sets(things: Sequence[int | str] | np.ndarray) -> tuple[str, ...]:
    """Sets of modalities of one side of the matrix; texts show text alone."""
    return ("T",) if all(isinstance(thing, str) for thing in things) else MODALITY_SETS


def _widths(config: Config, full: int) -> list[int]:
    """The sizes at which vectors are cut, the full one first."""
    widths = config.eval.widths or config.objective.matryoshka
    return [full, *sorted({width for width in widths if width < full}, reverse=True)]


def _cut(sides: Sides, task: RetrievalTask, vectors: np.ndarray, width: int) -> np.ndarray:
    """[Q, width], the vectors of the queries."""
    return vectors[:, :width] if task.sequences is None else sides.pool(vectors, task.sequences, width)


def _result(
    sides: Sides,
    task: RetrievalTask,
    view: Pattern,
    own: bool,
    width: int,
    measured: Measurement,
    corpus: np.ndarray,
    config: Config,
) -> TaskResult:
    full = width == sides.width
    main = own and full
    return TaskResult(
        model=sides.name,
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
        rows=measured.rows if main else None,
        cosines=measured.cosines if main else None,
        sample=_sample(corpus, config.seed) if main else None,
    )


def _sample(corpus: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the corpus that have a vector, in ascending order, and their vectors."""
    rows = sample_rows(np.random.default_rng(seed), np.flatnonzero(corpus.any(axis=-1)), _SAMPLE)
    return rows, np.array(corpus[rows])


def _has_text(task: RetrievalTask) -> bool:
    return task.sequences is None and all("T" in side for side in task.own_view)


def _run_tfidf(task: RetrievalTask, store: ItemStore, config: Config) -> TaskResult:
    queries = [shown_fields(item, task.query_view.fields) for item in task.query_items(store)]
    corpus = [shown_fields(item, task.target_view.fields) for item in task.corpus_items(store)]
    rows, cosines = tfidf_top_k(queries, corpus, max(*config.eval.ks, *ACCURACY_KS, GALLERY), exclude=task.exclude)
    kept = [query for query, relevant in enumerate(task.relevant) if len(relevant)]
    relevant = [task.relevant[query] for query in kept]
    return TaskResult(
        model="tfidf",
        task=task.name,
        view=Pattern("T", "T"),
        main=True,
        own_view=True,
        width=0,
        full=True,
        metrics=ranked_metrics(rows[kept], relevant, config.eval.ks, families_of(task)),
        queries=len(kept),
        skipped=len(queries) - len(kept) + task.left_out,
        corpus=len(corpus),
        rows=rows[:, :GALLERY],
        cosines=cosines[:, :GALLERY],
    )


def shown_results(results: list[TaskResult], tasks: dict[str, RetrievalTask]) -> list[TaskResult]:
    """The results of the tables: at full width, without those of the matrix alone."""
    further = {name: task.further_views() for name, task in tasks.items()}
    return [r for r in results if r.full and (r.own_view or r.view in further[r.task])]


def headline(result: TaskResult) -> dict[str, float]:
    """The figures of the tables: recall, or accuracy."""
    return {name: value for name, value in result.metrics.items() if name.startswith(("recall@", "accuracy@"))}


def evaluated_step(workdir: Path) -> int:
    """Steps done at the checkpoint that is evaluated."""
    checkpoints = Checkpoints(RunDirectory(workdir))
    try:
        return checkpoints.latest()
    finally:
        checkpoints.close()


def metrics_tree(results: list[TaskResult]) -> dict[str, dict[str, float | None]]:
    """Model -> "TASK/METRIC", "TASK/VIEW/METRIC", "TASK/dWIDTH/METRIC", ... -> value, as metrics.json holds it."""
    tree: dict[str, dict[str, float | None]] = {}
    for result in results:
        counts = {"queries": result.queries, "skipped": result.skipped, "corpus": result.corpus}
        figures = {**_finite(result.metrics), **counts}
        tree.setdefault(result.model, {}).update({f"{result.prefix}/{name}": v for name, v in figures.items()})
    return tree


def evaluation_record(results: list[TaskResult], step: int | None) -> dict[str, Any]:
    """All results with their histograms, as evaluation.json holds them.

    Args:
        results: the results.
        step: steps done at the checkpoint; None for embeddings that were read.
    """
    names = ("model", "task", "view", "main", "width", "queries", "skipped", "corpus", "histograms")
    rows = [{n: getattr(r, n) for n in names} | {"view": str(r.view), "metrics": _finite(r.metrics)} for r in results]
    return {"step": step, "results": rows}


def _finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """JSON has no infinity, and no NaN."""
    return {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
