"""Finds wrong answers that training had as right ones of the same query."""

from collections.abc import Collection, Sequence

import numpy as np

from sail_jax.buckets import place
from sail_jax.config import Config
from sail_jax.data.store import ItemStore
from sail_jax.data.tables import PairTable, pair_positions
from sail_jax.evaluation.retrieval import RetrievalTask
from sail_jax.evaluation.suite import TaskResult

# Larger tables are not read through for this.
_MOST_ROWS = 2_000_000


def taught_first(config: Config, result: TaskResult, task: RetrievalTask, store: ItemStore) -> np.ndarray:
    """Returns whether what a query finds first is a right answer of it in a split that is trained on.

    Args:
        config: the experiment, whose training sets are looked at that read the table of the task.
        result: what the queries find.
        task: the task; its corpus are items.
        store: the items.

    Returns:
        [Q] bool; False where the table has too many rows to look.
    """
    found = np.zeros(len(task.queries), bool)
    if isinstance(task.corpus, list):
        return found
    first = [int(task.corpus[rows[0]]) if rows[0] >= 0 else -1 for rows in result.rows]
    places = {
        (query, position): number for number, (query, position) in enumerate(zip(task.queries, first, strict=True))
    }
    for split in _splits(config, task):
        table = PairTable.open(place(config.data.dir) / place(task.settings.table), split=split)
        if len(table) <= _MOST_ROWS:
            found[_rows_among(table, places, store)] = True
    return found


def _splits(config: Config, task: RetrievalTask) -> Collection[str]:
    """Returns the splits of the table of a task that training sets draw."""
    sets = [one for one in config.data.datasets.values() if one.kind == "pairs" and one.weight > 0]
    return {one.split for one in sets if one.table == task.settings.table} - {task.settings.split}


def _rows_among(table: PairTable, places: dict[tuple[int | str, int], int], store: ItemStore) -> Sequence[int]:
    """Returns the numbers of those pairs of query and position that a table has."""
    rows = []
    for batch in table.iter_batches():
        pairs = zip(*pair_positions(batch, store, str(table.path)), strict=True)
        rows += [places[pair] for pair in pairs if pair in places]
    return rows
