"""The verbs that judge: evaluate, report."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.table import Table

from sail_jax import config as config_lib
from sail_jax.cli.common import add_verb, config_of_run, console, print_wide, without_config
from sail_jax.config import Config
from sail_jax.evaluation.report.data import read_runs, write_report_data
from sail_jax.evaluation.report.page import png_folder, write_report
from sail_jax.evaluation.report.summary import gather
from sail_jax.evaluation.suite import (
    TaskResult,
    evaluated_step,
    evaluation_record,
    headline,
    metrics_tree,
    run_suite,
    shown_results,
)
from sail_jax.files import commit_bytes
from sail_jax.runs.directory import RunDirectory


def add_verbs(verbs: Any) -> None:
    """Adds the verbs of this room to the parser."""
    _add_evaluate(verbs)
    _add_report(verbs)


def _add_evaluate(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "evaluate",
        _evaluate,
        "evaluate a trained run, or a folder of embeddings, and write metrics.json, evaluation.json and report.html",
        "--workdir runs/glyphs",
        workdir="run directory; where the figures are written",
        config="of run",
    )
    sub.add_argument(
        "--embeddings",
        type=Path,
        help="folder that `embed` wrote, evaluated in place of a checkpoint: FOLDER/TASK/queries and FOLDER/TASK/corpus, or "
        "FOLDER for all items; --config names the tasks, and --workdir need not be a run",
    )


def _add_report(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "report",
        _report,
        "draw the report of an evaluated run again, or compare several runs in one page; needs neither model nor items",
        "--workdir runs/glyphs --workdir runs/glyphs_large --output report.html",
        workdir="",
        config="",
    )
    sub.add_argument(
        "--workdir", required=True, type=Path, action="append", help="run directory; name several to compare them"
    )
    sub.add_argument(
        "--output",
        type=Path,
        default=Path("report.html"),
        help="page that is written, with its charts as PNGs in NAME_files beside it (report.html)",
    )


def _evaluate(options: argparse.Namespace, overrides: list[str]) -> None:
    if options.embeddings and options.config:
        options.workdir.mkdir(parents=True, exist_ok=True)
        config = config_lib.load(options.config, overrides)
    else:
        config = config_of_run(options, overrides)
    evaluate_and_say(config, options.workdir, options.embeddings)


def evaluate_and_say(config: Config, workdir: Path, embeddings: Path | None = None) -> None:
    """Evaluates a run, or a folder of embeddings; writes figures and report, and prints the main figures."""
    run = RunDirectory(workdir)
    results, tasks, store = run_suite(config, run.path, embeddings)
    step = None if embeddings else evaluated_step(run.path)
    _write_json(run.metrics, metrics_tree(results))
    _write_json(run.evaluation, evaluation_record(results, step))
    write_report_data(run.report_data, gather(config, run, results, tasks, store))
    write_report(run.report, read_runs([run.path]))
    shown = shown_results(results, tasks)
    for names in dict.fromkeys(tuple(headline(r)) for r in shown):
        _print_results([r for r in shown if tuple(headline(r)) == names], names)
    console.print(
        f"Figures: {run.metrics} (all metrics), {run.evaluation} (with histograms); report: {run.report}; "
        f"charts: {png_folder(run.report)}"
    )


def _print_results(results: list[TaskResult], names: tuple[str, ...]) -> None:
    """A table of results that have the same figures, in per cent."""
    table = Table("task", "view", "model", *(name.replace("recall@", "R@") for name in names), "queries", "corpus")
    for r in results:
        figures = [f"{100 * r.metrics[name]:.1f}" for name in names]
        table.add_row(r.task, str(r.view), r.model, *figures, str(r.queries), str(r.corpus))
    print_wide(table)


def _write_json(path: Path, values: Any) -> None:
    commit_bytes(path, (json.dumps(values, indent=2) + "\n").encode())


def _report(options: argparse.Namespace, overrides: list[str]) -> None:
    without_config("report", overrides)
    output = options.output.absolute()
    write_report(output, read_runs(options.workdir))
    console.print(f"Report: {output}; charts: {png_folder(output)}")
