"""Generates a small world of items, users and logs: the raw export of the quickstart.

An item has a topic. A topic is a visual motif, a sound motif and a text theme, and each of the three is shared with
other
topics: one modality alone cannot identify the topic, but all three together can. Users like a few topics, so that items
consumed together share one. Titles never name what is seen or heard, but searches do, so that matching an item to a
search needs knowledge across modalities.
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import track

from sail_jax.config.data import SyntheticConfig
from sail_jax.data.synthetic.logs import write_logs
from sail_jax.data.synthetic.media import render_frames, render_sound
from sail_jax.data.synthetic.topics import (
    FILLERS,
    THEMES,
    Topic,
    describe,
    draw_topics,
    draws,
    sound_words,
    visual_words,
)
from sail_jax.errors import SailError

# Increase this whenever the same settings would give other files, so that an older export is not reused.
GENERATOR_VERSION = 2
# Settings that have no effect without a recommender's logs.
_OF_LOGS = ("communities", "styles", "log_users", "log_events_per_user")

ITEMS_PER_TOPIC = 16
TOPICS_PER_USER = 3
SEARCHES_PER_TOPIC = 10
SCORED_ITEMS_PER_SEARCH = 9
THEME_PAIRS_PER_ITEM = 3
EVENTS_PER_SESSION = 8
# Two positive events of a user form a pair if they are this close in time.
PAIR_WINDOW_SECONDS = 600
PAIR_NEIGHBOURS = 3
OFF_TOPIC_EVENTS = 0.05
EVENTS = ("view", "like", "finish", "share")
POSITIVE_EVENTS = ("like", "finish", "share")
PAIR_TRAIN_SHARE = 0.85
SEARCH_TRAIN_SHARE = 0.8


_NAME_PARTS = ("ka", "mi", "ro", "lu", "sen", "ta", "vi", "no", "zel", "bri", "do", "fay")


@dataclasses.dataclass(frozen=True)
class WorldSummary:
    """Counts of what a generated world holds."""

    items: int
    topics: int
    frames: int
    sounds: int
    users: int
    events: int
    train_pairs: int
    test_pairs: int
    train_searches: int
    test_searches: int
    scores: int
    theme_pairs: int


def make_world(config: SyntheticConfig, seed: int, output: pathlib.Path, *, test_share: float = 0.1) -> WorldSummary:
    """Generates the world and writes it as a raw export; keeps a complete one with the same settings.

    Files: `items.jsonl` (item_id, title, asr, ocr, nickname, tags, frames, audio, label; null if the item has none),
    `frames/*.jpg` (64 x 64), `audio/*.wav` (16 kHz mono, 16 bit, 0.5 to 2.5 s), `users.jsonl` (user_id, interests),
    `logs.parquet` (user_id, item_id, event, timestamp in seconds), `pairs.parquet` (query_id, target_id, split),
    `searches.jsonl` (query, item_ids that were clicked, split), `scores.jsonl` (query, item_id, score: 1 if the item
    fits both parts of the query, 0.5 for one of them, 0 for none; split as the search's), `themes.parquet` (query_id,
    target_id: items that share the theme, but not the topic, a weak relation; all train), `topics.jsonl` (the truth
    behind the labels) and `world.json` (settings and summary). `config.communities` adds a recommender's logs and
    vectors (see `synthetic.logs`), and does not change the other files. Every draw uses a generator of (seed, purpose,
    index): the same settings give the same bytes.

    Args:
        config: sizes of the world.
        seed: seed of all draws, not negative.
        output: folder to write; it appears under this name when complete.
        test_share: share of the time span of the recommender's logs, at its end, that its vectors are not computed
            from.

    Raises:
        SailError: a size is too small, or `output` holds other files or another world.
    """
    if config.num_items < 12 or config.num_users < 1 or config.events_per_user < 2 or seed < 0:
        raise SailError(
            f"synthetic: {config.num_items} items, {config.num_users} users, {config.events_per_user} events per user, "
            f"seed {seed} make no world. Use at least 12 items, 1 user, 2 events per user and a seed of at least 0."
        )
    settings = _settings(config, seed, test_share)
    finished = _finished(output, settings)
    if finished is not None:
        return finished
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for folder in ("frames", "audio"):
        (partial / folder).mkdir(parents=True)
    summary = _write_world(config, seed, partial, test_share)
    world = {"settings": settings, "summary": dataclasses.asdict(summary)}
    (partial / "world.json").write_text(json.dumps(world, indent=2) + "\n")
    partial.rename(output)
    return summary


def _settings(config: SyntheticConfig, seed: int, test_share: float) -> dict[str, Any]:
    """The settings that determine the world."""
    settings = {"generator": GENERATOR_VERSION, "seed": seed, **dataclasses.asdict(config)}
    if config.communities:
        return settings | {"test_share": test_share}
    for name in _OF_LOGS:
        del settings[name]
    return settings


def _finished(output: pathlib.Path, settings: dict[str, Any]) -> WorldSummary | None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if not (output / "world.json").is_file():
        raise SailError(f"{output} exists and holds no generated world. Remove it, or name another folder.")
    world = json.loads((output / "world.json").read_text())
    if world["settings"] != settings:
        raise SailError(
            f"{output} holds a world with other settings ({world['settings']}, asked for: {settings}). "
            "Remove it, or name another folder."
        )
    return WorldSummary(**world["summary"])


def _write_world(config: SyntheticConfig, seed: int, folder: pathlib.Path, test_share: float) -> WorldSummary:
    topics = draw_topics(max(3, config.num_items // ITEMS_PER_TOPIC), seed)
    topic_of = draws(seed, "items").permutation(config.num_items) % len(topics)
    ids = np.array([f"item{index:06d}" for index in range(config.num_items)])
    members = [ids[topic_of == t] for t in range(len(topics))]
    frames = sounds = 0
    with (folder / "items.jsonl").open("w") as file:
        for index in track(range(config.num_items), description="Generating items"):
            row = _write_item(folder, ids[index], topics[topic_of[index]], seed, index)
            frames += len(row["frames"])
            sounds += row["audio"] is not None
            file.write(json.dumps(row) + "\n")
    users, logs = _behaviour(config, seed, topics, members, ids)
    pairs = co_consumption(logs, seed)
    searches, wanted = _searches(topics, members, seed)
    scores = _scores(searches, wanted, topics, members, seed)
    themes = _theme_pairs(topics, topic_of, ids, seed)
    _write_jsonl(folder / "topics.jsonl", map(describe, topics))
    _write_jsonl(folder / "users.jsonl", users)
    _write_jsonl(folder / "searches.jsonl", searches)
    _write_jsonl(folder / "scores.jsonl", scores)
    pq.write_table(themes, folder / "themes.parquet")
    pq.write_table(logs, folder / "logs.parquet")
    pq.write_table(pairs, folder / "pairs.parquet")
    if config.communities:
        write_logs(topics, topic_of, ids, config, seed, test_share, folder)
    train_pairs = pairs["split"].to_pylist().count("train")
    train_searches = sum(row["split"] == "train" for row in searches)
    return WorldSummary(
        items=config.num_items,
        topics=len(topics),
        frames=frames,
        sounds=sounds,
        users=config.num_users,
        events=len(logs),
        train_pairs=train_pairs,
        test_pairs=len(pairs) - train_pairs,
        train_searches=train_searches,
        test_searches=len(searches) - train_searches,
        scores=len(scores),
        theme_pairs=len(themes),
    )


def _split(seed: int, key: str, train_share: float) -> str:
    """The split of a record, by hash: it does not depend on the other records."""
    digest = hashlib.blake2b(f"{seed}\n{key}".encode(), digest_size=8).digest()
    return "train" if int.from_bytes(digest, "big") / 2**64 < train_share else "test"


def _write_jsonl(path: pathlib.Path, rows: Iterable[dict]) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


# ----------------------------------------------------------------------------------------------------------- items


def _write_item(folder: pathlib.Path, item_id: str, topic: Topic, seed: int, index: int) -> dict:
    """Renders one item and returns its row; at most one modality is missing altogether."""
    lacks = draws(seed, "modalities", index).choice(["frames", "audio", "text", ""], p=[0.10, 0.15, 0.08, 0.67])
    row = {"item_id": str(item_id), "title": None, "asr": None, "ocr": None, "nickname": None, "tags": []}
    if lacks != "text":
        row |= _text(draws(seed, "text", index), topic.theme)
    row |= {"frames": [], "audio": None, "label": topic.name}
    if lacks != "frames":
        for slot, frame in enumerate(render_frames(draws(seed, "frames", index), topic.visual)):
            row["frames"].append(f"frames/{item_id}_{slot}.jpg")
            (folder / row["frames"][-1]).write_bytes(frame)
    if lacks != "audio":
        row["audio"] = f"audio/{item_id}.wav"
        (folder / row["audio"]).write_bytes(render_sound(draws(seed, "sound", index), topic.sound))
    return row


def _text(rng: np.random.Generator, theme: int) -> dict:
    """Text fields: words of the theme among uninformative words, and occasionally one of another theme."""

    def words(of_theme: int, of_fillers: int) -> list[str]:
        chosen = [*rng.choice(THEMES[theme], of_theme, replace=False), *rng.choice(FILLERS, of_fillers, replace=False)]
        if rng.random() < 0.2:
            chosen.append(rng.choice(THEMES[rng.integers(len(THEMES))]))
        return [str(word) for word in rng.permutation(chosen)]

    title = " ".join(words(rng.integers(2, 4), rng.integers(2, 5))).capitalize()
    asr = " ".join(words(rng.integers(1, 3), rng.integers(6, 12)))
    ocr = " ".join([*words(0, rng.integers(1, 3)), str(rng.integers(1, 100))])
    fields = {
        "title": title if rng.random() < 0.9 else None,
        "asr": asr if rng.random() < 0.5 else None,
        "ocr": ocr if rng.random() < 0.3 else None,
        "nickname": "".join(rng.choice(_NAME_PARTS, 3)),
        "tags": words(int(rng.random() < 0.4), rng.integers(0, 3)),
    }
    # Without title and speech, the tags must carry the topic.
    if fields["title"] is None and fields["asr"] is None:
        fields["tags"] = words(2, 1)
    return fields


# ------------------------------------------------------------------------------------------------------- behaviour


def _behaviour(
    config: SyntheticConfig, seed: int, topics: Sequence[Topic], members: Sequence[np.ndarray], ids: np.ndarray
) -> tuple[list[dict], pa.Table]:
    """Users with their interests, and their logs: sessions of one topic each, with a few random events."""
    users, rows = [], []
    for index in range(config.num_users):
        rng = draws(seed, "users", index)
        user_id = f"user{index:05d}"
        likes = rng.choice(len(topics), min(TOPICS_PER_USER, len(topics)), replace=False)
        users.append({"user_id": user_id, "interests": [topics[topic].name for topic in likes]})
        sessions = -(-config.events_per_user // EVENTS_PER_SESSION)
        # Sessions start hours apart, so that no pairing window spans two of them.
        starts = 1_700_000_000 + 43_200 * np.sort(rng.choice(4 * sessions, sessions, replace=False))
        starts += rng.integers(0, 36_000, sessions)
        for number, start in enumerate(starts):
            length = min(EVENTS_PER_SESSION, config.events_per_user - number * EVENTS_PER_SESSION)
            pool = members[rng.choice(likes)]
            watched = rng.choice(pool, length, replace=length > len(pool))
            times = start + np.cumsum(rng.integers(15, 90, length))
            for item, time in zip(watched, times, strict=True):
                stray = rng.random() < OFF_TOPIC_EVENTS
                item = rng.choice(ids) if stray else item
                event = rng.choice(EVENTS, p=[0.8, 0.08, 0.1, 0.02] if stray else [0.3, 0.25, 0.35, 0.1])
                rows.append((user_id, str(item), str(event), int(time)))
    names = ("user_id", "item_id", "event", "timestamp")
    return users, pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def co_consumption(logs: pa.Table, seed: int) -> pa.Table:
    """Pairs items that one user consumed positively close in time; the earlier item is the query.

    Each unordered pair occurs once.

    Args:
        logs: user_id, item_id, event, timestamp in seconds; each user's rows in temporal order.
        seed: with the unordered pair it determines the split, 85 % train.

    Returns:
        query_id, target_id, split.
    """
    recent: dict[str, list[tuple[str, int]]] = {}
    pairs: dict[tuple[str, str], tuple[str, str]] = {}
    for row in logs.to_pylist():
        if row["event"] not in POSITIVE_EVENTS:
            continue
        item, time = row["item_id"], row["timestamp"]
        before = recent.setdefault(row["user_id"], [])
        for other, then in before[-PAIR_NEIGHBOURS:]:
            if other != item and time - then <= PAIR_WINDOW_SECONDS:
                pairs.setdefault(tuple(sorted((other, item))), (other, item))
        before.append((item, time))
    splits = [_split(seed, " ".join(pair), PAIR_TRAIN_SHARE) for pair in pairs]
    queries, targets = zip(*pairs.values(), strict=True) if pairs else ((), ())
    columns = {"query_id": list(queries), "target_id": list(targets), "split": splits}
    return pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns]))


@dataclasses.dataclass(frozen=True)
class SearchContent:
    """The content of a search: a text theme, and a visual or a sound motif."""

    theme: int
    facet: str
    motif: int

    def score(self, topic: Topic) -> float:
        """The share of the query's parts that an item of a topic fits."""
        return ((topic.theme == self.theme) + (getattr(topic, self.facet) == self.motif)) / 2


def _searches(
    topics: Sequence[Topic], members: Sequence[np.ndarray], seed: int
) -> tuple[list[dict], dict[str, SearchContent]]:
    """Searches that name the theme and a visual or sound motif; a few items of the topic are clicked."""
    clicked: dict[str, set[str]] = {}
    wanted: dict[str, SearchContent] = {}
    for index, topic in enumerate(topics):
        rng = draws(seed, "searches", index)
        for number in range(SEARCHES_PER_TOPIC):
            facet = "visual" if number % 2 else "sound"
            first, second = visual_words(topic.visual) if number % 2 else sound_words(topic.sound)
            query = f"{rng.choice(THEMES[topic.theme])} with {rng.choice(first)} {rng.choice(second)}"
            clicks = rng.choice(members[index], min(len(members[index]), rng.integers(3, 6)), replace=False)
            clicked.setdefault(query, set()).update(map(str, clicks))
            wanted[query] = SearchContent(topic.theme, facet, getattr(topic, facet))
    rows = [
        {"query": query, "item_ids": sorted(items), "split": _split(seed, query, SEARCH_TRAIN_SHARE)}
        for query, items in clicked.items()
    ]
    return rows, wanted


def _scores(
    searches: Sequence[dict],
    wanted: dict[str, SearchContent],
    topics: Sequence[Topic],
    members: Sequence[np.ndarray],
    seed: int,
) -> list[dict]:
    """Searches with items of each grade, in about equal numbers if the world has them."""
    rows = []
    for index, search in enumerate(searches):
        rng = draws(seed, "scores", index)
        grades = np.array([wanted[search["query"]].score(topic) for topic in topics])
        for score in (1.0, 0.5, 0.0):
            pool = np.concatenate([[], *(members[topic] for topic in np.flatnonzero(grades == score))])
            for item in rng.choice(pool, min(len(pool), SCORED_ITEMS_PER_SEARCH // 3), replace=False):
                row = {"query": search["query"], "item_id": str(item), "score": score, "split": search["split"]}
                rows.append(row)
    return rows


def _theme_pairs(topics: Sequence[Topic], topic_of: np.ndarray, ids: np.ndarray, seed: int) -> pa.Table:
    """Pairs of items of one theme and two topics, as from a shared hashtag or similar summaries."""
    theme_of = np.array([topic.theme for topic in topics])[topic_of]
    queries, targets = [], []
    for index in range(len(ids)):
        others = np.flatnonzero((theme_of == theme_of[index]) & (topic_of != topic_of[index]))
        chosen = draws(seed, "themes", index).permutation(others)[:THEME_PAIRS_PER_ITEM]
        queries += [str(ids[index])] * len(chosen)
        targets += [str(ids[other]) for other in chosen]
    return pa.table({"query_id": pa.array(queries, pa.string()), "target_id": pa.array(targets, pa.string())})
