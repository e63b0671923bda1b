"""Small logs written by hand or drawn, and the tables that builders make of them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import polars as pl

from sail_jax import config as config_lib
from sail_jax.config import Config
from sail_jax.data.row_groups import splits_of
from sail_jax.data.tables import PairTable
from sail_jax.logs.addresses import Address, read_here
from sail_jax.logs.pairs.build import build_pairs

FLAGS = ("like", "finish", "share", "comment", "follow")


def config(**builders) -> Config:
    """The defaults with changed settings of builders: config(copair={"min_users": 1})."""
    values = config_lib.default_config().to_dict()
    for name, changes in builders.items():
        if isinstance(changes, dict):
            values["builders"][name].update(changes)
        else:
            values["builders"][name] = changes
    return config_lib.build(values)


def with_logs(base: Config, **changes) -> Config:
    return dataclasses.replace(base, logs=dataclasses.replace(base.logs, **changes))


def write(folder: Path, rows: dict[str, list] | pl.DataFrame, parts: int = 1, seed: int | None = None) -> None:
    """Writes a log as parts; with a seed, its rows are shuffled and the parts are of unequal length."""
    frame = rows if isinstance(rows, pl.DataFrame) else pl.DataFrame(rows)
    folder.mkdir(parents=True, exist_ok=True)
    edges = [len(frame) * part // parts for part in range(parts + 1)]
    if seed is not None:
        frame = frame.sample(fraction=1.0, shuffle=True, seed=seed)
        edges = sorted({0, len(frame), *np.random.default_rng(seed).integers(0, len(frame), parts - 1).tolist()})
    for number, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        frame[low:high].write_parquet(folder / f"{number}.parquet")


def events(rows: list[tuple[str, str, int, int]]) -> dict[str, list]:
    """(user, item, time, how many flags are true) -> columns of the event log."""
    user, item, time, positives = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [], [])
    flags = {name: [number > place for number in positives] for place, name in enumerate(FLAGS)}
    return {"user_id": user, "item_id": item, "timestamp": time} | flags | {"watch_share": [0.5] * len(user)}


def searches(rows: list[tuple[str, str, int, bool]]) -> dict[str, list]:
    """(query, item, time, clicked) -> columns of the search log."""
    query, item, time, clicked = (list(column) for column in zip(*rows, strict=True))
    users = [f"u{number}" for number in range(len(rows))]
    return {"user_id": users, "query": query, "item_id": item, "timestamp": time, "clicked": clicked}


def build(
    source: Path | Address,
    settings: Config,
    *only: str,
    store=None,
    output: Path | Address | None = None,
    engine: str = "duckdb",
) -> tuple[dict, dict]:
    """Builds; returns table -> split -> list of (query id or text, target, score), and what pairs.json holds."""
    output = output or source / "tables"
    build_pairs(settings, source, output, only, store, engine)
    output = read_here(output)
    summary = json.loads((output / "pairs.json").read_text())
    tables = {name: read(output / f"{name}.parquet") for name in summary["builders"]}
    return tables, summary["builders"]


def read(path: Path) -> dict[str, list[tuple]]:
    found = {"train": [], "test": []}
    for split in splits_of(path):
        for batch in PairTable.open(path, split).iter_batches():
            found[split] += [
                (pair.query_id if pair.query_id is not None else pair.query_text, pair.target_id, pair.score)
                for pair in batch
            ]
    return found


def unordered(rows: list[tuple]) -> set[tuple[str, str]]:
    """Item pairs whichever way round; fails where one stands twice."""
    pairs = [tuple(sorted(row[:2])) for row in rows]
    assert len(set(pairs)) == len(pairs)
    return set(pairs)


def drawn_export(folder: Path, seed: int = 0, parts: int = 1, shuffle: int | None = None) -> None:
    """A drawn export with all logs: 60 items, 50 users, 2,000 events over 1,000 seconds."""
    rng = np.random.default_rng(seed)

    def of_items(size: int) -> list[str]:
        return [f"v{number}" for number in np.minimum(rng.zipf(1.3, size), 60)]

    size = 2000
    rows = zip(
        [f"u{number}" for number in rng.integers(0, 50, size)],
        of_items(size),
        rng.integers(0, 1000, size).tolist(),
        rng.integers(0, 3, size).tolist(),
        strict=True,
    )
    write(folder / "logs/events", events(list(rows)), parts, shuffle)
    words = [f"q{number}" for number in rng.integers(0, 40, 1500)]
    shown = zip(
        words, of_items(1500), rng.integers(0, 1000, 1500).tolist(), (rng.random(1500) < 0.5).tolist(), strict=True
    )
    write(folder / "logs/searches", searches(list(shown)), parts, shuffle)
    live = {
        "user_id": [f"u{number}" for number in rng.integers(0, 50, 800)],
        "item_id": of_items(800),
        "timestamp": rng.integers(0, 1000, 800),
        "seconds": rng.exponential(60, 800),
    }
    write(folder / "logs/live", live, parts, shuffle)
    tags = [f"#Tag{number}" for number in rng.integers(0, 12, 300)]
    hashtags = {"item_id": of_items(300), "hashtag": tags, "timestamp": rng.integers(0, 1000, 300)}
    write(folder / "logs/hashtags", hashtags, parts, shuffle)
    ids = [f"v{number}" for number in range(1, 61)]
    items = {
        "item_id": ids,
        "timestamp": rng.integers(0, 1100, 60),
        "labels": [[f"theme {n % 3}", f"topic {n % 7}"] for n in range(60)],
        "summary": [" ".join(f"w{n}" for n in rng.integers(0, 6, 12)) for _ in range(60)],
    }
    write(folder / "logs/items", items, parts, shuffle)
    for name in ("dense", "id_like"):
        vectors = rng.standard_normal((8, 16))[rng.integers(0, 8, 60)] + 0.2 * rng.standard_normal((60, 16))
        write(
            folder / "vectors" / name, {"item_id": ids, "vector": vectors.astype(np.float32).tolist()}, parts, shuffle
        )
