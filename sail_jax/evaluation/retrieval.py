"""A retrieval task: queries of a pair table, the corpus they search, and what is relevant."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sail_jax.config import Config, EvalTaskConfig
from sail_jax.data.features import View
from sail_jax.data.store import ItemStore
from sail_jax.data.tables import PairTable
from sail_jax.data.views import task_views
from sail_jax.errors import SailError
from sail_jax.items import Item, check_modalities, text_item


@dataclasses.dataclass(frozen=True)
class RetrievalTask:
    """A task, resolved against the item store.

    Attributes:
        name: its name in the config.
        settings: its settings.
        queries: [Q] each a position in the store (int) or a free text (str).
        corpus: [N] int64 positions in the store, ascending.
        relevant: Q arrays of rows of `corpus`.
        exclude: [Q] int64 row of `corpus` that is the query itself, or -1.
        query_view: what is shown of a query.
        target_view: what is shown of the corpus.
    """

    name: str
    settings: EvalTaskConfig
    queries: list[int | str]
    corpus: np.ndarray
    relevant: list[np.ndarray]
    exclude: np.ndarray
    query_view: View
    target_view: View

    def further_views(self) -> list[str]:
        """Modality sets that are reported besides the task's own, each shown on both sides."""
        return [check_modalities(v, setting=f"config.eval.tasks.{self.name}.views") for v in self.settings.views]

    def query_items(self, store: ItemStore) -> Iterator[Item]:
        """The queries as items, read one at a time."""
        return (text_item(query) if isinstance(query, str) else store[query] for query in self.queries)

    def corpus_items(self, store: ItemStore) -> Iterator[Item]:
        """The corpus, read one item at a time."""
        return (store[int(position)] for position in self.corpus)


def load_task(config: Config, name: str, store: ItemStore) -> RetrievalTask:
    """Resolves the task `name` of a config.

    An item is never looked for as its own neighbour, unless the task shows it differently on the two sides (image to
    text, say) and asks for just that.

    Raises:
        SailError: when a setting is wrong, the table has no row in the split, or an id is unknown.
    """
    settings, where = config.eval.tasks[name], f"config.eval.tasks.{name}"
    query_view, target_view = task_views(config, name)
    table = PairTable.open(Path(config.data.dir) / settings.table, split=settings.split)
    wanted = _relevant_positions(table, store, settings.both_ways)
    if not wanted:
        raise SailError(f"{where}: {settings.table} has no row in the split {settings.split!r}.")
    targets = np.unique(np.concatenate([np.asarray(v, np.int64) for v in wanted.values()]))
    corpus = np.arange(len(store)) if settings.corpus == "items" else targets
    queries = list(wanted)
    own = np.array([-1 if isinstance(q, str) else q for q in queries])
    exclude = np.where(np.isin(own, corpus), np.searchsorted(corpus, own), -1)
    relevant = [np.searchsorted(corpus, np.unique(wanted[query])) for query in queries]
    finds_itself = np.array([row in rows for row, rows in zip(exclude, relevant, strict=True)])
    return RetrievalTask(
        name=name,
        settings=settings,
        queries=queries,
        corpus=corpus,
        relevant=relevant,
        exclude=np.where(finds_itself, -1, exclude),
        query_view=query_view,
        target_view=target_view,
    )


def _relevant_positions(table: PairTable, store: ItemStore, both_ways: bool) -> dict[int | str, list[int]]:
    """Query (position or text) -> positions of its relevant items, in the order of the table."""
    wanted: dict[int | str, list[int]] = {}
    for row in range(len(table)):
        pair = table[row]
        target = _position(store, pair.target_id)
        query = pair.query_text if pair.query_id is None else _position(store, pair.query_id)
        wanted.setdefault(query, []).append(target)
        if both_ways and not isinstance(query, str):
            wanted.setdefault(target, []).append(query)
    return wanted


def _position(store: ItemStore, item_id: str) -> int:
    position = store.position(item_id)
    if position is None:
        raise SailError(f"The table refers to the item {item_id!r}, which {store.path} does not hold; ingest again.")
    return position
