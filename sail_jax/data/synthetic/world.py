"""Generates a world of items, users, tasks and logs as a raw export; the quickstart uses a part of it.

An item has a topic: a theme of its text, a look of its frames and a sound. No two senses name the topic, all three do
(see `synthetic.topics`). Titles never name what is seen or heard, but searches do, so that matching an item to a search
needs knowledge across modalities.
"""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from sail_jax.config.data import SyntheticConfig
from sail_jax.data.synthetic.ceilings import write_ceilings
from sail_jax.data.synthetic.items import (
    OFF_DOMAIN,
    check_missing_fields,
    item_id,
    plan_items,
    truth,
    write_items,
    write_off_domain,
)
from sail_jax.data.synthetic.logs import write_logs
from sail_jax.data.synthetic.pairs import write_pair_tables
from sail_jax.data.synthetic.searches import write_scores, write_searches
from sail_jax.data.synthetic.sessions import write_sessions
from sail_jax.data.synthetic.topics import describe, draw_topics, draws
from sail_jax.data.synthetic.users import zipf
from sail_jax.errors import SailError
from sail_jax.files import commit_json, partial_folder
from sail_jax.progress import track

# Increase this whenever the same settings would give other files, so that an older export is not reused.
GENERATOR_VERSION = 3
# Settings that have no effect without a recommender's logs.
_OF_LOGS = ("communities", "styles", "log_users", "log_events_per_user")
_FEWEST_TOPICS = 4


@dataclasses.dataclass(frozen=True)
class WorldSummary:
    """Counts of what a generated world holds.

    Attributes:
        items: all items.
        catalogue: the items that test queries search; the others are test queries and off-domain items.
        tables: table of the export -> split -> rows.
    """

    items: int
    catalogue: int
    topics: int
    frames: int
    sounds: int
    users: int
    events: int
    tables: dict[str, dict[str, int]]

    def __str__(self) -> str:
        counts = {name: value for name, value in vars(self).items() if name != "tables"}
        lines = [", ".join(f"{name} {count:,}" for name, count in counts.items())]
        for name, splits in self.tables.items():
            lines.append(f"{name}: " + ", ".join(f"{split} {rows:,}" for split, rows in splits.items() if rows))
        return "\n".join(lines)


def make_world(config: SyntheticConfig, seed: int, output: pathlib.Path, *, test_share: float = 0.1) -> WorldSummary:
    """Generates the world and writes it as a raw export; keeps a complete one with the same settings.

    Every draw uses a generator of (seed, purpose, index): the same settings give the same bytes. `config.communities`
    adds a recommender's logs and vectors (see `synthetic.logs`), and does not change the other files.

        items.jsonl             item_id, title, asr, ocr, nickname, tags, frames, audio, label; null if there is none
        frames/*.jpg            64 x 64
        audio/*.wav             16 kHz mono, 16 bit, 0.5 to 2.5 s
        users.jsonl             user_id, interests
        logs.parquet            user_id, item_id, event, timestamp in seconds
        pairs.parquet           query_id, target_id, split: training pairs from the log; test queries with their topic
        themes, looks, sounds   likewise: items of one theme, look or sound, and of two topics
        near_duplicates, two_looks, missing_fields   test queries with their topic
        broad, clean            training pairs of one topic; of the broad ones `wrong` says which are not
        off_text, off_vision, off_sound   training pairs of items of another domain
        searches/*.jsonl        query, item_ids, split; a file for what searches name: topic, theme, look, sound
        scores.jsonl            query, item_id, score: 0, 0.25, 0.5, 0.75 or 1; split
        topics.jsonl, truth.jsonl   the truth behind the labels, and of each item
        ceilings.json           what a perfect reader of each set of modalities reaches (see `synthetic.ceilings`)
        world.json              settings and summary

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
    check_missing_fields(config.missing_fields)
    settings = _settings(config, seed, test_share)
    finished = _finished(output, settings)
    if finished is not None:
        return finished
    with partial_folder(output) as partial:
        for folder in ("frames", "audio"):
            (partial / folder).mkdir()
        summary = _write_world(config, seed, partial, test_share)
        commit_json(partial / "world.json", {"settings": settings, "summary": dataclasses.asdict(summary)})
    return summary


def _settings(config: SyntheticConfig, seed: int, test_share: float) -> dict[str, Any]:
    """The settings that determine the world."""
    settings = {"generator": GENERATOR_VERSION, "seed": seed, **dataclasses.asdict(config)}
    settings["missing_fields"] = list(config.missing_fields)
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
    topics = draw_topics(max(_FEWEST_TOPICS, config.num_items // config.items_per_topic), seed)
    plan = plan_items(topics, config, seed)
    popularity = zipf(config.num_items, config.zipf, draws(seed, "popularity"))
    frames = sounds = 0
    count = len(plan.topic_of) + len(OFF_DOMAIN) * config.off_domain_items
    rows = itertools.chain(write_items(folder, plan, config, seed), write_off_domain(folder, plan, config, seed))
    with (folder / "items.jsonl").open("w") as file:
        for row in track(rows, description="Generating items", total=count):
            frames += len(row["frames"])
            sounds += row["audio"] is not None
            file.write(json.dumps(row) + "\n")
    _write_jsonl(folder / "topics.jsonl", map(describe, topics))
    _write_jsonl(folder / "truth.jsonl", truth(plan, popularity))
    sessions = write_sessions(folder, plan, popularity, config, seed)
    events = sessions.pop("events")
    tables = {"pairs": sessions, **write_pair_tables(folder, plan, config, seed)}
    tables |= {f"searches/{kind}": counts for kind, counts in write_searches(folder, plan, config, seed).items()}
    tables["scores"] = write_scores(folder, plan, config, seed)
    write_ceilings(folder, plan, config.test_searches)
    if config.communities:
        ids = np.array([item_id(index) for index in range(config.num_items)])
        write_logs(topics, plan.topic_of[: config.num_items], ids, config, seed, test_share, folder)
    return WorldSummary(
        items=count,
        catalogue=config.num_items,
        topics=len(topics),
        frames=frames,
        sounds=sounds,
        users=config.num_users,
        events=events,
        tables=tables,
    )


def _write_jsonl(path: pathlib.Path, rows: Iterable[dict]) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
