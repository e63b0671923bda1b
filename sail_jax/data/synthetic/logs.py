"""Generates a recommender's logs, item table and vectors, in the default layout of `config.logs`.

    logs/events, logs/searches, logs/live   one part per week, rows sorted by time
    logs/hashtags, logs/items               hashtags from authors, and labels and summaries
    vectors/dense, vectors/id_*             `item_id`, `vector`: factors of the train period of the logs
    tastes.jsonl, styles.jsonl, communities.jsonl, behaviour.json   the hidden truth, and counts

Users come from `synthetic.users`. The other log, `logs.parquet`, has different users, with plain interests in topics.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sail_jax.config.data import SyntheticConfig
from sail_jax.data.synthetic.factors import factorise
from sail_jax.data.synthetic.topics import THEMES, Topic, draws, look_words, sound_words
from sail_jax.data.synthetic.users import (
    FLAGS,
    PERIOD,
    START,
    Catalogue,
    Community,
    Events,
    User,
    draw_communities,
    draw_events,
    draw_users,
    fit,
    make_catalogue,
    show_probability,
)

DENSE_WIDTH = 64
# Name -> width, and the flags whose events are factorised.
ID_EMBEDDINGS = {"id_finish": (32, ("finish",)), "id_like": (24, ("like", "share", "follow"))}
QUERIES_PER_TOPIC = 10
# Queries of a topic in use at one time; new ones replace old ones, so that the test period has some that the train
# period lacks.
QUERIES_ASKED = 2
SEARCHES_PER_USER = 3.0
RESULTS_ON_TOPIC, RESULTS_OF_THEME = 4, 2
VISITS_PER_USER = 5.0
_CLICKED = np.array([0.05, 0.25, 0.60])
_SECONDS = np.array([15.0, 90.0, 400.0])
_SUMMARISED = 0.9
_PLAIN_HASHTAGS = ("fyp", "viral", "foryou", "trending", "new")
_WEEK = 7 * 86_400


@dataclasses.dataclass(frozen=True)
class LogSummary:
    """Counts of what the logs hold.

    Attributes:
        train_until: the last second of the train period, from which the vectors are computed.
        vectors: name -> number of items with a vector.
    """

    users: int
    single_peak_users: int
    events: int
    positive_events: int
    search_results: int
    live_visits: int
    hashtags: int
    train_until: int
    vectors: dict[str, int]


def write_logs(
    topics: Sequence[Topic],
    topic_of: np.ndarray,
    ids: np.ndarray,
    config: SyntheticConfig,
    seed: int,
    test_share: float,
    folder: pathlib.Path,
) -> LogSummary:
    """Generates users with hidden tastes, and writes the logs that a recommender would record.

    Args:
        topics: the topics.
        topic_of: [N] index of each item's topic.
        ids: [N] item ids.
        config: `communities` must not be 0.
        seed: seed of all draws.
        test_share: share of the events' time span, at its end, that the vectors are not computed from
            (`config.logs.test_share`).
        folder: the raw export.
    """
    catalogue = make_catalogue(topics, topic_of, ids, config, seed)
    communities = draw_communities(topics, config, seed)
    users = draw_users(communities, config, seed)
    names = np.array([user.user_id for user in users])
    events = draw_events(users, communities, catalogue, config, seed)
    searches = _searches(users, communities, catalogue, seed)
    live = _live(users, communities, catalogue, seed)
    hashtags = _hashtags(catalogue, seed)
    _write_weeks(folder / "logs/events", _event_columns(events, names, ids))
    _write_weeks(folder / "logs/searches", searches)
    _write_weeks(folder / "logs/live", live)
    _write_part(folder / "logs/hashtags", 0, hashtags)
    _write_part(folder / "logs/items", 0, _item_columns(catalogue, seed))
    train_until = _cut(events.time, test_share)
    vectors = _write_vectors(folder / "vectors", events, events.time <= train_until, ids, seed)
    _write_truth(folder, users, communities, catalogue)
    summary = LogSummary(
        users=len(users),
        single_peak_users=sum(len(user.communities) == 1 for user in users),
        events=len(events.time),
        positive_events=int(events.flags.any(1).sum()),
        search_results=len(searches["timestamp"]),
        live_visits=len(live["timestamp"]),
        hashtags=len(hashtags["hashtag"]),
        train_until=train_until,
        vectors=vectors,
    )
    (folder / "behaviour.json").write_text(json.dumps(dataclasses.asdict(summary), indent=2) + "\n")
    return summary


def _cut(times: np.ndarray, test_share: float) -> int:
    """The last second of the train period, cut as by the builders of pair tables."""
    first, last = int(times.min()), int(times.max())
    return first + int((last - first) * (1 - test_share))


# ------------------------------------------------------------------------------------------------------------ logs


def _event_columns(events: Events, names: np.ndarray, ids: np.ndarray) -> dict[str, Any]:
    columns = {"user_id": names[events.user], "item_id": ids[events.item], "timestamp": events.time}
    columns |= {name: events.flags[:, place] for place, name in enumerate(FLAGS)}
    return columns | {"watch_share": events.watch_share}


def _searches(users: Sequence[User], communities: Sequence[Community], catalogue: Catalogue, seed: int) -> dict:
    """Results of searches: items of the searched topic, and others of its theme; fitting ones are clicked."""
    queries = [_queries(topic, draws(seed, "log queries", index)) for index, topic in enumerate(catalogue.topics)]
    theme_of = np.array([topic.theme for topic in catalogue.topics])[catalogue.topic_of]
    fits = [fit(community, catalogue) for community in communities]
    rows = []
    for index, user in enumerate(users):
        rng = draws(seed, "log searches", index)
        for time in START + rng.integers(PERIOD, size=rng.poisson(SEARCHES_PER_USER)):
            taste = rng.choice(user.communities)
            topic = rng.choice(communities[taste].topics)
            newest = int((time - START) / PERIOD * QUERIES_PER_TOPIC)
            query = queries[topic][max(0, newest - rng.integers(QUERIES_ASKED))]
            there = catalogue.published <= time
            own = there & (catalogue.topic_of == topic)
            near = there & (theme_of == catalogue.topics[topic].theme) & ~own
            results = [
                *_ranked(own, RESULTS_ON_TOPIC, catalogue, rng),
                *_ranked(near, RESULTS_OF_THEME, catalogue, rng),
            ]
            clicked = rng.random(len(results)) < _CLICKED[fits[taste][results]]
            rows += [
                (user.user_id, query, catalogue.ids[item], int(time), bool(click))
                for item, click in zip(results, clicked, strict=True)
            ]
    return _columns(("user_id", "query", "item_id", "timestamp", "clicked"), rows)


def _queries(topic: Topic, rng: np.random.Generator) -> list[str]:
    """Distinct query texts, in the order in which they come into use."""
    texts: list[str] = []
    while len(texts) < QUERIES_PER_TOPIC:
        first, second = look_words(topic.look) if len(texts) % 2 else sound_words(topic.sound)
        text = f"{rng.choice(THEMES[topic.theme])} with {rng.choice(first)} {rng.choice(second)}"
        if text not in texts:
            texts.append(text)
    return texts


def _ranked(eligible: np.ndarray, count: int, catalogue: Catalogue, rng: np.random.Generator) -> list[int]:
    pool = np.flatnonzero(eligible)
    weights = catalogue.popularity[pool]
    count = min(count, len(pool))
    return rng.choice(pool, count, replace=False, p=weights / weights.sum()).tolist() if count else []


def _live(users: Sequence[User], communities: Sequence[Community], catalogue: Catalogue, seed: int) -> dict:
    """Visits of live streams; fitting ones are watched longer."""
    streams = np.flatnonzero(catalogue.streams)
    fits = [fit(community, catalogue) for community in communities]
    odds = [show_probability(each, catalogue)[streams] for each in fits]
    rows = []
    for index, user in enumerate(users):
        rng = draws(seed, "log live", index)
        for _ in range(rng.poisson(VISITS_PER_USER)):
            taste = rng.choice(user.communities)
            item = rng.choice(streams, p=odds[taste] / odds[taste].sum())
            first = max(START, int(catalogue.published[item]))
            seconds = rng.exponential(_SECONDS[fits[taste][item]])
            time = int(rng.integers(first, START + PERIOD))
            rows.append((user.user_id, catalogue.ids[item], time, float(np.float32(seconds))))
    return _columns(("user_id", "item_id", "timestamp", "seconds"), rows)


def _hashtags(catalogue: Catalogue, seed: int) -> dict:
    """Hashtags of the theme, of the look, and uninformative ones; some items have none."""
    rows = []
    for index, item_id in enumerate(catalogue.ids):
        rng, topic = draws(seed, "log hashtags", index), catalogue.topics[catalogue.topic_of[index]]
        colour, shape = look_words(topic.look)
        offered = (THEMES[topic.theme][0], f"{rng.choice(THEMES[topic.theme])}{shape[0]}", rng.choice(_PLAIN_HASHTAGS))
        for hashtag in np.array(offered)[rng.random(3) < (0.5, 0.4, 0.6)]:
            rows.append((item_id, str(hashtag), int(catalogue.published[index])))
    return _columns(("item_id", "hashtag", "timestamp"), rows)


def _item_columns(catalogue: Catalogue, seed: int) -> dict[str, Any]:
    """Labels from coarse to fine, and summaries; some items have no summary."""
    labels, summaries = [], []
    for index in range(len(catalogue.ids)):
        rng, topic = draws(seed, "log summaries", index), catalogue.topics[catalogue.topic_of[index]]
        theme, shape = THEMES[topic.theme], look_words(topic.look)[1][0]
        labels.append([theme[0], f"{theme[0]}/{shape}", topic.name])
        first, second = rng.choice(theme, 2, replace=False)
        seen, heard = (" ".join(map(rng.choice, words(motif))) for words, motif in _motifs(topic))
        text = f"A short video about {first} and {second} with {seen} in view and {heard} to hear"
        summaries.append(text if rng.random() < _SUMMARISED else None)
    columns = {"item_id": catalogue.ids, "timestamp": catalogue.published}
    return columns | {"labels": labels, "summary": pa.array(summaries, pa.string())}


def _motifs(topic: Topic) -> tuple:
    return (look_words, topic.look), (sound_words, topic.sound)


def _columns(names: Sequence[str], rows: Sequence[tuple]) -> dict[str, np.ndarray]:
    """Columns from rows, sorted by time if they have one; the sort is stable."""
    columns = {name: np.array([row[place] for row in rows]) for place, name in enumerate(names)}
    order = np.argsort(columns["timestamp"], kind="stable")
    return {name: column[order] for name, column in columns.items()}


# --------------------------------------------------------------------------------------------------------- writing


def _write_vectors(
    folder: pathlib.Path, events: Events, training: np.ndarray, ids: np.ndarray, seed: int
) -> dict[str, int]:
    """Factorises the train period and writes the vectors; items without events in it have none."""
    flags = {name: events.flags[:, place] for place, name in enumerate(FLAGS)}
    weights = {"dense": (DENSE_WIDTH, events.watch_share + events.flags.sum(1))}
    for name, (width, wanted) in ID_EMBEDDINGS.items():
        weights[name] = (width, np.logical_or.reduce([flags[flag] for flag in wanted]))
    counts = {}
    for name, (width, weight) in weights.items():
        items, vectors = factorise(events.user, events.item, np.where(training, weight, 0.0), width, seed)
        columns = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), max(1, vectors.shape[1]))
        _write_part(folder / name, 0, {"item_id": ids[items], "vector": columns})
        counts[name] = len(items)
    return counts


def _write_weeks(folder: pathlib.Path, columns: Mapping[str, Any]) -> None:
    week = (columns["timestamp"] - START) // _WEEK
    for number, part in enumerate(np.unique(week)):
        _write_part(folder, number, {name: column[week == part] for name, column in columns.items()})


def _write_part(folder: pathlib.Path, number: int, columns: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), folder / f"part-{number:05d}.parquet")


def _write_truth(
    folder: pathlib.Path, users: Sequence[User], communities: Sequence[Community], catalogue: Catalogue
) -> None:
    def write(name: str, rows: Iterable[dict]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("tastes.jsonl", ({"user_id": user.user_id, "communities": list(user.communities)} for user in users))
    write(
        "communities.jsonl",
        (
            {"topics": [catalogue.topics[topic].name for topic in community.topics], "style": community.style}
            for community in communities
        ),
    )
    truth = zip(catalogue.ids, catalogue.style_of, catalogue.streams, strict=True)
    write("styles.jsonl", ({"item_id": str(i), "style": int(style), "stream": bool(live)} for i, style, live in truth))
