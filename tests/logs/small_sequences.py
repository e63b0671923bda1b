"""Small worlds of users' histories, and the tables of sequences that are made of them."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from small_logs import FLAGS

from sail_jax import config as config_lib
from sail_jax.data.sequence_tables import SequenceTable
from sail_jax.logs.sequences.build import build_sequences

SIZE = {"history": 20, "vanilla_history": 12, "length": 6, "min_items": 2, "windows": 3, "stride": 4, "seen": 5}
LABELS = ("animals", "food", "sports")


@dataclasses.dataclass(frozen=True)
class World:
    """Logs in memory: events (user, item, time, positives), item -> labels, item -> vector."""

    events: list
    labels: dict
    vectors: dict


def make_world(seed, users=40, items=60, plays=70):
    """Drawn logs: tastes, repeated plays, equal times, items without labels or vectors, users with one play or more."""
    rng = np.random.default_rng(seed)
    names = [f"item {i}" for i in range(items)]
    labels = {}
    for i, name in enumerate(names[:-3]):
        labels[name] = (
            [LABELS[i % 3], f"{LABELS[i % 3]}/{i % 6}"] + ["new"] * (i % 5 == 0) + [LABELS[i % 3]] * (i % 7 == 0)
        )
    labels[names[-3]] = []  # and two that the log of items lacks
    events = []
    for u in range(users):
        own = np.flatnonzero(np.arange(items) % 3 == u % 3)
        for _ in range(1 if u < 3 else rng.integers(2, plays)):
            item = rng.choice(own) if rng.random() < 0.7 else rng.integers(items)
            events.append(
                (
                    f"user {u}",
                    names[item],
                    int(rng.integers(0, 100)),
                    int(rng.choice(6, p=[0.2, 0.2, 0.2, 0.2, 0.1, 0.1])),
                )
            )
    events += [("none", names[0], 5, 0), ("ends", names[0], 0, 5), ("ends", names[0], 100, 0)]
    vectors = {name: rng.normal(size=8) + 2 * np.eye(8)[i % 3] for i, name in enumerate(names[:-2])}
    return World(events, labels, vectors)


def write_logs(world, folder):
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    columns = dict(zip(("user_id", "item_id", "timestamp", "positives"), zip(*world.events, strict=True), strict=True))
    positives = columns.pop("positives")
    for number, flag in enumerate(FLAGS):
        columns[flag] = [number < count for count in positives]
    columns["watch_share"] = [0.5] * len(positives)
    pq.write_table(pa.table(columns), folder / "logs" / "events.parquet")
    items = {"item_id": list(world.labels), "labels": list(world.labels.values())}
    items |= {"timestamp": [0] * len(world.labels), "summary": [None] * len(world.labels)}
    pq.write_table(pa.table(items), folder / "logs" / "items.parquet")
    vectors = [vector.tolist() for vector in world.vectors.values()]
    pq.write_table(pa.table({"id": list(world.vectors), "vector": vectors}), folder / "vectors.parquet")
    return folder


def config_of(**changes):
    values = config_lib.default_config()
    values.logs["events"].path, values.logs.catalogue.path = "logs/events.parquet", "logs/items.parquet"
    values.logs.test_share = 0.2
    values.sequences.update(SIZE | changes)
    return config_lib.build(values)


def build(config, source, output, **given):
    given = {"embeddings": source / "vectors.parquet"} | given
    summary = build_sequences(config, source, output, **given)
    assert json.loads((output / "sequences.json").read_text()) == json.loads(json.dumps(summary))
    assert sorted(path.name for path in output.iterdir()) == sorted(
        ["sequences.json", *(f"{name}.parquet" for name in summary["tables"])]
    )
    return {name: rows_of(output / f"{name}.parquet") for name in summary["tables"]}, summary


def rows_of(path):
    found = {}
    for split in ("train", "test"):
        counted = pq.read_table(path)["split"].to_pylist().count(split)
        found[split] = [row for batch in SequenceTable(path, split).iter_batches() for row in batch] if counted else []
    return found
