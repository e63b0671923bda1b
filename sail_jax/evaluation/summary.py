"""Gathers what the report shows of a run: facts, the loss curve, recall rows, and a sheet of queries."""

import importlib.metadata
import platform

import jax

from sail_jax.checkpoint import RunDirectory
from sail_jax.config import Config
from sail_jax.data.prompts import shown_fields
from sail_jax.data.store import ItemStore
from sail_jax.evaluation.report import Card, GalleryRow, RecallRow, Report
from sail_jax.evaluation.retrieval import RetrievalTask
from sail_jax.evaluation.suite import Result, headline, shown_results
from sail_jax.items import TEXT_FIELDS, Item, text_item
from sail_jax.models.describe import parameter_table
from sail_jax.schema import to_dict
from sail_jax.training.log import read_training_log
from sail_jax.training.stages import total_steps

_QUERIES_PER_TASK = 6
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers")


def build_report(
    config: Config, run: RunDirectory, results: list[Result], tasks: dict[str, RetrievalTask], store: ItemStore
) -> Report:
    """The report of an evaluated run."""
    log = read_training_log(run)
    return Report(
        title=f"sail_jax: {run.path.name}",
        facts=_facts(config, log, store),
        loss_curve={
            name: _curve(log, f"loss/{name}")
            for name in [*config.data.datasets, "mixed"]
            if _curve(log, f"loss/{name}")[0]
        },
        recall=[
            RecallRow(r.task, "TF-IDF" if r.model == "tfidf" else r.model, r.view, headline(r), r.queries, r.corpus)
            for r in shown_results(results, tasks)
        ],
        gallery=[
            row
            for r in results
            if r.model in ("trained", "embeddings") and r.main and tasks[r.task].sequences is None
            for row in _gallery(r, tasks[r.task], store)
        ],
        settings=to_dict(config),
        notes=_notes(results),
    )


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


def _curve(log: list[dict], key: str) -> tuple[list[int], list[float]]:
    lines = [line for line in log if key in line]
    return [line["step"] for line in lines], [line[key] for line in lines]


def _notes(results: list[Result]) -> list[str]:
    notes = []
    for r in results:
        if r.skipped and r.full:
            notes.append(
                f"{r.task}, {r.model}, {r.view}: {r.skipped} queries are left out, because they, or all that is relevant "
                "to them, lack the modalities of the task."
            )
    return notes


def _gallery(result: Result, task: RetrievalTask, store: ItemStore) -> list[GalleryRow]:
    count = len(task.queries)
    chosen = sorted({i * count // _QUERIES_PER_TASK for i in range(min(_QUERIES_PER_TASK, count))})
    rows = []
    for query in chosen:
        found = [
            _card(task.corpus_item(row, store), relevant=row in task.relevant[query], score=float(cosine))
            for row, cosine in zip(result.rows[query], result.cosines[query], strict=True)
            if row >= 0
        ]
        asked = task.queries[query]
        rows.append(GalleryRow(task.name, _card(text_item(asked) if isinstance(asked, str) else store[asked]), found))
    return rows


def _card(item: Item, *, relevant: bool = False, score: float | None = None) -> Card:
    return Card(
        item_id=item.item_id,
        caption=shown_fields(item, TEXT_FIELDS).replace("\n", " · "),
        thumbnail=item.frames[0] if item.frames else None,
        has_audio="A" in item.modalities,
        relevant=relevant,
        score=score,
    )
