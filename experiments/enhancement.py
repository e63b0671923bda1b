"""Measures the worth of a recommender's logs: a content model, then sequence-to-item and ID-to-item.

    python -m experiments.enhancement --workdir runs/enhancement

generates the world of configs/recommender.py, builds its tables, trains one content model, and from it the sweep
configs/sweeps/enhancement.py: the last two stages of that config, once per seed. It evaluates the content model and the
end of each stage. It writes experiments/results/enhancement.json and a table with mean and standard error in the format
of tables 4 and 5 of the report (arXiv 2510.12709). All seeds start from the same content model, so that the errors are
those of the two stages. Finished parts are not repeated, so the script may be stopped and started again.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from configs.sweeps.enhancement import COMMON, GID, HOLDOUT, ROWS, SEQUENCE_WEIGHTS, STEPS
from experiments.processes import call, machine
from sail_jax import config as config_lib
from sail_jax.data.tables import Pair, PairTable, is_held_out, write_pairs
from sail_jax.evaluation.metrics.seeds import standard_error
from sail_jax.sweeps import SweepFolder, load, read
from sail_jax.sweeps.run import run_sweep

REPO = Path(__file__).parents[1]
CONFIG = REPO / "configs" / "recommender.py"
# Steps of the content model, in batches of 64 pairs.
CONTENT_STEPS = 400
CONTENT_WEIGHTS = {"hashtag": 2.0, "search": 2.0, "copair": 1.0}
# Figure -> its key in the evaluation, and its factor.
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


def main() -> None:
    """Runs the missing parts and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=REPO / "runs" / "enhancement", help="folder of the runs")
    parser.add_argument(
        "--output", type=Path, default=REPO / "experiments" / "results" / "enhancement.json", help="the table as JSON"
    )
    parser.add_argument("--seeds", type=int, default=3, choices=range(2, 100), metavar="N", help="at least 2 (3)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one thread (2)")
    options = parser.parse_args()
    workdir = options.workdir.absolute()
    prepare(workdir)
    sweep, folder = load(REPO / "configs" / "sweeps" / "enhancement.py"), SweepFolder(workdir / "sweep")
    words = (*sweep.overrides, *of_content(workdir))
    run_sweep(dataclasses.replace(sweep, overrides=words, seeds=range(options.seeds)), folder.path, jobs=options.jobs)
    base = figures_of(workdir / "content")
    found = {row: [figures_of(run_path(folder, row, seed)) for seed in range(options.seeds)] for row in ROWS}
    table = summarise(base, found)
    settings = {"common": COMMON, "content_weights": CONTENT_WEIGHTS, "sequence_weights": SEQUENCE_WEIGHTS}
    steps = {"content": CONTENT_STEPS, "stages": STEPS}
    result = {"machine": machine(), "settings": settings, "steps": steps, "seeds": options.seeds, "table": table}
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(markdown(table), f"\n\nWritten to {options.output}")


def run_path(folder: SweepFolder, row: str, seed: int) -> Path:
    """The run directory of a row of the table and a seed."""
    members = (member.record.member for member in read(folder.path).members)
    return folder.run(next(m.name for m in members if (m.axes["variant"], m.seed) == (row, seed))).path


def figures_of(path: Path) -> dict[str, float]:
    """The figures of a finished run."""
    return json.loads((path / "metrics.json").read_text())["trained"]


def prepare(workdir: Path) -> None:
    """Creates the world, its store and pairs, the content model with all its outputs, and the sequences."""
    raw, data, content = workdir / "world", workdir / "data", workdir / "content"
    tables, export, vectors = data / "tables", workdir / "content_export", workdir / "content_embeddings"
    config, logs = ("--config", str(CONFIG), f"--config.ingest.holdout={HOLDOUT}"), ("--source", str(raw))
    once(raw / "world.json", "world", *config, "--output", str(raw))
    once(tables / "items.parquet", "ingest", *config, *logs, "--workdir", str(data))
    made = (*logs, "--output", str(tables), "--workdir", str(data))
    once(tables / "pairs.json", "pairs", *config, *made)
    hold_out(tables)
    stage = {"1_content": {"steps": CONTENT_STEPS, "weights": CONTENT_WEIGHTS, "warmup_steps": 20}}
    words = overrides(data, "data.batch_size=64", f"stages={stage}")
    done = content / "checkpoints" / str(CONTENT_STEPS)
    once(done, "train", "--config", str(CONFIG), "--workdir", str(content), *words, one_thread=False)
    once(export / "config.json", "export", "--workdir", str(content), "--output", str(export))
    once(vectors / "embeddings.json", "embed", "--workdir", str(content), "--output", str(vectors), one_thread=False)
    once(tables / "sequences.json", "sequences", *config, *made, "--embeddings", str(vectors))
    once(content / "metrics.json", "evaluate", "--workdir", str(content), one_thread=False)


def hold_out(tables: Path) -> None:
    """Writes Gid-like test pairs of items whose ID embeddings are excluded from distillation."""
    seed = config_lib.load(CONFIG, []).seed

    def held_out() -> Iterator[tuple[Pair, str]]:
        for pairs in PairTable.open(tables / "id.parquet", "train").iter_batches():
            for pair in pairs:
                if all(is_held_out(item_id, seed, HOLDOUT) for item_id in (pair.query_id, pair.target_id)):
                    yield pair, "test"

    if not (tables / GID).exists():
        write_pairs(tables / GID, held_out())


def of_content(workdir: Path) -> tuple[str, ...]:
    """The settings by which members start from the content model, on its data."""
    return f"data.dir={workdir / 'data'}", f"init_from={ {'model': str(workdir / 'content_export')} }"


def overrides(data: Path, *words: str) -> list[str]:
    """Command-line words that override settings."""
    return [f"--config.{word}" for word in (f"data.dir={data}", *COMMON, *words)]


def once(result: Path, *arguments: str, one_thread: bool = True) -> None:
    """Runs a verb in its own process, unless its result exists."""
    if not result.exists():
        print(arguments[0], "->", result, flush=True)
        call(*arguments, one_thread=one_thread)


def summarise(
    base: dict[str, float], of_rows: dict[str, list[dict[str, float]]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Row -> figure -> mean and standard error over seeds, and the change from the base.

    Args:
        base: the figures of the content model.
        of_rows: row -> the figures of each seed.
    """
    table = {"base": {figure: {"mean": base[key] * factor} for figure, (key, factor) in FIGURES.items()}}
    for row, found in of_rows.items():
        table[row] = {}
        for figure, (key, factor) in FIGURES.items():
            values = np.array([of_seed[key] for of_seed in found]) * factor
            change = float(values.mean() - base[key] * factor)
            cell = {"mean": float(values.mean()), "standard_error": standard_error(values), "change": change}
            table[row][figure] = cell
    return {
        row: {figure: {name: round(value, 4) for name, value in cell.items()} for figure, cell in cells.items()}
        for row, cells in table.items()
    }


def markdown(table: dict[str, dict[str, dict[str, float]]]) -> str:
    """Two tables: consistency and retrieval, and sequences."""
    figures = list(FIGURES)
    parts = []
    for columns in (figures[:8], figures[8:]):
        lines = ["| model | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
        for name, row in table.items():
            lines.append(f"| {name} | " + " | ".join(_cell(column, row[column]) for column in columns) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(figure: str, cell: dict[str, float]) -> str:
    digits = 3 if figure == "NMI" else 1
    error = f" ± {cell['standard_error']:.{digits}f}" if "standard_error" in cell else ""
    return f"{cell['mean']:.{digits}f}{error}"


if __name__ == "__main__":
    main()
