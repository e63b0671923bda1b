"""Measures time and memory of the pair builders on generated logs, all ten in one run of the verb.

    python -m experiments.log_builders_scale --rows 50000000 --folder FOLDER

writes logs of that many events (and a tenth as many results of searches, a twentieth as many visits of live streams,
and so on) as Parquet parts, runs `python -m sail_jax pairs` on them in its own process, and writes
experiments/results/log_builders_scale.json with the wall time, the processor time, the largest resident memory of that
process and the counts of the builders.

Items are drawn from a Zipf law and from the taste of the user, one of 2,000, so that there are pairs to find.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

REPO = Path(__file__).parents[1]
_PART = 2_000_000
_TASTES = 2_000
_SPAN = 30 * 86_400
_WORDS = 20_000
_DENSE, _ID = 64, 32


def main() -> None:
    """Generates the logs unless they exist, runs the verb, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="events")
    parser.add_argument("--folder", type=Path, required=True, help="folder for the logs and the tables")
    parser.add_argument("--output", type=Path, default=REPO / "experiments/results/log_builders_scale.json")
    options = parser.parse_args()
    source = options.folder / f"export-{options.rows}"
    if not (source / "done").exists():
        write_logs(source, options.rows)
    figures = measure(source, options.folder / f"tables-{options.rows}")
    options.output.write_text(json.dumps({"events": options.rows} | figures, indent=2) + "\n")
    print(json.dumps({key: value for key, value in figures.items() if key != "pairs"}, indent=2))
    print(f"Written: {options.output}")


def write_logs(source: Path, rows: int) -> None:
    """Writes logs with `rows` events, rows / 50 items and rows / 100 users."""
    rng = np.random.default_rng(0)
    items, users = max(rows // 50, 1000), max(rows // 100, 100)
    _parts(source / "logs/events", rows, lambda size: _events(rng, size, items, users))
    _parts(source / "logs/searches", rows // 10, lambda size: _searches(rng, size, items, users))
    _parts(source / "logs/live", rows // 20, lambda size: _live(rng, size, items, users))
    _parts(source / "logs/hashtags", rows // 25, lambda size: _hashtags(rng, size, items))
    _parts(source / "logs/items", items, lambda size, start: _items(rng, size, start), numbered=True)
    for name, width in (("dense", _DENSE), ("id", _ID)):
        _parts(source / f"vectors/{name}", items, lambda size, start, w=width: _vectors(size, start, w), numbered=True)
    (source / "done").touch()


def _parts(folder: Path, rows: int, make: Callable[..., pl.DataFrame], numbered: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, rows, _PART)):
        size = min(_PART, rows - start)
        frame = make(size, start) if numbered else make(size)
        frame.write_parquet(folder / f"{number:05d}.parquet")


def _names(prefix: str, numbers: np.ndarray) -> pl.Expr:
    return pl.format(f"{prefix}{{}}", pl.Series(numbers))


def _draw_items(rng: np.random.Generator, size: int, items: int, taste: np.ndarray) -> np.ndarray:
    """Draws a third by popularity, the rest from the taste: items whose number has the taste as remainder."""
    popular = np.minimum(rng.zipf(1.2, size), items) - 1
    inside = (rng.random(size) ** 3 * (items // _TASTES + 1)).astype(np.int64) * _TASTES + taste
    return np.where(rng.random(size) < 1 / 3, popular, inside % items)


def _visits(rng: np.random.Generator, size: int, items: int, users: int) -> dict:
    """Draws users in sessions: ten visits of a user within minutes."""
    session = np.repeat(np.arange(size // 10 + 1), 10)[:size]
    user = rng.integers(0, users, size // 10 + 1)[session]
    began = rng.integers(0, _SPAN, size // 10 + 1)[session]
    item = _draw_items(rng, size, items, user % _TASTES)
    return {
        "user_id": _names("u", user),
        "item_id": _names("v", item),
        "timestamp": pl.Series(1_700_000_000 + began + rng.integers(0, 600, size)),
    }


def _events(rng: np.random.Generator, size: int, items: int, users: int) -> pl.DataFrame:
    flags = {
        name: pl.Series(rng.random(size) < rate)
        for name, rate in (("like", 0.08), ("finish", 0.3), ("share", 0.02), ("comment", 0.02), ("follow", 0.01))
    }
    watched = pl.Series(rng.random(size).astype(np.float32))
    return pl.select(**_visits(rng, size, items, users), **flags, watch_share=watched)


def _searches(rng: np.random.Generator, size: int, items: int, users: int) -> pl.DataFrame:
    visits = _visits(rng, size, items, users)
    query = np.minimum(rng.zipf(1.3, size), items) - 1
    found = (query * 7 + rng.integers(0, 12, size)) % items
    clicked = pl.Series(rng.random(size) < 0.3)
    return pl.select(**visits | {"item_id": _names("v", found)}, query=_names("Query number ", query), clicked=clicked)


def _live(rng: np.random.Generator, size: int, items: int, users: int) -> pl.DataFrame:
    return pl.select(**_visits(rng, size, items, users), seconds=pl.Series(rng.exponential(60, size)))


def _hashtags(rng: np.random.Generator, size: int, items: int) -> pl.DataFrame:
    tag = np.minimum(rng.zipf(1.3, size), items) - 1
    time_ = pl.Series(1_700_000_000 + rng.integers(0, _SPAN, size))
    return pl.select(item_id=_names("v", rng.integers(0, items, size)), hashtag=_names("#Tag", tag), timestamp=time_)


def _items(rng: np.random.Generator, size: int, start: int) -> pl.DataFrame:
    number = np.arange(start, start + size)
    topic = number % _TASTES
    # Eight words from the topic's phrases, so that items of a topic share n-grams, and eight words of the item's own.
    phrase = (topic * 50 + rng.integers(0, 40, size))[:, None] * 8 + np.arange(8)
    words = np.concatenate([phrase, np.minimum(rng.zipf(1.2, (size, 8)), _WORDS)], axis=1)
    summary = pl.Series(words).cast(pl.List(pl.String)).list.eval("w" + pl.element()).list.join(" ")
    labels = pl.concat_list(_names("theme ", topic % 20), _names("topic ", topic))
    published = pl.Series(1_700_000_000 + rng.integers(-_SPAN, _SPAN, size))
    return pl.select(item_id=_names("v", number), timestamp=published, labels=labels, summary=summary)


def _vectors(size: int, start: int, width: int) -> pl.DataFrame:
    number = np.arange(start, start + size)
    centres = np.random.default_rng(1).standard_normal((_TASTES, width)).astype(np.float32)
    noise = np.random.default_rng(2 + start).standard_normal((size, width), dtype=np.float32)
    vectors = pl.Series(centres[number % _TASTES] + 0.35 * noise).cast(pl.List(pl.Float32))
    return pl.select(item_id=_names("v", number), vector=vectors)


def measure(source: Path, tables: Path) -> dict:
    """Runs the verb in its own process and measures it."""
    config = tables.with_name(f"{tables.name}.json")
    config.write_text(json.dumps({"logs": {"id_embeddings": {"id": "vectors/id"}}}))
    words = ["--config", str(config), "--source", str(source), "--output", str(tables)]
    started, load = time.perf_counter(), os.getloadavg()
    subprocess.run([sys.executable, "-m", "sail_jax", "pairs", *words], check=True, cwd=REPO)
    wall, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    summary = json.loads((tables / "pairs.json").read_text())
    del summary["source"]
    return {
        "wall_seconds": round(wall, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_resident_gib": round(used.ru_maxrss / 2**20, 2),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_at_start": [round(value, 1) for value in load],
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("duckdb", "ibis-framework", "polars", "pyarrow", "faiss-cpu", "numpy")
        },
        "log_bytes": sum(file.stat().st_size for file in source.rglob("*.parquet")),
        "pairs": summary,
    }


if __name__ == "__main__":
    main()
