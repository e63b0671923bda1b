"""Writes the plain log of a generated world, and the pairs of items that its users consume together.

Users have interests in topics. A session is about one topic, with a few events that are not. Popular items, by Zipf's
law, are consumed more often, and so are the topics that have them: the pairs of items hold the popularity that a model
may have to unlearn.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sail_jax.config.data import SyntheticConfig
from sail_jax.data.synthetic.items import PLAIN, ItemPlan, Members, item_id
from sail_jax.data.synthetic.pairs import PairWriter, write_tests
from sail_jax.data.synthetic.topics import draws

TOPICS_PER_USER = 3
EVENTS_PER_SESSION = 8
# Two positive events of a user form a pair if they are this close in time.
PAIR_WINDOW_SECONDS = 600
PAIR_NEIGHBOURS = 3
OFF_TOPIC_EVENTS = 0.05
EVENTS = ("view", "like", "finish", "share")
POSITIVE_EVENTS = ("like", "finish", "share")
_RATES, _OFF_TOPIC_RATES = (0.3, 0.25, 0.35, 0.1), (0.8, 0.08, 0.1, 0.02)
_START, _SLOT = 1_700_000_000, 43_200
_USERS_PER_GROUP = 256
_LOG = pa.schema(
    [("user_id", pa.string()), ("item_id", pa.string()), ("event", pa.string()), ("timestamp", pa.int64())]
)


class Event(NamedTuple):
    """An event of a user: index of the item, name, seconds."""

    item: int
    name: str
    time: int


def write_sessions(
    folder: pathlib.Path, plan: ItemPlan, popularity: np.ndarray, config: SyntheticConfig, seed: int
) -> dict[str, int]:
    """Writes users.jsonl, logs.parquet and pairs.parquet, whose training rows come from the log.

    Returns:
        Counts of the events, and of the rows of pairs by split.
    """
    drawn, events = _Popular(plan, popularity), 0
    with (
        (folder / "users.jsonl").open("w") as users,
        pq.ParquetWriter(folder / "logs.parquet", _LOG) as log,
        PairWriter(folder / "pairs.parquet") as pairs,
    ):
        for first in range(0, config.num_users, _USERS_PER_GROUP):
            rows, found = [], []
            for index in range(first, min(first + _USERS_PER_GROUP, config.num_users)):
                rng, user_id = draws(seed, "users", index), f"user{index:05d}"
                likes = drawn.topics(rng)
                users.write(json.dumps({"user_id": user_id, "interests": [plan.topics[t].name for t in likes]}) + "\n")
                history = _history(likes, drawn, config, rng)
                rows += [(user_id, item_id(event.item), event.name, event.time) for event in history]
                found += consumed_together(history)
            events += len(rows)
            log.write_table(pa.table(list(map(list, zip(*rows, strict=True))), schema=_LOG))
            pairs.write(*np.array(found, np.int64).reshape(-1, 2).T, "train")
        write_tests(pairs, plan, PLAIN, PLAIN)
    return {"events": events, **pairs.counts}


class _Popular:
    """Draws topics and items by popularity."""

    def __init__(self, plan: ItemPlan, popularity: np.ndarray) -> None:
        catalogue = plan.topic_of[: plan.catalogue]
        self._members, self._popularity = Members(catalogue, groups=len(plan.topics)), popularity
        self._of_topics = np.bincount(catalogue, popularity, len(plan.topics))
        self._sums = np.cumsum(popularity)

    def topics(self, rng: np.random.Generator) -> np.ndarray:
        wanted = min(TOPICS_PER_USER, len(self._of_topics))
        return rng.choice(len(self._of_topics), wanted, replace=False, p=self._of_topics / self._of_topics.sum())

    def items(self, topic: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """Items of a topic, without repetition where it has enough."""
        pool = self._members[topic]
        weights = self._popularity[pool]
        return rng.choice(pool, count, replace=count > len(pool), p=weights / weights.sum())

    def any_item(self, rng: np.random.Generator) -> int:
        return int(np.searchsorted(self._sums, rng.random() * self._sums[-1]))


def _history(likes: np.ndarray, drawn: _Popular, config: SyntheticConfig, rng: np.random.Generator) -> list[Event]:
    """The events of a user, in order."""
    history = []
    sessions = -(-config.events_per_user // EVENTS_PER_SESSION)
    # Sessions start hours apart, so that no pairing window spans two of them.
    starts = _START + _SLOT * np.sort(rng.choice(4 * sessions, sessions, replace=False))
    starts += rng.integers(0, 36_000, sessions)
    for number, start in enumerate(starts):
        length = min(EVENTS_PER_SESSION, config.events_per_user - number * EVENTS_PER_SESSION)
        watched = drawn.items(rng.choice(likes), length, rng)
        times = start + np.cumsum(rng.integers(15, 90, length))
        for item, time in zip(watched, times, strict=True):
            stray = rng.random() < OFF_TOPIC_EVENTS
            item = drawn.any_item(rng) if stray else int(item)
            name = rng.choice(EVENTS, p=_OFF_TOPIC_RATES if stray else _RATES)
            history.append(Event(item, str(name), int(time)))
    return history


def consumed_together(history: Sequence[Event]) -> list[tuple[int, int]]:
    """Pairs items that a user consumed positively close in time; the earlier item is the query.

    Each unordered pair of a user occurs once.

    Args:
        history: the events of one user, in order.
    """
    positive = [event for event in history if event.name in POSITIVE_EVENTS]
    pairs: dict[frozenset[int], tuple[int, int]] = {}
    for place, event in enumerate(positive):
        for other in positive[max(0, place - PAIR_NEIGHBOURS) : place]:
            if other.item != event.item and event.time - other.time <= PAIR_WINDOW_SECONDS:
                pairs.setdefault(frozenset((other.item, event.item)), (other.item, event.item))
    return list(pairs.values())
