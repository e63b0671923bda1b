"""Measures the worth of each training ingredient: the main config against variants with one change.

    python -m experiments.ablations --workdir runs/ablations

trains configs/world.py on the quickstart's generated world, once per variant and seed with the same number of steps,
evaluates each run, and writes experiments/results/ablations.json and a table with mean and standard error. Finished
runs are not repeated, so the script may be stopped and started again.
"""

import argparse
import concurrent.futures
import json
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np

from sail_jax import config as config_lib
from sail_jax.data.ingest.ingest import ingest
from sail_jax.data.synthetic.world import make_world
from sail_jax.evaluation.metrics.seeds import standard_error

REPO = Path(__file__).parents[1]
METRICS = ("i2i/recall@1", "i2i/recall@10", "i2i/recall@50", "q2i/recall@1", "q2i/recall@10", "q2i/recall@50")
# Common to all runs: a smaller model and fewer pairs and steps than in the quickstart, because there are about forty
# runs.
COMMON = (
    "model.llm.layers=1",
    "model.llm.mlp_width=128",
    "model.vit.layers=1",
    "prompt.max_tokens=48",
    "data.batch_size=32",
    "stages.1_broad.steps=120",
    "stages.2_target.steps=60",
    "stages.3_hard.steps=30",
    "stages.3_hard.hard_negatives=2",
    "eval.untrained=False",
    "eval.tfidf=False",
)
# Name -> changes of the main config. "without X" leaves X out; the others replace it by a baseline.
ABLATIONS: dict[str, tuple[str, ...]] = {
    "main": (),
    "without several patterns": (
        "data.datasets.copair.patterns=('O->O',)",
        "data.datasets.look_search.patterns=('T->O',)",
    ),
    "without COSENT": ("data.datasets.score.loss_weights={'cosent': 0.0}",),
    "without mICL": ("objective.weights.micl=0.0",),
    "without late fusion": ("objective.weights.late_fusion=0.0",),
    "without hard negatives": ("stages.3_hard.mine=()",),
    "without field dropout": ("data.field_dropout=0.0",),
    "all-in-one instead of progressive": ("train.progressive=False",),
    "mixed batches instead of one data set each": ("data.sampling=mixed",),
    "unified instead of task-specific prompts": ("prompt.unified=Represent the content.",),
    "causal instead of bidirectional attention": ("model.llm.causal=True",),
    "dual tower instead of LLM fusion": ("model.kind=dual_tower",),
    "with balanced weights in the first stage": ("data.weights=balanced.json",),
}
BALANCED = "with balanced weights in the first stage"


def main() -> None:
    """Runs the missing variants and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=REPO / "runs" / "ablations", help="folder of the runs")
    parser.add_argument(
        "--output",
        type=Path,
        default=REPO / "experiments" / "results" / "ablations.json",
        help="the table as JSON",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, choices=range(2, 100), metavar="N", help="seeds each, at least 2"
    )
    parser.add_argument(
        "--only",
        nargs="*",
        choices=list(ABLATIONS),
        default=list(ABLATIONS),
        metavar="NAME",
        help="some of the ingredients (main always runs): " + ", ".join(f'"{name}"' for name in ABLATIONS),
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one thread")
    options = parser.parse_args()
    data = prepare(options.workdir.absolute())
    options.only = list(dict.fromkeys(["main", *options.only]))
    names = [name for name in options.only if name != BALANCED]
    # Runs of different variants go in parallel: the first seed of each compiles the steps for its other seeds.
    groups = [names[i : i + options.jobs] for i in range(0, len(names), options.jobs)]
    runs = [(name, seed) for group in groups for seed in range(options.seeds) for name in group]
    train_all(runs, options.workdir.absolute(), data, options.jobs)
    if BALANCED in options.only:
        balance(options.workdir.absolute(), data)
        train_all([(BALANCED, seed) for seed in range(options.seeds)], options.workdir.absolute(), data, options.jobs)
    table = summarise(options.workdir.absolute(), options.only, options.seeds)
    options.output.write_text(json.dumps({"machine": machine(), "common": COMMON, "table": table}, indent=2) + "\n")
    print(markdown(table), f"\n\nWritten to {options.output}")


def prepare(workdir: Path) -> Path:
    """Generates and ingests the world, unless it exists."""
    config = config_lib.load(REPO / "configs" / "quickstart.py", [f"data.dir={workdir / 'data'}"])
    make_world(config.synthetic, config.seed, workdir / "world")
    ingest(config, workdir / "world", workdir / "data")
    return workdir / "data"


def run_path(workdir: Path, name: str, seed: int) -> Path:
    """The run directory of a variant and a seed."""
    return workdir / name.replace(" ", "_") / str(seed)


def train_all(runs: list[tuple[str, int]], workdir: Path, data: Path, jobs: int) -> None:
    """Trains and evaluates several runs in parallel; prints the result of each."""
    counted, lock = [0], threading.Lock()

    def one(run: tuple[str, int]) -> None:
        path = run_path(workdir, *run)
        if not (path / "metrics.json").is_file():
            overrides = [
                f"--config.{word}" for word in (f"data.dir={data}", f"seed={run[1]}", *COMMON, *ABLATIONS[run[0]])
            ]
            call("train", "--config", str(REPO / "configs" / "world.py"), "--workdir", str(path), *overrides)
            call("evaluate", "--workdir", str(path))
        with lock:
            counted[0] += 1
            print(f"{counted[0]}/{len(runs)} {run[0]}, seed {run[1]}: {read(path)['i2i/recall@10']:.3f}", flush=True)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, runs))


def call(*arguments: str, one_thread: bool = True) -> None:
    """Runs a verb in its own process; runs share the compilation cache."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sail_jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
    }
    if one_thread:
        environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    command = [sys.executable, "-m", "sail_jax", *arguments]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def balance(workdir: Path, data: Path) -> None:
    """Balances the data sets with the last model of a main run; one after its first stage would be enough."""
    if not (data / "balanced.json").is_file():
        call("balance", "--workdir", str(run_path(workdir, "main", 0)), "--output", str(data / "balanced.json"))


def read(path: Path) -> dict[str, float]:
    """The figures of a finished run."""
    return json.loads((path / "metrics.json").read_text())["trained"]


def summarise(workdir: Path, names: list[str], seeds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Variant -> metric -> mean and change from the main config, each with its standard error.

    Differences are taken seed by seed: two runs of one seed start from the same parameters and draw the same batches.
    """
    table = {}
    main_runs = [read(run_path(workdir, "main", seed)) for seed in range(seeds)]
    for name in names:
        figures = [read(run_path(workdir, name, seed)) for seed in range(seeds)]
        table[name] = {}
        for metric in METRICS:
            values = np.array([f[metric] for f in figures])
            change = values - np.array([f[metric] for f in main_runs])
            row = {
                "mean": values.mean(),
                "standard_error": standard_error(values),
                "change": change.mean(),
                "change_standard_error": standard_error(change),
            }
            table[name][metric] = {key: round(float(value), 5) for key, value in row.items()}
    return table


def markdown(table: dict[str, dict[str, dict[str, float]]]) -> str:
    """The table, in per cent."""
    columns = ("i2i/recall@10", "q2i/recall@10")
    lines = [
        "| what | " + " | ".join(f"{c} | change" for c in columns) + " |",
        "| --- |" + " --- | --- |" * len(columns),
    ]
    for name, row in table.items():
        cells = []
        for column in columns:
            cells.append(f"{100 * row[column]['mean']:.1f} ± {100 * row[column]['standard_error']:.1f}")
            change = row[column].get("change", 0.0)
            cells.append(
                "" if name == "main" else f"{100 * change:+.1f} ± {100 * row[column]['change_standard_error']:.1f}"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine() -> dict[str, object]:
    """A description of the machine, for the results."""
    return {"cores": os.cpu_count(), "python": platform.python_version(), "jax": jax.__version__}


if __name__ == "__main__":
    main()
