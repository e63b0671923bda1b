"""Sequence tasks: find the next item of a history (arXiv 2510.12709, sec. 3.3.5 and 4.2).

A sequence is embedded by the mean of its items' unit embeddings, or by the model's sequence encoder if it has one.
Tables are Parquet files of `item_ids` (a list of strings), `target_id`, and optionally `split`.
"""

from collections.abc import Sequence

import numpy as np

from sail_jax.buckets import place
from sail_jax.config import Config
from sail_jax.data.sequence_tables import stream_sequences
from sail_jax.data.store import ItemStore, known_positions
from sail_jax.data.views import task_views
from sail_jax.errors import SailError
from sail_jax.evaluation.retrieval import RetrievalTask, all_contents
from sail_jax.vectors.unit import unit_rows


def mean_pool(vectors: np.ndarray, sequences: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the mean of the unit vectors of each sequence; items without a vector are left out.

    Args:
        vectors: [n, D], may be memory-mapped; rows of zeros are items without a vector.
        sequences: Q arrays of rows of `vectors`; an item may occur several times in a sequence.

    Returns:
        [Q, D] float32; zeros for a sequence without any vector.
    """
    pooled = np.zeros((len(sequences), vectors.shape[1]), np.float32)
    for row, rows in enumerate(sequences):
        items = unit_rows(vectors[rows])
        pooled[row] = items.sum(axis=0) / max(np.count_nonzero(items.any(axis=1)), 1)
    return pooled


def load_sequences(config: Config, name: str, store: ItemStore) -> RetrievalTask:
    """Resolves a task of kind "sequence": histories of items, and the item that came next.

    The items of a history stay in the corpus, since the target may be among them. Items with equal content are one.

    Raises:
        SailError: a setting or the table is wrong, the table has no row in the split, or an id is unknown.
    """
    settings = config.eval.tasks[name]
    query_view, target_view = task_views(config, name)
    path = place(config.data.dir) / place(settings.table)
    places: dict[int, int] = {}
    sequences: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for histories, ids in stream_sequences(path, settings.split):
        targets.append(store.first_positions(known_positions(ids, store, str(path))))
        shown = known_positions([item_id for history in histories for item_id in history], store, str(path))
        items = store.first_positions(shown).tolist()
        flat = np.array([places.setdefault(item, len(places)) for item in items], np.int64)
        sequences += np.split(flat, np.cumsum([len(history) for history in histories])[:-1])
    if not sequences:
        raise SailError(f"config.eval.tasks.{name}: {path} has no row in the split {settings.split!r}.")
    target = np.concatenate(targets)
    corpus = all_contents(store) if settings.corpus == "items" else np.unique(target)
    rows = np.searchsorted(corpus, target)
    return RetrievalTask(
        name=name,
        settings=settings,
        queries=list(places),
        corpus=corpus,
        relevant=[row[None] for row in rows],
        exclude=np.full(len(sequences), -1, np.int64),
        query_view=query_view,
        target_view=target_view,
        pairs=np.stack([np.arange(len(rows)), rows], axis=1),
        positive=np.ones(len(rows), bool),
        sequences=sequences,
    )
