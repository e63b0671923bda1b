"""Writes the report of a sweep as one HTML file."""

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sail_jax.evaluation.metrics.seeds import Interval, over_seeds
from sail_jax.evaluation.report.charts import band_charts, file_name
from sail_jax.evaluation.report.directions import lower_is_better
from sail_jax.evaluation.report.figures import Chart
from sail_jax.evaluation.report.page import Page, png_folder
from sail_jax.evaluation.report.seed_groups import CAPTION, SeedGroup, best_group, seed_table
from sail_jax.evaluation.report.sweep_figures import effects_chart, parallel_chart
from sail_jax.evaluation.report.tables import (
    BOUNDS,
    format_change,
    is_share,
    main_metrics,
    scroll_table,
)
from sail_jax.files import commit_bytes
from sail_jax.sweeps.collect import Collected, own_metrics
from sail_jax.sweeps.effects import Effect, Point, main_effects
from sail_jax.sweeps.watch import counts

# Combinations whose curves are drawn: more would hide each other.
_CURVES = 6

_CURVES_CAPTION = (
    "Mean over seeds of the running means of the training log, and its 95 % interval. Losses of different combinations "
    "need not be comparable; evaluations are."
)
_EFFECTS = (
    "The main effect of each value of an axis on {figure}: its figure less the mean over the values of the axis, "
    "averaged over those combinations of the other axes that have all of its values, with the 95 % interval over "
    "seeds. Axes that only vary together are one. Effects of two axes need not add up."
)
_PARALLEL = (
    "Each line is a combination; its colour, and where it ends on the right, is the mean of {figure} over seeds."
)
_COST = "Device-hours of all attempts, finished or not: seconds times devices."


def write_sweep_report(path: Path, collected: Collected) -> None:
    """Writes the report of a sweep, and its charts as PNGs into the folder beside it.

    An earlier page is replaced only when the new one is complete.
    """
    folder = png_folder(path)
    folder.mkdir(parents=True, exist_ok=True)
    page, groups = Page(folder), collected.groups()
    page.add("Figures", CAPTION, _tables(collected, groups))
    shown, note = _drawn(collected, groups)
    page.charts("Curves", _CURVES_CAPTION + note, band_charts(shown))
    effects = main_effects(_points(collected), collected.sweep.record.axes)
    page.add("Effects of the axes", _EFFECTS.format(figure=collected.metric), _effects_table(effects, collected.metric))
    page.charts("Effects as charts", "", _effects_charts(effects, collected.metric))
    page.charts("Parallel coordinates", _PARALLEL.format(figure=collected.metric), _parallel(collected, groups))
    page.add("Cost", _COST, _cost(collected))
    page.add("Members that are not compared", "", _missing(collected))
    title = f"sail_jax: sweep {collected.sweep.record.name}"
    commit_bytes(path, page.text(title, _facts(collected, groups), "").encode(errors="replace"))


def _facts(collected: Collected, groups: Sequence[SeedGroup]) -> str:
    best = best_group(groups, collected.metric) if collected.metric else None
    entries = {
        "Base": collected.sweep.record.base,
        "Members": counts(collected.sweep),
        "Ranked by": collected.metric or "–",
        "Best": best or "none is better than all others",
        "Baseline": collected.baseline or "–",
        "Device-hours": f"{collected.device_seconds / 3600:.2f}",
    }
    shown = (f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in entries.items())
    return f'<dl class="facts">{"".join(shown)}</dl>'


def _tables(collected: Collected, groups: Sequence[SeedGroup]) -> str:
    """Returns a table for each task's main figure, and folded away one for each further figure."""
    if not groups:
        return ""
    first = collected.compared[0].trained
    shown = collected.shown_figures()
    tasks = list(dict.fromkeys(figure.partition("/")[0] for figure in shown))
    further = [f"{task}/{name}" for task in tasks for name in main_metrics(own_metrics(first, task))]
    further = [figure for figure in further if figure not in shown]
    tables = "".join(_table(collected, groups, figure) for figure in shown)
    folded = "".join(_table(collected, groups, figure) for figure in further)
    details = f"<details><summary>Further figures ({len(further)})</summary>{folded}</details>" if further else ""
    return f'<div class="wide">{tables}</div>{details}'


def _table(collected: Collected, groups: Sequence[SeedGroup], figure: str) -> str:
    rows = seed_table(groups, figure, collected.baseline, _bounds(collected, figure))
    return f"<h3>{html.escape(figure)}</h3>{rows}"


def _bounds(collected: Collected, figure: str) -> dict[str, float]:
    """Returns what bounds a figure, and what an untrained model has: means over the members."""
    found = {}
    for model in (BOUNDS[0], "untrained", BOUNDS[1]):
        values = [outcome.figures.get(model, {}).get(figure) for outcome in collected.compared]
        present = [value for value in values if value is not None]
        if present:
            found[model] = float(np.mean(present))
    return found


def _drawn(collected: Collected, groups: Sequence[SeedGroup]) -> tuple[list[SeedGroup], str]:
    """Returns the groups whose curves are drawn, and a sentence on those that are not."""
    if len(groups) <= _CURVES:
        return list(groups), ""
    sign = 1 if lower_is_better(collected.metric.partition("/")[2]) else -1

    def place(group: SeedGroup) -> tuple[bool, float]:
        mean = over_seeds(list(group.values(collected.metric).values())).mean
        return group.name != collected.baseline, np.nan_to_num(sign * mean, nan=np.inf)

    chosen = {group.name for group in sorted(groups, key=place)[:_CURVES]}
    kept = [group for group in groups if group.name in chosen]
    which = "the baseline and the best" if collected.baseline in chosen else "the best"
    return kept, f" Drawn are {len(kept)} of {len(groups)} combinations: {which} by {collected.metric}."


def _points(collected: Collected) -> list[Point]:
    points = []
    for outcome in collected.compared:
        member, value = outcome.state.record.member, outcome.trained.get(collected.metric)
        if value is not None and np.isfinite(value):
            points.append(Point(member.axes, member.seed, float(value)))
    return points


def _effects_table(effects: Sequence[Effect], figure: str) -> str:
    metric = figure.partition("/")[2]
    rows, notes = [], ""
    for effect in effects:
        for label, found in effect.values.items():
            cells = (label, format_change(metric, found.mean), _between(metric, found), str(found.n))
            shown = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            rows.append(f"<tr><th>{html.escape(effect.axis)}</th>{shown}</tr>")
        if not effect.values:
            words = f"{effect.axis}: no combination of the other axes has all of its values, so it has no main effect."
            notes += f"<p>{html.escape(words)}</p>"
    head = "<tr><th>axis</th><th>value</th><th>effect</th><th>95 % interval</th><th>seeds</th></tr>"
    return (scroll_table(head, rows) if rows else "") + notes


def _between(metric: str, found: Interval) -> str:
    if found.n < 2:
        return "–"
    return f"{format_change(metric, found.low)} to {format_change(metric, found.high)}"


def _effects_charts(effects: Sequence[Effect], figure: str) -> list[Chart]:
    share = is_share(figure.partition("/")[2])
    return [
        effects_chart(
            file_name("effect", effect.axis),
            effect.axis,
            figure,
            list(effect.values),
            list(effect.values.values()),
            share=share,
        )
        for effect in effects
        if effect.values
    ]


def _parallel(collected: Collected, groups: Sequence[SeedGroup]) -> list[Chart]:
    """Returns the chart of parallel coordinates; none where fewer than two combinations have the figure."""
    found = {group.name: list(group.values(collected.metric).values()) for group in groups}
    means = {name: float(np.mean(values)) for name, values in found.items() if values}
    of_group = {outcome.state.record.member.group: outcome.state.record.member.axes for outcome in collected.compared}
    axes = [(column, [of_group[name].get(column) for name in means]) for column in collected.sweep.record.axes]
    varied = [(column, values) for column, values in axes if len(set(map(str, values))) > 1]
    figure = (collected.metric, list(means.values()))
    return [parallel_chart("parallel", [*varied, figure], collected.metric)] if varied else []


def _cost(collected: Collected) -> str:
    by_state: dict[str, tuple[int, float]] = {}
    for outcome in collected.outcomes:
        status = outcome.state.status
        number, seconds = by_state.get(status.state, (0, 0.0))
        by_state[status.state] = number + 1, seconds + status.device_seconds
    by_state["all"] = len(collected.outcomes), collected.device_seconds
    rows = [
        f"<tr><th>{html.escape(state)}</th><td>{number}</td><td>{seconds / 3600:.2f}</td></tr>"
        for state, (number, seconds) in by_state.items()
    ]
    return scroll_table("<tr><th>state</th><th>members</th><th>device-hours</th></tr>", rows)


def _missing(collected: Collected) -> str:
    rows = [
        f"<tr><th>{html.escape(outcome.state.name)}</th><td>{html.escape(outcome.missing)}</td></tr>"
        for outcome in collected.outcomes
        if outcome.missing
    ]
    return scroll_table("<tr><th>member</th><th>why</th></tr>", rows, "texts") if rows else ""
