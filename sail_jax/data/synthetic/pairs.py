"""Writes the pair tables of a generated world, stretch by stretch.

What is "related" differs by table: the topic, or the theme, look or sound alone. The test tables list, for each of
their queries, all items of the catalogue that are related; training tables hold a few for each item.

Axis letters: N items of the catalogue, P pairs.
"""

import pathlib
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sail_jax.config.data import SyntheticConfig
from sail_jax.data.synthetic.items import (
    MISSING,
    NEAR,
    OFF_DOMAIN,
    PLAIN,
    TWO_LOOKS,
    ItemPlan,
    Members,
    item_id,
    off_domain_pattern,
)
from sail_jax.data.synthetic.topics import FACETS, draws

# Table -> the facet by which its items are related; items of one topic, which have all in common, are left out.
BY_FACET = {"themes": "theme", "looks": "look", "sounds": "sound"}
_STRETCH = 8192
_TRIES = 8  # to draw an item of another topic


class PairWriter:
    """Writes a table of query_id, target_id and split, with further columns, in row groups."""

    def __init__(self, path: pathlib.Path, **further: pa.DataType) -> None:
        names = ("query_id", "target_id", "split")
        self._schema = pa.schema([*((name, pa.string()) for name in names), *further.items()])
        self._writer = pq.ParquetWriter(path, self._schema)
        self._waiting: list[list] = [[] for _ in self._schema]
        self.counts = {"train": 0, "test": 0}

    def write(self, queries: np.ndarray, targets: np.ndarray, split: str, **further: list) -> None:
        """Writes pairs of indices of items, [P] each."""
        ids = (map(item_id, side.tolist()) for side in (queries, targets))
        for column, values in zip(self._waiting, [*ids, [split] * len(queries), *further.values()], strict=True):
            column.extend(values)
        self.counts[split] += len(queries)
        if len(self._waiting[0]) >= _STRETCH:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.table(self._waiting, schema=self._schema))
        self._waiting = [[] for _ in self._schema]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self._waiting[0]:
            self._flush()
        self._writer.close()


def write_pair_tables(folder: pathlib.Path, plan: ItemPlan, config: SyntheticConfig, seed: int) -> dict[str, dict]:
    """Writes all tables of pairs but that of the users; returns their counts of rows by split."""
    counts = {}
    for name in BY_FACET:
        with PairWriter(folder / f"{name}.parquet") as writer:
            for queries, targets in _of_one_facet(name, plan, config, seed):
                writer.write(queries, targets, "train")
            write_tests(writer, plan, PLAIN, name)
        counts[name] = writer.counts
    for kind in (NEAR, TWO_LOOKS, MISSING):
        if kind in plan.queries:
            with PairWriter(folder / f"{kind}.parquet") as writer:
                write_tests(writer, plan, kind, kind)
            counts[kind] = writer.counts
    counts["broad"] = _write_broad(folder / "broad.parquet", plan, config, seed)
    with PairWriter(folder / "clean.parquet") as writer:
        writer.write(
            *_of_one_topic(plan, draws(seed, "clean").integers(plan.catalogue, size=config.clean_pairs), seed), "train"
        )
    counts["clean"] = writer.counts
    for place, kind in enumerate(OFF_DOMAIN if config.off_domain_items else ()):
        first = len(plan.topic_of) + place * config.off_domain_items
        with PairWriter(folder / f"{kind}.parquet") as writer:
            writer.write(*_off_domain_pairs(first, config, draws(seed, f"{kind} pairs")), "train")
        counts[kind] = writer.counts
    return counts


def related(plan: ItemPlan, table: str, topic: int) -> np.ndarray:
    """[T] bool, which topics are related to a topic in the sense of a table."""
    own = np.arange(len(plan.topics)) == topic
    if table not in BY_FACET:
        return own
    values = plan.facets[:, FACETS.index(BY_FACET[table])]
    return (values == values[topic]) & ~own


def tested(plan: ItemPlan, kind: str, table: str) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the test queries of a kind, each with all items of the catalogue that are related to it.

    There is at least one. Where one facet relates items, both sides show it.
    """
    shown = plan.shows(BY_FACET[table]) if table in BY_FACET else np.ones(len(plan.topic_of), bool)
    members = _catalogue(plan, shown)
    for query in plan.queries.get(kind, ()):
        topics = np.flatnonzero(related(plan, table, int(plan.topic_of[query])) & (members.sizes > 0))
        if shown[query] and len(topics):
            yield query, np.sort(np.concatenate([members[topic] for topic in topics]))


def write_tests(writer: PairWriter, plan: ItemPlan, kind: str, table: str) -> None:
    """Writes the test queries of a kind, each with all items of the catalogue that are related to it."""
    for query, targets in tested(plan, kind, table):
        writer.write(np.full(len(targets), query), targets, "test")


def _catalogue(plan: ItemPlan, eligible: np.ndarray | None = None) -> Members:
    """The items of the catalogue by topic."""
    of_catalogue = np.arange(len(plan.topic_of)) < plan.catalogue
    return Members(plan.topic_of, of_catalogue if eligible is None else of_catalogue & eligible, len(plan.topics))


def _stretches(count: int) -> Iterator[np.ndarray]:
    return (np.arange(start, min(start + _STRETCH, count)) for start in range(0, count, _STRETCH))


def _of_one_facet(
    table: str, plan: ItemPlan, config: SyntheticConfig, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields pairs of items of one theme, look or sound and two topics; both show it."""
    facet = BY_FACET[table]
    shown = plan.shows(facet) & (np.arange(len(plan.topic_of)) < plan.catalogue)
    value_of = plan.facets[plan.topic_of, FACETS.index(facet)]
    members = Members(value_of, shown)
    for number, items in enumerate(_stretches(plan.catalogue)):
        rng = draws(seed, table, number)
        queries = np.repeat(items[shown[items]], config.pairs_per_item)
        targets = members.draw(value_of[queries], rng)
        for _ in range(_TRIES):
            same = plan.topic_of[targets] == plan.topic_of[queries]
            targets[same] = members.draw(value_of[queries[same]], rng)
        other = plan.topic_of[targets] != plan.topic_of[queries]
        yield queries[other], targets[other]


def _of_one_topic(plan: ItemPlan, queries: np.ndarray, seed: int, number: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pairs some items with others of their topics."""
    members, rng = _catalogue(plan), draws(seed, "topic pairs", number)
    targets = members.draw(plan.topic_of[queries], rng)
    for _ in range(_TRIES):
        same = targets == queries
        targets[same] = members.draw(plan.topic_of[queries[same]], rng)
    return queries[targets != queries], targets[targets != queries]


def _write_broad(path: pathlib.Path, plan: ItemPlan, config: SyntheticConfig, seed: int) -> dict[str, int]:
    """Writes pairs of items of one topic, of which a share has a target that was drawn from the whole catalogue."""
    with PairWriter(path, wrong=pa.bool_()) as writer:
        for number, items in enumerate(_stretches(plan.catalogue)):
            queries, targets = _of_one_topic(plan, np.repeat(items, config.pairs_per_item), seed, 1 + number)
            rng = draws(seed, "broad", number)
            drawn = rng.random(len(queries)) < config.wrong_pairs
            targets[drawn] = rng.integers(plan.catalogue, size=int(drawn.sum()))
            wrong = plan.topic_of[targets] != plan.topic_of[queries]
            kept = wrong == drawn
            writer.write(queries[kept], targets[kept], "train", wrong=wrong[kept].tolist())
    return writer.counts


def _off_domain_pairs(first: int, config: SyntheticConfig, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pairs items of one pattern."""
    patterns = np.array([off_domain_pattern(place, config) for place in range(config.off_domain_items)])
    queries = np.repeat(np.arange(len(patterns)), config.pairs_per_item)
    targets = Members(patterns).draw(patterns[queries], rng)
    return first + queries[targets != queries], first + targets[targets != queries]
