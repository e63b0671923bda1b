"""Draws the first screen: a sentence on what was learned, a scale per task, a strip of real queries."""

import html
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sail_jax.evaluation.report.data import RunReport, StoredResult
from sail_jax.evaluation.report.directions import facts_of, lower_is_better
from sail_jax.evaluation.report.gallery import row_html
from sail_jax.evaluation.report.tables import (
    BOUNDS,
    CEILING,
    CHANCE,
    MODELS,
    format_metric,
    headline_metric,
    is_share,
    main_figures,
    models_of,
    overview,
    same_data,
    show_view,
    subject,
    tasks_of,
)
from sail_jax.evaluation.report.words import listed, spelled

_STRIP, _STRIP_RESULTS = 3, 5
# Standard errors by which a share has to be above another one.
_ERRORS = 2
# What the sentence says of other models, in its order.
_BESIDE = {
    "untrained": "before training it found",
    "tfidf": "TF-IDF, a plain baseline that counts shared words, finds",
    "popularity": "showing everyone the most popular items finds",
    "co_counts": "co-counts of the logs find",
    CHANCE: "a random order",
    CEILING: "a perfect model",
}


class Standing(NamedTuple):
    """How a run stands on a task by its main metric.

    Attributes:
        task: the task.
        metric: the metric.
        main: the figures of what the report is about.
        value: its value.
        others: other model -> its value; of those that have one.
    """

    task: str
    metric: str
    main: StoredResult
    value: float
    others: dict[str, float]

    @property
    def plain(self) -> dict[str, float]:
        """Returns the models that a useful model has to beat: all but chance and the ceiling."""
        return {model: value for model, value in self.others.items() if model not in BOUNDS}

    @property
    def share(self) -> float:
        """Returns how far the run came from chance to the ceiling, or to 1 where that is not known."""
        floor, top = self.others.get(CHANCE, 0.0), self.others.get(CEILING, 1.0)
        return (self.value - floor) / max(top - floor, 1e-9)

    @property
    def clear(self) -> bool:
        """Returns whether the run is above a random order by more than the chance of so few queries."""
        if CHANCE not in self.others or not self.main.queries or not 0 <= self.value <= 1:
            return True
        error = (self.value * (1 - self.value) / self.main.queries) ** 0.5
        return self.value - self.others[CHANCE] > _ERRORS * error

    def beats(self, model: str) -> bool:
        """Returns whether the run is better than another model."""
        sign = -1 if lower_is_better(self.metric) else 1
        return sign * self.value > sign * self.others[model]


def standings(run: RunReport) -> list[Standing]:
    """Returns how a run stands on each of its tasks."""
    found = []
    for task in tasks_of([run]):
        main = main_figures(run, task, subject(run))
        metric = headline_metric(main.metrics, main.corpus) if main is not None and main.metrics else ""
        value = main.metrics.get(metric, np.nan) if metric else np.nan
        if not np.isfinite(value):
            continue
        of_models = {model: main_figures(run, task, model) for model in models_of(run, task)}
        others = {
            model: figures.metrics[metric]
            for model, figures in of_models.items()
            if model != main.model and figures is not None and np.isfinite(figures.metrics.get(metric, np.nan))
        }
        found.append(Standing(task, metric, main, value, others))
    return found


def first_screen(runs: Sequence[RunReport]) -> str:
    """Returns the HTML of the first screen: one run has its story, several have a table and a sentence."""
    if len(runs) > 1:
        return f'<p class="lead">{html.escape(_compared(runs))}</p>' * bool(_compared(runs)) + overview(runs)
    found = standings(runs[0])
    if not found:
        return ""
    best = farthest(found)
    tiles = "".join(map(_tile, found))
    lead = f'<p class="lead">{html.escape(sentence(runs[0], best))}</p>'
    return f'{lead}<div class="tiles">{tiles}</div>{_strip(runs[0], best)}\n'


def farthest(found: Sequence[Standing]) -> Standing:
    """Returns the task on which a run came farthest, of those with queries enough to tell."""
    return max(found, key=lambda of: (of.clear, all(map(of.beats, of.plain)), of.share))


def sentence(run: RunReport, best: Standing) -> str:
    """Returns what a run learned, by the task on which it came farthest, beside what bounds it."""
    steps = f"After {run.step:,} steps the model" if run.step is not None else "The model"
    beside = [
        f"{words} {format_metric(best.metric, best.others[model])}"
        for model, words in _BESIDE.items()
        if model in best.others
    ]
    bounds = [CHANCE] if CHANCE in best.others else []
    names = {**MODELS, CHANCE: "a random order"}
    better = [names.get(model, model) for model in (*bounds, *best.plain) if not best.beats(model)]
    verdict = f" It is not yet better than {listed(better)}." if better else ""
    others = [of for of in standings(run) if of.task != best.task and CHANCE in of.others]
    lost = [of.task for of in others if not of.beats(CHANCE)]
    unclear = [f"{of.task} ({of.main.queries:,} queries)" for of in others if of.beats(CHANCE) and not of.clear]
    verdict += f" On {listed(lost)} it is no better than a random order." if lost else ""
    verdict += f" On {listed(unclear)} it is not clearly better than a random order." if unclear else ""
    return f"{steps} {_found(best)}{'; ' * bool(beside)}{', '.join(beside)}.{verdict}"


def _found(best: Standing) -> str:
    shown, (family, _, k) = format_metric(best.metric, best.value), best.metric.partition("@")
    if family == "recall":
        among = f"among the {k} nearest items" if k != "1" else "as the nearest item"
        return f"finds {shown} of the right answers of {best.task} {among} ({best.metric})"
    return f"reaches {shown} on {best.task} in {best.metric}, the {facts_of(best.metric).meaning or 'main metric'}"


def _compared(runs: Sequence[RunReport]) -> str:
    """Returns a sentence on the runs on the first task whose data they share; empty if there is none."""
    for task in tasks_of(runs):
        of_runs = {run.name: s for run in runs for s in standings(run) if s.task == task}
        metrics = {standing.metric for standing in of_runs.values()}
        if len(of_runs) < 2 or len(metrics) > 1 or not same_data(runs, task):
            continue
        (metric,) = metrics
        order = sorted(of_runs, key=lambda name: of_runs[name].value, reverse=not lower_is_better(metric))
        shown = [f"{name} {format_metric(metric, of_runs[name].value)}" for name in order]
        return (
            f"On {task} ({spelled(of_runs[order[0]].main.view)}), by {metric} ({facts_of(metric).meaning}): "
            f"{listed(shown)}."
        )
    return ""


def _tile(standing: Standing) -> str:
    task, metric, main, others = standing.task, standing.metric, standing.main, standing.others
    was = ""
    if "untrained" in others:
        was = f'<span class="was">{format_metric(metric, others["untrained"])} →</span> '
    models = f"untrained → {MODELS.get(main.model, main.model)}" if was else MODELS.get(main.model, main.model)
    known = [model for model in (CHANCE, *standing.plain, CEILING) if model in others and model != "untrained"]
    beside = "".join(f" · {MODELS.get(m, m)} {format_metric(metric, others[m])}" for m in known)
    return (
        f'<div class="tile"><div class="what">{html.escape(task)} · {html.escape(metric)}</div>'
        f'<div class="now">{was}{format_metric(metric, standing.value)}</div>{_scale(standing)}'
        f'<div class="what">{html.escape(models)}{html.escape(beside)} · {html.escape(show_view(main.view))} '
        f"({html.escape(spelled(main.view))}) · {main.queries:,} queries in {main.corpus:,} items</div></div>"
    )


def _scale(standing: Standing) -> str:
    """Returns a bar from 0 to the ceiling, or to 100 % where it is not known, with a mark for each other model."""
    known = [value for value in (standing.value, *standing.others.values()) if value >= 0]
    if standing.value < 0 or not max(known):
        return ""
    top = standing.others.get(CEILING) or (1.0 if is_share(standing.metric) else max(known) * 1.1)

    def place(value: float) -> float:
        return round(100 * min(max(value / top, 0), 1), 1)

    fill = f'<rect class="fill" x="0" y="2" height="8" width="{place(standing.value)}"/>'
    marks = "".join(
        f'<rect class="mark {"floor" if model == CHANCE else ""}" x="{max(place(value) - 0.4, 0)}" y="0" height="12" '
        f'width="0.8"><title>{html.escape(MODELS.get(model, model))}</title></rect>'
        for model, value in standing.others.items()
        if model != CEILING
    )
    end = "ceiling" if CEILING in standing.others else "100 %" if is_share(standing.metric) else "best"
    return (
        f'<svg class="scale" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true" data-end="{end}">'
        f'<rect class="rail" x="0" y="2" height="8" width="100"/>{fill}{marks}</svg>'
    )


def _strip(run: RunReport, best: Standing) -> str:
    rows = [row for row in run.gallery if row.task == best.task][:_STRIP]
    if not rows:
        return ""
    drawn = "".join(row_html(row, _STRIP_RESULTS) for row in rows)
    return (
        f'<section class="strip" id="first-queries"><h2>What it finds</h2><p class="caption">Queries of '
        f"{html.escape(best.task)}, as the data has them, and their nearest items, best first. Green and ✓: the test "
        f"data has the item as a right answer. Red and ✗: it does not.</p>{drawn}</section>"
    )
