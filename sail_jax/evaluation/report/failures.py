"""Draws what failed and why: missed queries, collapse, blind modalities, cut text, doubtful answers."""

import html
from collections.abc import Iterator, Sequence

import numpy as np

from sail_jax.evaluation.report.data import RunReport, TaskFailures
from sail_jax.evaluation.report.gallery import row_html
from sail_jax.evaluation.report.story import standings
from sail_jax.evaluation.report.tables import CHANCE, format_metric, headline_metric, main_figures, subject, tasks_of
from sail_jax.evaluation.report.words import spelled
from sail_jax.runs.cuts import CUTS

_COLLAPSED_NORM, _COLLAPSED_DIMENSIONS = 0.9, 2.0
_BLIND = 2.0  # times the recall of a random order
_OPEN = 2  # worst queries that are not folded away
_DOUBTFUL = 0.2  # of the wrong items found, beyond those of a random order
_FEW = 50  # queries


def failures_html(runs: Sequence[RunReport]) -> str:
    """Returns the HTML of what failed in each run, with the settings to change, and the worst queries."""
    parts = []
    for run in runs:
        found = "".join(f"<li>{line}</li>" for line in _findings(run))
        worst = "".join(_worst(failures) for failures in run.failures)
        name = f"<h3>{html.escape(run.name)}</h3>" if len(runs) > 1 and (found or worst) else ""
        parts.append(name + (f'<ul class="findings">{found}</ul>' if found else "") + worst)
    return "".join(parts)


def _findings(run: RunReport) -> Iterator[str]:
    """Yields what failed as HTML, most telling first."""
    yield from _no_better(run)
    for failures in run.failures:
        if failures.missed:
            yield _line(
                f"{failures.missed:,} of {failures.queries:,} queries of {failures.task} "
                f"({failures.missed / failures.queries:.0%}) find nothing right among the first {failures.found}."
            )
        if failures.taught:
            yield _line(
                f"{failures.taught:,} queries of {failures.task} find an item first that training had as a right "
                "answer of the same query. This test is of other pairs and counts it as wrong, so that its figures are "
                "lower than what a user would see.",
                "hold out whole queries, by a column that config.ingest.tables.NAME.split names",
            )
    yield from _collapsed(run)
    yield from _blind(run)
    yield from _cut(run)
    for failures in run.failures:
        if failures.twins >= _DOUBTFUL:
            yield _line(
                f"{failures.twins:.0%} of the wrong items that come first on {failures.task} have the very text of a "
                "right answer: where a text is asked for or shown, nobody can tell them apart.",
                f"list them as right answers in the table of config.eval.tasks.{failures.task}, or say in the texts "
                "what sets items apart",
            )
        if failures.doubtful is not None and failures.doubtful - failures.common >= _DOUBTFUL:
            yield _line(
                f"{failures.doubtful:.0%} of the wrong items found on {failures.task} carry the label of a right "
                "answer: some may be right and not listed (false negatives).",
                f"list them in the table of config.eval.tasks.{failures.task}, and in those of config.data.datasets",
            )


def _no_better(run: RunReport) -> Iterator[str]:
    """Yields the tasks on which the model does not beat a random order or itself before training, and small tests."""
    for standing in standings(run):
        plain = {"untrained": "before training", CHANCE: "a random order"}
        beaten = [words for model, words in plain.items() if model in standing.others and not standing.beats(model)]
        if beaten:
            yield _line(
                f"The model is no better on {standing.task} than {' and '.join(beaten)} ({standing.metric}): it knows "
                "at most what it was trained on.",
                "more items to train on, published weights (--preset small), or more train.steps if the loss falls",
            )
        queries = standing.main.queries
        if 0 < queries < _FEW:
            yield _line(
                f"{standing.task} has {queries} queries: one that is found or missed moves the figures by "
                f"{1 / queries:.0%}, so small differences say nothing.",
                _more_queries(run, standing.task),
            )


def _more_queries(run: RunReport, task: str) -> str:
    """Returns what gives a task more queries: by where its table comes from."""
    settings = run.settings
    table = settings.get("eval", {}).get("tasks", {}).get(task, {}).get("table", "")
    builder = table.rpartition("/")[2].removesuffix(".parquet")
    if builder not in settings.get("builders", {}) or builder in settings.get("ingest", {}).get("tables", {}):
        return "more items, or a larger config.ingest.holdout, with another --workdir"
    held_out = " or config.builders.copair.held_out" * (builder == "copair")
    return f"a longer log, or a larger config.logs.test_share{held_out}"


def _line(what: str, remedy: str = "") -> str:
    change = f' <span class="remedy">What to change: {html.escape(remedy)}.</span>' if remedy else ""
    return html.escape(what) + change


def _collapsed(run: RunReport) -> Iterator[str]:
    for task in tasks_of([run]):
        main = main_figures(run, task, subject(run))
        metrics = main.metrics if main is not None else {}
        norm, dimensions = (metrics.get(f"spread/{n}", np.nan) for n in ("mean_norm", "effective_dimension"))
        if norm > _COLLAPSED_NORM or dimensions < _COLLAPSED_DIMENSIONS:
            yield _line(
                f"The items of {task} have nearly one vector: the mean has length {norm:.2f} of 1, and they use "
                f"{dimensions:.1f} of {main.width} directions. The model has collapsed.",
                "more train.steps, a lower optimizer.peak, or more optimizer.warmup_steps",
            )


def _blind(run: RunReport) -> Iterator[str]:
    """Yields the modalities that alone find hardly more than a random order."""
    for task in tasks_of([run]):
        main, chance = main_figures(run, task, subject(run)), main_figures(run, task, CHANCE)
        if main is None or chance is None:
            continue
        metric = headline_metric(main.metrics, main.corpus)
        floor = chance.metrics.get(metric, np.nan)
        for figures in run.figures:
            value, view = figures.metrics.get(metric, np.nan), figures.view
            same = (figures.task, figures.model, figures.width) == (task, main.model, main.width) and not figures.main
            if same and view.query == view.target and value < _BLIND * floor:
                yield _line(
                    f"{spelled(view).partition(' → ')[0].capitalize()} alone finds hardly more than a random order on "
                    f"{task}: {metric} {format_metric(metric, value)}, against {format_metric(metric, floor)}.",
                    f"a data set in config.data.datasets with patterns=('{view}',)",
                )


def _cut(run: RunReport) -> Iterator[str]:
    for name, (what, setting) in CUTS.items():
        cut = [line[name] for line in run.log if line.get(name) is not None]
        if cut and np.mean(cut) >= 1:
            yield _line(f"Training cut {np.mean(cut):,.0f} {what} of a batch, on average.", f"raise config.{setting}")


def _worst(failures: TaskFailures) -> str:
    rows = [row_html(worst.row, 5, worst.wanted, " ".join(worst.why)) for worst in failures.worst]
    if not rows:
        return ""
    more = f"<details><summary>{len(rows) - _OPEN} more</summary>{''.join(rows[_OPEN:])}</details>"
    shown = "".join(rows[:_OPEN]) + more * (len(rows) > _OPEN)
    return f"<h3>Worst queries of {html.escape(failures.task)}: sure, and wrong</h3>{shown}"
