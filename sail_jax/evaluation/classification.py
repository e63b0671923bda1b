"""Classification: finds the label whose text is nearest to an item.

Sources: METHOD table 1, CLS; arXiv 2510.12709, sec. 3.1.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sail_jax.buckets import place
from sail_jax.config import Config
from sail_jax.data.store import ItemStore, known_positions
from sail_jax.data.tables import PairTable
from sail_jax.data.views import task_views
from sail_jax.errors import SailError
from sail_jax.evaluation.metrics.recall import relevant_hits
from sail_jax.evaluation.retrieval import RetrievalTask, relevant_rows
from sail_jax.progress import track

# Cut-offs: an item counts as correct at k if one of its labels is among the k nearest.
ACCURACY_KS = (1, 5)


def accuracy_at_k(
    rows: np.ndarray, relevant: Sequence[np.ndarray], ks: Sequence[int] = ACCURACY_KS
) -> dict[str, float]:
    """Returns the share of items that have one of their labels among the k nearest.

    Args:
        rows: [Q, K] int, the nearest labels of each item, best first; -1 is no label.
        relevant: Q arrays of the labels of each item, none empty.
        ks: cut-offs, at most K.

    Returns:
        "accuracy@k" -> share in [0, 1].
    """
    hits, _ = relevant_hits(rows, relevant)
    return {f"accuracy@{k}": float(hits[:, :k].any(axis=1).mean()) for k in ks}


def load_classification(config: Config, name: str, store: ItemStore) -> RetrievalTask:
    """Resolves a task of kind "classification": items with labels, and the texts of all their labels.

    The items are those of either side of a pair table, or all items of the store if the task names no table. Labels are
    embedded like free text, under the instruction of the target side. Each record is read once for its labels.

    Raises:
        SailError: a setting is wrong, no item has a label, or an id is unknown.
    """
    settings = config.eval.tasks[name]
    query_view, target_view = task_views(config, name)
    positions = _table_positions(config, name, store) if settings.table else range(len(store))
    queries: list[int] = []
    pairs: list[tuple[int, str]] = []
    for position in track(positions, description=f"{name}: labels", transient=True):
        labels = {label for label in store[int(position)].labels if label.strip()}
        if labels:
            pairs += [(len(queries), label) for label in labels]
            queries.append(int(position))
    if not queries:
        raise SailError(
            f"config.eval.tasks.{name} classifies items, but none of its {len(positions)} items has a label; name the "
            "column of the labels in config.ingest.source.labels and ingest again, or remove the task."
        )
    labels = sorted({label for _, label in pairs})
    row_of = {label: row for row, label in enumerate(labels)}
    listed = np.array(sorted((query, row_of[label]) for query, label in pairs), np.int64)
    return RetrievalTask(
        name=name,
        settings=settings,
        queries=queries,
        corpus=labels,
        relevant=relevant_rows(listed, len(queries)),
        exclude=np.full(len(queries), -1, np.int64),
        query_view=query_view,
        target_view=dataclasses.replace(target_view, modalities="T"),
        pairs=listed,
        positive=np.ones(len(listed), bool),
        left_out=len(positions) - len(queries),
    )


def _table_positions(config: Config, name: str, store: ItemStore) -> np.ndarray:
    """Returns the positions of the items of a pair table, each once, ascending."""
    settings = config.eval.tasks[name]
    table = PairTable.open(place(config.data.dir) / place(settings.table), split=settings.split)
    found = np.zeros(0, np.int64)
    for batch in table.iter_batches():
        ids = [item_id for pair in batch for item_id in (pair.query_id, pair.target_id) if item_id is not None]
        found = np.union1d(found, known_positions(list(dict.fromkeys(ids)), store, str(table.path)))
    return found
