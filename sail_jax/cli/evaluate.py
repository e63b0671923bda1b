"""The verb `evaluate`: metrics and a report of a run or of embeddings."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from sail_jax import config as config_lib
from sail_jax.buckets import place
from sail_jax.cli.common import config_of_run, console, declare, print_next, print_wide
from sail_jax.cli.distributed import join_processes
from sail_jax.config import Config
from sail_jax.errors import SailError
from sail_jax.files import commit_json

if TYPE_CHECKING:
    from sail_jax.evaluation.suite import TaskResult
    from sail_jax.runs.directory import RunDirectory


def add_verb(verbs: Any) -> None:
    """Declares the verb."""
    sub = declare(
        verbs,
        "evaluate",
        run,
        "evaluate a trained run, or a folder of embeddings, and write metrics.json, evaluation.json and report.html",
        "--workdir runs/quickstart",
        workdir="run directory, to which the figures are written",
        config="of run",
        distributed=True,
        step=True,
        kept="an earlier evaluation is as it was; run the same command again.",
    )
    sub.add_argument(
        "--embeddings",
        type=place,
        help="folder of embeddings to evaluate instead of a checkpoint: FOLDER/TASK/queries and FOLDER/TASK/corpus, "
        "or FOLDER for all items; --config names the tasks, and --workdir need not be a run",
    )


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Evaluates the run or the embeddings."""
    if options.embeddings and options.step is not None:
        raise SailError(
            "--step chooses a checkpoint, and --embeddings reads vectors instead of one: leave one of them out."
        )
    if options.embeddings and options.distributed:
        raise SailError("--distributed evaluates a model; leave it out with --embeddings.")
    first = join_processes(options)
    if options.embeddings and options.config:
        options.workdir.mkdir(parents=True, exist_ok=True)
        config = config_lib.load(options.config, overrides)
    else:
        config = config_of_run(options, overrides)
    evaluate_and_print(config, options.workdir, options.embeddings, step=options.step)
    if not first:
        return
    if options.embeddings:
        print_next(options, "report", "--workdir", options.workdir, "--workdir", "OTHER", "--output", "report.html")
    else:
        print_next(options, "embed", "--workdir", options.workdir, "--output", "EMBEDDINGS")


def evaluate_and_print(
    config: Config, workdir: Path, embeddings: Path | None = None, *, step: int | None = None
) -> None:
    """Evaluates a run, or a folder of embeddings; writes figures and report, and prints the main figures.

    Several processes evaluate a run together; the first one writes and prints.
    """
    from sail_jax.evaluation.baselines import baseline_results, check_baselines
    from sail_jax.evaluation.ceilings import ceiling_results
    from sail_jax.evaluation.chance import chance_results
    from sail_jax.evaluation.report.data import read_runs, write_report_data
    from sail_jax.evaluation.report.page import png_folder, write_report
    from sail_jax.evaluation.report.story import farthest, sentence, standings
    from sail_jax.evaluation.report.summary import gather
    from sail_jax.evaluation.suite import (
        evaluation_record,
        headline,
        metrics_tree,
        run_suite,
        shown_results,
    )
    from sail_jax.runs.directory import RunDirectory
    from sail_jax.sharding.process_group import everyone

    check_baselines(config)
    files = RunDirectory(workdir)
    results, tasks, store, step = run_suite(config, files.path, embeddings, step=step)
    if not everyone().first:
        return
    results += baseline_results(config, tasks, store) + chance_results(results) + ceiling_results(config, results)
    figures = metrics_tree(results)
    commit_json(files.metrics, figures)
    commit_json(files.evaluation, evaluation_record(results, step))
    write_report_data(files.report_data, gather(config, files, results, tasks, store))
    runs = read_runs([files.path])
    write_report(files.report, runs)
    shown = shown_results(results, tasks)
    order = list(dict.fromkeys((r.task, r.view) for r in shown))
    shown.sort(key=lambda r: order.index((r.task, r.view)))
    for names in dict.fromkeys(tuple(headline(r)) for r in shown):
        _print_results([r for r in shown if tuple(headline(r)) == names], names)
    if found := standings(runs[0]):
        console.print(sentence(runs[0], farthest(found)), highlight=False)
    console.print(
        f"Figures: {files.metrics} (all metrics), {files.evaluation} (with histograms); report: {files.report}; "
        f"charts: {png_folder(files.report)}"
    )
    if step is not None:
        _send_to_trackers(config, files, step, figures["trained"])


def _send_to_trackers(config: Config, files: "RunDirectory", step: int, figures: dict[str, float | None]) -> None:
    if config.train.trackers:
        from sail_jax.training.trackers.of_run import send_evaluation

        send_evaluation(config, files, step, figures)


def _print_results(results: Sequence["TaskResult"], names: tuple[str, ...]) -> None:
    """Prints a table of results that have the same figures, in per cent."""
    table = Table("task", "view", "model", *(name.replace("recall@", "R@") for name in names), "queries", "corpus")
    for r in results:
        figures = [f"{100 * r.metrics[name]:.1f}" for name in names]
        table.add_row(r.task, str(r.view), r.model, *figures, str(r.queries), str(r.corpus))
    print_wide(table)
