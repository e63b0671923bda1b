"""Takes example searches from the data: queries of the tasks, else texts of items."""

import contextlib
from collections.abc import Iterator

from sail_jax.buckets import place
from sail_jax.config import Config
from sail_jax.data.store import ItemStore
from sail_jax.data.tables import PairTable
from sail_jax.errors import SailError

_MOST, _LONGEST = 6, 60


def example_searches(config: Config, store: ItemStore | None) -> list[str]:
    """Returns a few short texts to search for; none where neither tasks nor items have any."""
    texts: list[str] = []
    for source in (_queries(config), _titles(store)):
        for text in source:
            if text.strip() and len(text) <= _LONGEST and text not in texts:
                texts.append(text)
            if len(texts) == _MOST:
                return texts
    return texts


def _queries(config: Config) -> Iterator[str]:
    """Yields the texts of the queries of the retrieval tasks, as far as their tables are there."""
    for task in config.eval.tasks.values():
        if task.kind != "retrieval":
            continue
        with contextlib.suppress(SailError, OSError):
            table = PairTable.open(place(config.data.dir) / place(task.table), split=task.split)
            for pair in next(table.iter_batches(), []):
                yield pair.query_text or ""


def _titles(store: ItemStore | None) -> Iterator[str]:
    for position in range(min(len(store), _MOST) if store is not None else 0):
        yield store[position].text.get("title", "")
