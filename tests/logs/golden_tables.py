"""Tables of all pair builders on small worlds, written once, which a change of the builders is compared with.

    python tests/logs/golden_tables.py

writes them anew, from the top of the checkout: only where the rules themselves, or what is drawn, are meant to change.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if __name__ == "__main__":
    sys.path[:0] = ["", "tests", "tests/logs"]

import small_logs as logs

from sail_jax.config import Config
from sail_jax.config.data import SyntheticConfig
from sail_jax.data.synthetic.logs import write_logs
from sail_jax.data.synthetic.topics import draw_topics, draws

GOLDEN = Path(__file__).parent / "golden"
_LOOSE = {"min_users": 1, "min_npmi": -1.0}
_WIDE = {"per_item": 100_000}
# No rule of these settings chooses among equals: what they give is decided by the rules alone.
_OPEN = {
    "copair": _LOOSE | _WIDE | {"window_seconds": 200_000},
    "live": _LOOSE | _WIDE | {"window_seconds": 5_000_000},
    "search": _WIDE | {"min_clicks": 1, "per_query": 1000},
    "summary": _WIDE | {"words": 2},
    "hashtag": _WIDE | {"per_hashtag": 1000, "neighbours": 100},
    "rsdf": _WIDE | {"min_cosine": 0.3},
    "id": _WIDE | {"cluster_items": 10},
    "q2i_search": {"min_clicks": 1, "per_query": 1000},
    "q2i_score": {"per_query": 1000},
}
# Every limit cuts, so that ties are drawn everywhere.
_CAPPED = {
    "copair": {"min_users": 1, "min_npmi": 0.05, "per_item": 3, "neighbours": 2},
    "live": _LOOSE | {"window_seconds": 5_000_000, "per_item": 3},
    "search": {"min_clicks": 1, "per_query": 4, "per_item": 3},
    "summary": {"words": 2, "max_documents": 12, "per_item": 3},
    "hashtag": {"max_items": 12, "per_hashtag": 5, "neighbours": 2, "per_item": 3},
    "rsdf": {"min_cosine": 0.3, "per_item": 3},
    "id": {"cluster_items": 20, "max_items": 5, "per_item": 3},
    "q2i_search": {"min_clicks": 1, "min_ctr": 0.2, "per_query": 3},
    "q2i_score": {"per_query": 2, "levels": 4},
    "cls": {"min_items": 3, "per_label": 4},
}


def _drawn(folder: Path) -> None:
    logs.drawn_export(folder)


def _generated(folder: Path) -> None:
    """The logs of a generated world of 60 items, 150 users and three tastes."""
    config = SyntheticConfig(num_items=60, communities=3, styles=2, log_users=150, log_events_per_user=30)
    topics = draw_topics(12, 5)
    topic_of = draws(5, "items").permutation(60) % len(topics)
    write_logs(topics, topic_of, np.array([f"item{n:06d}" for n in range(60)]), config, 5, 0.1, folder)


# One cluster, and all of its items as neighbours: the taste vectors of a small world lie so close together that another
# processor, which rounds otherwise, finds other clusters.
_ONE_CLUSTER = {"cluster_items": 60, "neighbours": 60}


_TASTES = {"like": "vectors/id_like", "finish": "vectors/id_finish"}
# Case -> how its logs are made, its settings of the builders, and its ID embeddings.
CASES = {
    "drawn_open": (_drawn, _OPEN, {"like": "vectors/id_like"}),
    "drawn_capped": (_drawn, _CAPPED, {"like": "vectors/id_like"}),
    "generated_open": (_generated, _OPEN | {"id": _OPEN["id"] | _ONE_CLUSTER}, _TASTES),
    "generated_capped": (_generated, _CAPPED | {"id": _CAPPED["id"] | _ONE_CLUSTER}, _TASTES),
}


def make_logs(case: str, folder: Path) -> Config:
    """Writes the logs of a case, and returns its settings."""
    make, builders, embeddings = CASES[case]
    make(folder)
    return logs.with_logs(logs.config(**builders), id_embeddings=embeddings)


def rows_of(tables: dict) -> list[tuple]:
    """Rows (builder, split, query, target, score) of what `small_logs.build` returns, in the order of the tables."""
    return [(name, split, *row) for name, table in tables.items() for split, rows in table.items() for row in rows]


def read_golden(case: str) -> tuple[list[tuple], dict]:
    """Rows and counts of a case."""
    columns = pq.read_table(GOLDEN / f"{case}.parquet").to_pydict()
    return list(zip(*columns.values(), strict=True)), json.loads((GOLDEN / f"{case}.json").read_text())


def counts_of(summary: dict) -> dict:
    """The counts of each builder, without its settings."""
    return {name: {key: of for key, of in entry.items() if key != "settings"} for name, entry in summary.items()}


def _write(case: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tables, summary = logs.build(Path(folder), make_logs(case, Path(folder)))
    names = ("builder", "split", "query", "target", "score")
    columns = dict(zip(names, zip(*rows_of(tables), strict=True), strict=True))
    columns["score"] = pa.array(columns["score"], pa.float32())
    pq.write_table(pa.table(columns), GOLDEN / f"{case}.parquet", compression="zstd")
    (GOLDEN / f"{case}.json").write_text(json.dumps(counts_of(summary), indent=1) + "\n")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in CASES:
        _write(name)
