"""Collects the facts, gallery and maps of an evaluated run, which need its model and items."""

import importlib.metadata
import platform

import jax
import numpy as np

from sail_jax.config import Config, total_steps
from sail_jax.config.schema import to_dict
from sail_jax.data.store import ItemStore
from sail_jax.evaluation.report.cards import card_of
from sail_jax.evaluation.report.data import RunReport, SpaceMap
from sail_jax.evaluation.report.failing import failures_of
from sail_jax.evaluation.report.gallery import GalleryRow
from sail_jax.evaluation.report.map_items import described, near
from sail_jax.evaluation.retrieval import RetrievalTask
from sail_jax.evaluation.suite import TaskResult
from sail_jax.models.describe import parameter_table
from sail_jax.runs.directory import RunDirectory, read_training_log
from sail_jax.vectors.projection import project

_QUERIES_PER_TASK = 6
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers")


def gather(
    config: Config, run: RunDirectory, results: list[TaskResult], tasks: dict[str, RetrievalTask], store: ItemStore
) -> RunReport:
    """Returns the parts of a run's report that report_data.json keeps."""
    mains = _mains(results)
    return RunReport(
        name=run.path.name,
        facts=_facts(config, read_training_log(run), store),
        gallery=[
            row for result in mains if result.task in tasks for row in _gallery(result, tasks[result.task], store)
        ],
        maps=[_map(result, tasks[result.task], store, config.seed) for result in mains if result.sample is not None],
        failures=[
            found
            for result in mains
            if result.task in tasks and (found := failures_of(config, result, tasks[result.task], store)) is not None
        ],
        settings=to_dict(config),
    )


def _mains(results: list[TaskResult]) -> list[TaskResult]:
    """Returns the result of each task under its own view at full width."""
    mains: dict[str, TaskResult] = {}
    for result in results:
        if result.model in ("trained", "embeddings") and result.main:
            mains[result.task] = max(mains.get(result.task, result), result, key=lambda r: r.width)
    return list(mains.values())


def _facts(config: Config, log: list[dict], store: ItemStore) -> dict[str, str]:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    last = log[-1] if log else {}
    return {
        "Steps": f"{last.get('step', 0)} of {total_steps(config)}, {config.data.batch_size} pairs each",
        "Parameters": f"{dict(parameter_table(config.model))['total']:,}",
        "Items": f"{len(store):,}",
        "Training time": f"{last.get('elapsed_seconds', 0):.0f} s",
        "Devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}, Python {platform.python_version()}",
        "Versions": versions,
    }


def _gallery(result: TaskResult, task: RetrievalTask, store: ItemStore) -> list[GalleryRow]:
    if result.rows is None or task.sequences is not None:
        return []  # a sequence of items cannot be shown as a card
    count = len(task.queries)
    chosen = sorted({i * count // _QUERIES_PER_TASK for i in range(min(_QUERIES_PER_TASK, count))})
    rows = []
    for query in chosen:
        found = [
            card_of(task.corpus_item(row, store), relevant=bool(row in task.relevant[query]), score=float(cosine))
            for row, cosine in zip(result.rows[query], result.cosines[query], strict=True)
            if row >= 0
        ]
        asked = card_of(store.entry(task.queries[query]), modalities=task.query_view.modalities)
        rows.append(GalleryRow(task.name, asked, found))
    return rows


def _map(result: TaskResult, task: RetrievalTask, store: ItemStore, seed: int) -> SpaceMap:
    rows, vectors = (np.asarray(part) for part in result.sample)
    shown = np.flatnonzero(vectors.any(axis=-1))  # items that lack the task's modalities have no embedding
    # In random order, so that the first of them are a sample.
    chosen = np.random.default_rng(seed).permutation(shown)
    items = (task.corpus_item(int(row), store) for row in rows[chosen])
    points = np.round(project(vectors[chosen], seed), 2).tolist()
    return SpaceMap(result.task, points, **described(items)._asdict(), neighbours=near(vectors[chosen]))
