"""Measures the worth of each training ingredient: the main config against variants with one change.

    python -m experiments.ablations --workdir runs/ablations

trains configs/world.py on the quickstart's generated world, once per variant and seed with the same number of steps,
evaluates each run, and writes experiments/results/ablations.json and a table with mean and standard error. Finished
runs are not repeated, so the script may be stopped and started again.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from configs.sweeps.ablations import COMMON, VARIANTS
from sail_jax import config as config_lib
from sail_jax.data.ingest.ingest import ingest
from sail_jax.data.synthetic.world import make_world
from sail_jax.evaluation.metrics.seeds import standard_error
from sail_jax.sweeps import Sweep, SweepFolder, read, variants
from sail_jax.sweeps.run import run_sweep

REPO = Path(__file__).parents[1]
METRICS = ("i2i/recall@1", "i2i/recall@10", "i2i/recall@50", "q2i/recall@1", "q2i/recall@10", "q2i/recall@50")
BALANCED = "with balanced weights in the first stage"
# Name -> changes of the main config.
ABLATIONS = VARIANTS | {BALANCED: ("data.weights=balanced.json",)}


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
    names = list(dict.fromkeys(["main", *options.only]))
    folder = SweepFolder(options.workdir.absolute() / "sweep")
    if BALANCED in names and not (data / "balanced.json").is_file():
        train_all(folder, [name for name in names if name != BALANCED], options.seeds, data, options.jobs)
        balance(folder, data)
    train_all(folder, names, options.seeds, data, options.jobs)
    table = summarise(folder, names, options.seeds)
    options.output.write_text(json.dumps({"machine": machine(), "common": COMMON, "table": table}, indent=2) + "\n")
    print(markdown(table), f"\n\nWritten to {options.output}")


def prepare(workdir: Path) -> Path:
    """Generates and ingests the world, unless it exists."""
    config = config_lib.load(REPO / "configs" / "quickstart.py", [f"data.dir={workdir / 'data'}"])
    make_world(config.synthetic, config.seed, workdir / "world")
    ingest(config, workdir / "world", workdir / "data")
    return workdir / "data"


def train_all(folder: SweepFolder, names: list[str], seeds: int, data: Path, jobs: int) -> None:
    """Trains and evaluates the members of the sweep that are not done; variants that it has already stay in it."""
    if folder.file.is_file():
        before = [member.record.member for member in read(folder.path).members]
        names = [*names, *(member.axes["variant"] for member in before)]
        seeds = max(seeds, *(member.seed + 1 for member in before))
    sweep = Sweep(
        base="world",
        axes=[variants({name: changes for name, changes in ABLATIONS.items() if name in names})],
        overrides=(*COMMON, f"data.dir={data}"),
        seeds=range(seeds),
        baseline="main",
        metric="i2i/recall@10",
        name="ablations",
    )
    run_sweep(sweep, folder.path, jobs=jobs)


def run_path(folder: SweepFolder, name: str, seed: int) -> Path:
    """The run directory of a variant and a seed."""
    members = (member.record.member for member in read(folder.path).members)
    return folder.run(next(m.name for m in members if (m.axes["variant"], m.seed) == (name, seed))).path


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


def balance(folder: SweepFolder, data: Path) -> None:
    """Balances the data sets with the last model of a main run; one after its first stage would be enough."""
    call("balance", "--workdir", str(run_path(folder, "main", 0)), "--output", str(data / "balanced.json"))


def figures_of(path: Path) -> dict[str, float]:
    """The figures of a finished run."""
    return json.loads((path / "metrics.json").read_text())["trained"]


def summarise(folder: SweepFolder, names: list[str], seeds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Variant -> metric -> mean and change from the main config, each with its standard error.

    Differences are taken seed by seed: two runs of one seed start from the same parameters and draw the same batches.
    """
    table = {}
    main_runs = [figures_of(run_path(folder, "main", seed)) for seed in range(seeds)]
    for name in names:
        figures = [figures_of(run_path(folder, name, seed)) for seed in range(seeds)]
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
