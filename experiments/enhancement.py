"""What learning from the recommender is worth: content training, then sequence-to-item, then ID-to-item with it.

    python -m experiments.enhancement --workdir runs/enhancement

generates the world of configs/recommender.py, makes its tables of pairs and sequences, and trains per seed two runs of the same number of steps: "enhanced",
whose stages are those of that config, and "content", which goes on with the content sets of the first stage, as a control. Both are
evaluated at the end of each stage. It writes experiments/results/enhancement.json and a table with mean and standard error in the shape of
tables 4 and 5 of the report (arXiv 2510.12709). What is finished is not repeated, so it may be stopped and started again.
"""

import argparse
import concurrent.futures
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from sail_jax import config as config_lib
from sail_jax.data.tables import Pair, PairTable, is_held_out, write_pairs

REPO = Path(__file__).parents[1]
CONFIG = REPO / "configs" / "recommender.py"
# Steps of each stage: few, as there are six runs. The evaluations in between come at multiples of EVERY.
STAGES = {"1_content": 300, "2_sequences": 150, "3_ids": 150}
EVERY = 150
SEQUENCE_WEIGHTS = {
    "copair": 1.0,
    "seq_content_single": 1.0,
    "seq_content_multi": 0.2,  # there are few of them
    "seq_collab_single": 1.0,
    "seq_collab_multi": 1.0,
}
# Share of the items whose ID embeddings are not taught.
HOLDOUT = 0.2
GID = "gid_held_out.parquet"
COMMON = (
    "model.llm.layers=1",
    "model.llm.mlp_width=128",
    "model.vit.layers=1",
    "data.batch_size=32",
    "eval.untrained=False",
    "eval.tfidf=False",
    "eval.widths=(96,)",
    f"ingest.holdout={HOLDOUT}",
    f"eval.tasks.gid.table=tables/{GID}",
    "eval.tasks.gid.split=test",
    f"train.evaluate_every={EVERY}",
    f"train.checkpoint_every={EVERY}",
    *(f"stages.{stage}.steps={steps}" for stage, steps in STAGES.items()),
)
# Figure -> where the evaluation has it, and by what it is multiplied.
FIGURES = {
    "NMI": ("copair/clustering/nmi", 1),
    "Kendall x 10^4": ("copair/agreement/kendall", 1e4),
    "intersection": ("copair/agreement/top@10", 100),
    "bijective": ("copair/bijective", 100),
    "Gid R@50": ("gid/recall@50", 100),
    "Gid R@100": ("gid/recall@100", 100),
    "Copair R@50": ("copair/recall@50", 100),
    "Copair R@100": ("copair/recall@100", 100),
    "Vanilla R@1": ("vanilla/recall@1", 100),
    "Vanilla R@10": ("vanilla/recall@10", 100),
    "Vanilla R@25": ("vanilla/recall@25", 100),
    "Filtered R@1": ("filtered/recall@1", 100),
    "Filtered R@10": ("filtered/recall@10", 100),
    "Filtered R@25": ("filtered/recall@25", 100),
}
# The report's rows: how each is called, of which kind of run, after how many steps.
ROWS = {
    "base": ("enhanced", 300),
    "+ sequence-to-item": ("enhanced", 450),
    "+ ID-to-item": ("enhanced", 600),
    "content alone, as long": ("content", 600),
}


def main() -> None:
    """Runs what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=REPO / "runs" / "enhancement", help="where the runs lie")
    parser.add_argument(
        "--output", type=Path, default=REPO / "experiments" / "results" / "enhancement.json", help="the table as JSON"
    )
    parser.add_argument("--seeds", type=int, default=3, choices=range(2, 100), metavar="N", help="at least 2 (3)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one thread (2)")
    options = parser.parse_args()
    workdir = options.workdir.absolute()
    prepare(workdir)
    runs = [(kind, seed) for kind in ("enhanced", "content") for seed in range(options.seeds)]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda run: train(workdir, *run), runs))
    table = summarise(workdir, options.seeds)
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "jax": jax.__version__}
    result = {"machine": machine, "common": COMMON, "seeds": options.seeds, "table": table}
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(markdown(table), f"\n\nWritten to {options.output}")


def prepare(workdir: Path) -> None:
    """The world, its store, its pairs, a model of content that tells which items of a history are alike, and the sequences."""
    raw, data, content = workdir / "world", workdir / "data", workdir / "content_model"
    tables = str(data / "tables")
    common = ("--config", str(CONFIG), f"--config.ingest.holdout={HOLDOUT}")
    once(workdir / "world" / "world.json", "world", *common, "--output", str(raw))
    once(data / "tables" / "theme.parquet", "ingest", *common, "--source", str(raw), "--workdir", str(data))
    once(
        data / "tables" / "pairs.json",
        "pairs",
        *common,
        "--source",
        str(raw),
        "--output",
        tables,
        "--workdir",
        str(data),
    )
    settings = [f"--config.{word}" for word in (f"data.dir={data}", *COMMON, "train.evaluate_every=0", "eval.tasks={}")]
    settings += [f"--config.stages={ {'1_content': content_stage()} }"]
    once(content / "checkpoints" / str(STAGES["1_content"]), "train", *common, "--workdir", str(content), *settings)
    vectors = workdir / "content_embeddings"
    once(vectors / "embeddings.json", "embed", "--workdir", str(content), "--output", str(vectors))
    sequences = ("sequences", *common, "--source", str(raw), "--output", tables, "--workdir", str(data))
    once(data / "tables" / "sequences.json", *sequences, "--embeddings", str(vectors))
    hold_out(data / "tables")


def hold_out(tables: Path) -> None:
    """Neighbours by an ID embedding of which the distillation sees neither: Gid-like pairs that were not taught."""
    seed = config_lib.load(CONFIG, []).seed

    def held_out() -> Iterator[tuple[Pair, str]]:
        for pairs in PairTable.open(tables / "id.parquet", "train").iter_batches():
            for pair in pairs:
                if all(is_held_out(item_id, seed, HOLDOUT) for item_id in (pair.query_id, pair.target_id)):
                    yield pair, "test"

    if not (tables / GID).exists():
        write_pairs(tables / GID, held_out())


def content_stage() -> dict:
    """The settings of the first stage."""
    return config_lib.to_dict(config_lib.load(CONFIG, []))["stages"]["1_content"] | {"steps": STAGES["1_content"]}


def train(workdir: Path, kind: str, seed: int) -> None:
    """One run; it goes on where it was stopped."""
    words = [f"data.dir={workdir / 'data'}", f"seed={seed}", *COMMON]
    if kind == "content":
        weights = content_stage()["weights"]
        words += [f"stages.{stage}.weights={weights}" for stage in STAGES]
    else:
        words.append(f"stages.2_sequences.weights={SEQUENCE_WEIGHTS}")
    path = run_path(workdir, kind, seed)
    overrides = [f"--config.{word}" for word in words]
    once(
        path / "checkpoints" / str(sum(STAGES.values())),
        "train",
        "--config",
        str(CONFIG),
        "--workdir",
        str(path),
        *overrides,
    )


def once(result: Path, *arguments: str) -> None:
    """Runs a verb in a process of its own, on one thread, unless its result is there."""
    if result.exists():
        return
    print(" ".join(arguments[:1]), "->", result, flush=True)
    environment = os.environ | {
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
    }
    command = [sys.executable, "-m", "sail_jax", *arguments]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def run_path(workdir: Path, kind: str, seed: int) -> Path:
    """The run directory of a kind and a seed."""
    return workdir / kind / str(seed)


def read(path: Path, step: int) -> dict[str, float]:
    """The evaluation of a run after some steps."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    found = {}
    for line in lines:
        if line["step"] == step:
            found |= {key.removeprefix("eval/"): value for key, value in line.items() if key.startswith("eval/")}
    return found


def summarise(workdir: Path, seeds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Row -> figure -> mean, standard error, and mean change to the base with its standard error, taken seed by seed."""
    values = {
        row: [read(run_path(workdir, kind, seed), step) for seed in range(seeds)] for row, (kind, step) in ROWS.items()
    }
    table: dict[str, dict[str, dict[str, float]]] = {}
    for row, of_seeds in values.items():
        table[row] = {}
        for figure, (key, factor) in FIGURES.items():
            mine = np.array([found[key] for found in of_seeds]) * factor
            change = mine - np.array([found[key] for found in values["base"]]) * factor
            figures = {"mean": mine.mean(), "standard_error": standard_error(mine)}
            figures |= {"change": change.mean(), "change_standard_error": standard_error(change)}
            table[row][figure] = {name: round(float(value), 4) for name, value in figures.items()}
    return table


def standard_error(values: np.ndarray) -> float:
    """Of the mean of at least two values."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def markdown(table: dict[str, dict[str, dict[str, float]]]) -> str:
    """Two tables: consistency and retrieval, and sequences."""
    figures = list(FIGURES)
    parts = []
    for columns in (figures[:8], figures[8:]):
        lines = ["| model | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
        for name, row in table.items():
            cells = [
                f"{row[c]['mean']:.{3 if c == 'NMI' else 1}f} ± {row[c]['standard_error']:.{3 if c == 'NMI' else 1}f}"
                for c in columns
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
