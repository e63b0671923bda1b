"""Compares what two models find for one query, whose item sets may differ."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from sail_jax.data.store import ItemStore
from sail_jax.search.searcher import Searcher


class Beside(NamedTuple):
    """A second model, shown beside the first one.

    Attributes:
        title: heading of its results.
        searcher: searches the items that it embedded.
        store: source of captions and images of items that the store of the first one lacks, or None.
    """

    title: str
    searcher: Searcher
    store: ItemStore | None = None


def shared_items(first: Searcher, second: Searcher) -> int:
    """Returns the number of items that both search."""
    return int(pc.sum(pc.is_in(first.ids, value_set=second.ids)).as_py() or 0)


def common_items(hits: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> int:
    """Returns the number of items that are in both lists of results, by their "id"."""
    return len({hit["id"] for hit in hits} & {hit["id"] for hit in others})


def with_ranks(hits: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], there: Searcher) -> list[dict]:
    """Returns the results of one model, each with its place in those of the other one.

    Args:
        hits: results of one model, as dicts with an "id".
        others: results of the other one, best first.
        there: the searcher of the other one.

    Returns:
        The hits with "rank_there", from 1, or None if it is not among the others, and "only_here", whether `there` does
        not search this item at all.
    """
    ranks = {hit["id"]: rank for rank, hit in enumerate(others, 1)}
    searched = _searched([hit["id"] for hit in hits if hit["id"] not in ranks], there.ids)
    return [
        hit | {"rank_there": rank, "only_here": rank is None and hit["id"] not in searched}
        for hit in hits
        for rank in [ranks.get(hit["id"])]
    ]


def _searched(item_ids: list[str], ids: pa.Array) -> set[str]:
    """Returns those item ids that are among `ids`, which may be very many: they are read once."""
    return set(ids.filter(pc.is_in(ids, value_set=pa.array(item_ids, ids.type))).to_pylist()) if item_ids else set()
