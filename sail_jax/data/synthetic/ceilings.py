"""Computes what a perfect reader of some senses reaches on the tasks of a generated world.

A reader of text, frames or sound knows the facet that these show of an item that has them, and nothing else. It ranks
the catalogue by the probability that an item is relevant, given what it read of the query and of the item. Items that
it cannot tell apart are in random order, so that recall is an expectation, counted over the groups of such items by the
labels of the world.

Axis letters: T topics, C cells (items alike in topic, in what they lack and in what their frames show), N items.
"""

import collections
import pathlib
from collections.abc import Sequence

import numpy as np

from sail_jax.data.ceilings import CEILINGS, FORMAT
from sail_jax.data.synthetic.items import LACKS, PLAIN, ItemPlan
from sail_jax.data.synthetic.pairs import BY_FACET, related, tested
from sail_jax.data.synthetic.searches import FOLDER, KINDS, groups_of, search_topics
from sail_jax.data.synthetic.topics import FACETS
from sail_jax.files import commit_json
from sail_jax.patterns import MODALITY_SETS, Pattern

KS = (1, 2, 3, 5, 10, 15, 20, 25, 30, 50, 75, 100, 150, 200, 300, 500, 1000)
# Which modality shows which facet.
_SHOWN_BY = {"theme": "T", "look": "V", "sound": "A"}
_FRAMES = 3  # one look, or two, the second of which is the one before or after: see `ItemPlan.looks`


def write_ceilings(folder: pathlib.Path, plan: ItemPlan, searches: int) -> None:
    """Writes the ceilings of all tables of the export with test rows; see `data.ceilings` for the file.

    Args:
        folder: the export.
        plan: the items.
        searches: number of test searches of each kind.
    """
    world = _Cells(plan)
    tables = {f"{kind}.parquet": _of_items(world, plan, kind, kind) for kind in plan.queries}
    if PLAIN in plan.queries:
        tables |= {f"{name}.parquet": _of_items(world, plan, PLAIN, name) for name in BY_FACET}
    if searches:
        tables |= {f"{FOLDER}/{kind}.jsonl": _of_searches(world, plan, kind, searches) for kind in KINDS}
        # Together, the searches of all kinds have the whole catalogue as their targets.
        tables[FOLDER] = _mean([_of_searches(world, plan, kind, searches, whole=True) for kind in KINDS])
    commit_json(folder / CEILINGS, {"format": FORMAT, "tables": tables})


class _Cells:
    """The items of the catalogue, counted by cell: (topic, lacks, frames) in this order, frames as in `_FRAMES`."""

    def __init__(self, plan: ItemPlan) -> None:
        self.topics = len(plan.topics)
        shape = (self.topics, len(LACKS), _FRAMES)
        self.topic, self.lacks, self.frames = (axis.ravel() for axis in np.indices(shape))
        cells = cells_of(plan)
        self.counts = np.bincount(cells[: plan.catalogue], minlength=len(self.topic))
        self._facets, self._looks = plan.facets, plan.looks

    def readings(self, view: str) -> tuple[np.ndarray, np.ndarray]:
        """What a reader of a view reads of each cell.

        Returns:
            [C] number of the reading, the same for cells that are read alike; and [C] bool, whether anything is read.
        """
        keys = np.full((len(self.topic), 4), -1)
        for place, facet in enumerate(FACETS):
            read = (self.lacks != 1 + place) & (_SHOWN_BY[facet] in view)
            keys[read, place] = self._facets[self.topic[read], place]
        # Two looks of which no text says which counts are read as a set.
        unclear = (keys[:, 1] >= 0) & (self.frames > 0) & (keys[:, 0] < 0)
        first = self._facets[self.topic[unclear], 1]
        other = self._facets[self._looks[self.topic[unclear], self.frames[unclear] - 1], 1]
        keys[unclear, 1], keys[unclear, 3] = np.minimum(first, other), np.maximum(first, other)
        return np.unique(keys, axis=0, return_inverse=True)[1].ravel(), (keys >= 0).any(1)

    def shown(self, facet: str | None) -> np.ndarray:
        """[C] bool, which cells show a facet; all, if there is none to show."""
        return self.lacks != (1 + FACETS.index(facet) if facet else -1)


def cells_of(plan: ItemPlan) -> np.ndarray:
    """[N] the cell of each item."""
    return (plan.topic_of * len(LACKS) + plan.lacks) * _FRAMES + 1 + plan.second


class _Reader:
    """A perfect reader of a view: what it takes each cell for.

    Args:
        world: the cells.
        view: the modalities that it reads.
        facet: the facet by which items are related, if it is one; then items that do not show it are not relevant.
        whole: whether the whole catalogue is searched, or only what shows the facet.
    """

    def __init__(self, world: _Cells, view: str, facet: str | None, *, whole: bool = False) -> None:
        self._world = world
        self._reading, self.reads = world.readings(view)
        self._cells_alike = np.bincount(self._reading)
        self._shown = world.shown(facet)
        self._counts = np.where(whole | self._shown, world.counts, 0)
        self.corpus = int(self._counts.sum())
        # A reader of the modality that would show the facet sees that it is missing.
        self._seen_to_lack = self.reads & ~self._shown & (facet is not None and _SHOWN_BY[facet] in view)

    def topics(self, cell: int) -> np.ndarray:
        """[T] probability of each topic, given what is read of a cell; topics are equally frequent."""
        alike = np.bincount(self._world.topic[self._reading == self._reading[cell]], minlength=self._world.topics)
        return alike / alike.sum()

    def recall(self, wanted: np.ndarray, relevant: np.ndarray) -> np.ndarray:
        """[K] expected recall at `KS`.

        Args:
            wanted: [T] for each topic, the probability that an item of it is relevant, as the reader sees the query.
            relevant: [T] bool, the topics whose items are relevant, where they show the facet.
        """
        counts, topic = self._counts, self._world.topic
        counted = np.where(self._shown & relevant[topic], counts, 0)
        value = np.bincount(self._reading, wanted[topic]) / self._cells_alike
        score = np.where(self._seen_to_lack, 0, 1 + np.round(value[self._reading], 12))[self.reads]
        levels, place = np.unique(-score, return_inverse=True)
        items, hits = np.bincount(place, counts[self.reads]), np.bincount(place, counted[self.reads])
        found = np.clip(np.array(KS)[:, None] - (np.cumsum(items) - items), 0, items) / np.maximum(items, 1)
        return (found * hits).sum(1) / counted.sum()


def _of_items(world: _Cells, plan: ItemPlan, kind: str, table: str) -> dict:
    """The ceilings of a table whose queries are the items of a kind."""
    cells = collections.Counter(cells_of(plan)[[query for query, _ in tested(plan, kind, table)]].tolist())
    ceilings: dict = {"queries": sum(cells.values())}
    for view in MODALITY_SETS:
        reader, total = _Reader(world, view, BY_FACET.get(table)), np.zeros(len(KS))
        ceilings["corpus"] = reader.corpus
        for cell, count in cells.items():
            if reader.reads[cell]:
                wanted = _wanted(plan, table, reader.topics(cell))
                total += count * reader.recall(wanted, related(plan, table, int(world.topic[cell])))
        ceilings[view] = _by_k(total / max(1, ceilings["queries"]))
    return ceilings


def _wanted(plan: ItemPlan, table: str, topics: np.ndarray) -> np.ndarray:
    """[T] probability that an item of each topic is relevant, given the probability of the query's topics."""
    if table not in BY_FACET:
        return topics
    values = plan.facets[:, FACETS.index(BY_FACET[table])]
    return np.bincount(values, topics)[values] - topics


def _of_searches(world: _Cells, plan: ItemPlan, kind: str, searches: int, *, whole: bool = False) -> dict:
    """The ceilings of the searches of a kind, which name what they want in full."""
    facet = kind if kind in FACETS else None
    groups, _ = groups_of(kind, plan)
    about = collections.Counter(search_topics(kind, plan, searches).tolist())
    ceilings: dict = {"queries": searches}
    for view in MODALITY_SETS:
        reader, total = _Reader(world, view, facet, whole=whole), np.zeros(len(KS))
        ceilings["corpus"] = reader.corpus
        for topic, count in about.items():
            relevant = groups == groups[topic]
            total += count * reader.recall(relevant.astype(float), relevant)
        ceilings[Pattern("T", view).short] = _by_k(total / searches)
    return ceilings


def _by_k(values: np.ndarray) -> dict[str, float]:
    return {f"recall@{k}": round(float(value), 6) for k, value in zip(KS, values, strict=True)}


def _mean(parts: Sequence[dict]) -> dict:
    """The mean of ceilings with equally many queries."""
    ceilings: dict = {"queries": sum(part["queries"] for part in parts), "corpus": parts[0]["corpus"]}
    for view in parts[0].keys() - ceilings.keys():
        means = {name: np.mean([part[view][name] for part in parts]) for name in parts[0][view]}
        ceilings[view] = {name: round(float(value), 6) for name, value in means.items()}
    return ceilings
