"""Tables of all constructions on small worlds, written once, which a change of the constructions is compared with.

    python tests/logs/golden_sequences.py

writes them anew, from the top of the checkout: only where the rules themselves, or what is drawn, are meant to change.
"""

import json
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

if __name__ == "__main__":
    sys.path[:0] = ["", "tests", "tests/logs"]

from small_logs import with_logs
from small_sequences import config_of, make_world, write_logs

from sail_jax.config.log_sequences import CONSTRUCTIONS, HISTORIES
from sail_jax.config.logs import EngineConfig
from sail_jax.logs.addresses import Address
from sail_jax.logs.sequences.build import build_sequences

GOLDEN = Path(__file__).parent / "golden"
# Case -> seed of the world, and what is changed of the settings.
CASES = {
    # Nothing is drawn: what the rules keep is all in the sequences.
    "sequences_open": (0, {"length": 1000, "windows": 100, "stride": 1, "seen": 1000}),
    # Every limit cuts, consumers are sampled, and what is taken is drawn.
    "sequences_capped": (1, {"behaviour_users": 4, "cluster_level": 1, "label_jaccard": 0.2}),
    # Events count for consumers that do not count for histories, and the other way round.
    "sequences_peaks": (2, {"multi_positives": 3, "single_positives": 2, "behaviour_users": 8}),
}


def build_case(
    case: str,
    folder: Path,
    engine: str = "duckdb",
    settings: EngineConfig | None = None,
    output: Address | None = None,
) -> tuple[list[tuple], dict]:
    """Rows (table, user, items, target, seen items, split), in the order of the tables, and counts of a case."""
    seed, changes = CASES[case]
    source = write_logs(make_world(seed), folder / "export")
    config = config_of(constructions=(*CONSTRUCTIONS, HISTORIES), **changes)
    config = with_logs(config, engine=settings or EngineConfig())
    given = {"embeddings": source / "vectors.parquet", "engine": engine}
    summary = build_sequences(config, source, output or folder / "tables", **given)
    rows = []
    for name in summary["tables"]:
        columns = pq.read_table(folder / "tables" / f"{name}.parquet").to_pydict()
        rows += [(name, *row) for row in zip(*columns.values(), strict=True)]
    return rows, {key: summary[key] for key in ("cut", "events", "tables")}


def read_golden(case: str) -> tuple[list[tuple], dict]:
    """Rows and counts of a case."""
    columns = pq.read_table(GOLDEN / f"{case}.parquet").to_pydict()
    return list(zip(*columns.values(), strict=True)), json.loads((GOLDEN / f"{case}.json").read_text())


def _write(case: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows, counts = build_case(case, Path(folder))
    names = ("table", "user_id", "item_ids", "target_id", "seen_ids", "split")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), GOLDEN / f"{case}.parquet", compression="zstd")
    (GOLDEN / f"{case}.json").write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in CASES:
        _write(name)
