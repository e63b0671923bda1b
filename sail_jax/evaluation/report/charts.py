"""Builds the charts of a report from the data of one run, or of several runs side by side."""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sail_jax.evaluation.metrics.seeds import over_seeds
from sail_jax.evaluation.report.data import RunReport, StoredResult
from sail_jax.evaluation.report.figures import (
    Chart,
    Line,
    bars_chart,
    curves_chart,
    map_chart,
    matrix_chart,
    separability_chart,
    smoothed,
    widths_chart,
)
from sail_jax.evaluation.report.seed_groups import SeedGroup
from sail_jax.evaluation.report.style import GREY, LINES
from sail_jax.evaluation.report.tables import (
    HEADLINE_METRIC,
    MODELS,
    format_metric,
    headline_metric,
    main_figures,
    show_view,
    subject,
    tasks_of,
)
from sail_jax.patterns import Pattern

_NAMED_LABELS = 8  # labels with a colour of their own on the map


@dataclasses.dataclass(frozen=True)
class _Curve:
    """A training curve drawn from metrics.jsonl.

    The curve has a line for each logged value "KEY/PART", where PART is a data set or a task. The value "KEY" is drawn
    only where there are no parts.
    """

    name: str
    title: str
    unit: str
    key: str
    smooth: bool = False
    share: bool = False


_CURVES = (
    _Curve("loss", "Loss", "loss", "loss", smooth=True),
    _Curve("evaluation", "Recall during training", HEADLINE_METRIC, "eval", share=True),
    _Curve("learning_rate", "Learning rate", "learning rate", "learning_rate"),
    _Curve("temperature", "Temperature", "temperature", "temperature"),
    _Curve("gradient_norm", "Gradient norm", "norm before clipping", "gradient_norm", smooth=True),
    _Curve("data_wait", "Time waited for data", "share of the time", "share/data", share=True),
)


def file_name(*parts: str) -> str:
    """Returns a safe file name made of some texts, joined by "-"."""
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", part).strip("_.") or "x" for part in parts if part)


def _titled(runs: Sequence[RunReport], run: RunReport, title: str) -> str:
    return f"{title}\n{run.name}" if len(runs) > 1 else title


def _of_run(runs: Sequence[RunReport], run: RunReport) -> str:
    """Returns the part of a PNG's name that names the run; empty if there is only one run."""
    return run.name if len(runs) > 1 else ""


def _metric_of(runs: Sequence[RunReport], task: str) -> str | None:
    """Returns the recall or accuracy that charts show for a task; None if the task has neither."""
    mains = [main_figures(run, task, subject(run)) for run in runs]
    metric = next(
        (headline_metric(main.metrics, main.corpus) for main in mains if main is not None and main.metrics), ""
    )
    return metric if metric.startswith(("recall@", "accuracy@")) else None


# ----------------------------------------------------------------------------------------------------- separability


def separability_charts(runs: Sequence[RunReport]) -> list[Chart]:
    """Returns a chart per task and run, with a panel per model that has histograms."""
    charts = []
    for task in tasks_of(runs):
        for run in runs:
            mains = [(model, main_figures(run, task, model)) for model in MODELS]
            panels = [
                (_separability_heading(model, main), main.histograms)
                for model, main in mains
                if main is not None and main.histograms
            ]
            if panels:
                name = file_name("separability", task, _of_run(runs, run))
                charts.append(separability_chart(name, _titled(runs, run, task), panels))
    return charts


def _separability_heading(model: str, main: StoredResult) -> str:
    figures = [
        f"{label} {format_metric(key, main.metrics[key])}"
        for key, label in (("separability/overlap", "overlap"), ("separability/dprime", "d′"))
        if key in main.metrics
    ]
    return ", ".join([MODELS[model], *figures])


# ------------------------------------------------------------------------------------------------------- Matryoshka


def widths_charts(runs: Sequence[RunReport]) -> list[Chart]:
    """Returns a chart per task, with a line per run and model evaluated at several widths."""
    charts = []
    for task in tasks_of(runs):
        metric = _metric_of(runs, task)
        lines = [line for place, run in enumerate(runs) for line in _width_lines(runs, run, place, task, metric)]
        if lines:
            charts.append(widths_chart(file_name("matryoshka", task), task, metric or "", lines))
    return charts


def _width_lines(runs: Sequence[RunReport], run: RunReport, place: int, task: str, metric: str | None) -> list[Line]:
    lines = []
    for model, dash in ((subject(run), "-"), ("untrained", ":")):
        values = figures_by_width(run, task, model, metric or "")
        if len(values) > 1:
            label = f"{model}, {run.name}" if len(runs) > 1 else model
            colour = LINES[place % len(LINES)] if model != "untrained" or len(runs) > 1 else GREY
            lines.append(Line(label, list(values), list(values.values()), colour, dash))
    return lines


def figures_by_width(run: RunReport, task: str, model: str, metric: str) -> dict[int, float]:
    """Returns {Matryoshka size: value of the metric} under the task's own view, by ascending size."""
    main = main_figures(run, task, model)
    if main is None:
        return {}
    same = [f for f in run.figures if (f.task, f.model, f.view) == (task, model, main.view) and f.width > 0]
    values = {f.width: f.metrics.get(metric, np.nan) for f in sorted(same, key=lambda f: f.main)}
    return {width: values[width] for width in sorted(values) if np.isfinite(values[width])}


# ------------------------------------------------------------------------------------------------------- modalities


def modality_charts(runs: Sequence[RunReport]) -> list[Chart]:
    """Returns the charts by modality of each task: bars, and a matrix per run.

    The bars show the views with the same modalities on both sides; the matrix shows all pairs of views.
    """
    charts = []
    for task in tasks_of(runs):
        metric = _metric_of(runs, task)
        if metric is not None:
            charts += _bars(runs, task, metric) + _matrices(runs, task, metric)
    return charts


def _bars(runs: Sequence[RunReport], task: str, metric: str) -> list[Chart]:
    columns = []  # label, colour, view -> value
    for place, run in enumerate(runs):
        for model in ("untrained", "tfidf", subject(run)) if len(runs) == 1 else (subject(run),):
            values = _values_by_view(run, task, model, metric)
            colour = {"untrained": GREY, "tfidf": LINES[1]}.get(model, LINES[place % len(LINES)])
            if values:
                columns.append((MODELS[model] if len(runs) == 1 else run.name, colour, values))
    views = list(dict.fromkeys(view for *_, values in columns for view in values if _is_bar(runs, task, view)))
    if not views:
        return []
    views.sort(key=lambda view: len(view.query))
    groups = [
        Line(label, range(len(views)), [values.get(view, np.nan) for view in views], colour)
        for label, colour, values in columns
    ]
    shown = [show_view(view) for view in views]
    return [bars_chart(file_name("modalities", task), task, metric, shown, groups)]


def _is_bar(runs: Sequence[RunReport], task: str, view: Pattern) -> bool:
    mains = [main_figures(run, task, model) for run in runs for model in MODELS]
    return view.query == view.target or view in {main.view for main in mains if main is not None}


def _values_by_view(run: RunReport, task: str, model: str, metric: str) -> dict[Pattern, float]:
    """Returns {view: value of the metric} at full width.

    A view may be scored twice, as the task's own view and in the matrix; then the task's own value counts.
    """
    main = main_figures(run, task, model)
    if main is None:
        return {}
    chosen = [f for f in run.figures if (f.task, f.model) == (task, model) and f.width in (0, main.width)]
    return {f.view: f.metrics.get(metric, np.nan) for f in sorted(chosen, key=lambda f: f is main)}


def _matrices(runs: Sequence[RunReport], task: str, metric: str) -> list[Chart]:
    matrices = {run.name: _matrix(run, task, metric) for run in runs}
    shown = [value for values in matrices.values() for value in values.values() if np.isfinite(value)]
    return [
        matrix_chart(
            file_name("modality_matrix", task, _of_run(runs, run)),
            _titled(runs, run, f"{task}, {metric} in %"),
            metric,
            matrices[run.name],
            max(shown, default=1.0),
        )
        for run in runs
        if matrices[run.name]
    ]


def _matrix(run: RunReport, task: str, metric: str) -> dict[Pattern, float]:
    """Returns {view: value}; empty if the matrix was not evaluated."""
    main = main_figures(run, task, subject(run))
    values = _values_by_view(run, task, subject(run), metric)
    crossed = [view for view in values if view.query != view.target and main is not None and view != main.view]
    return values if crossed else {}


# --------------------------------------------------------------------------------------------------------- training


def training_charts(runs: Sequence[RunReport]) -> list[Chart]:
    """Returns the charts of the training log.

    One run: a chart per quantity, with a line per data set or task. Several runs: a chart per quantity and data set or
    task, with a line per run.
    """
    charts = []
    for kind in _CURVES:
        of_runs = [_curves(run.log, kind.key) for run in runs]
        parts = list(dict.fromkeys(part for curves in of_runs for part in curves))
        if len(runs) == 1 and parts:
            charts.append(_curve_chart(kind, "", [Line(part or kind.title, *of_runs[0][part]) for part in parts]))
        elif parts:
            charts += [_curve_chart(kind, part, _run_lines(runs, of_runs, part)) for part in parts]
    return charts


def band_charts(groups: Sequence[SeedGroup]) -> list[Chart]:
    """Returns the charts of the training logs of groups of seeds, a line and a band per group.

    There is a chart per quantity and data set or task. The line is the mean over seeds of the running means, the band
    its 95 % interval.
    """
    charts = []
    for kind in _CURVES:
        of_groups = [[_curves(log, kind.key) for log in group.logs.values()] for group in groups]
        parts = dict.fromkeys(part for curves in of_groups for of_seed in curves for part in of_seed)
        for part in parts:
            lines = [
                _band(group.name, [of_seed[part] for of_seed in curves if part in of_seed], place, kind.smooth)
                for place, (group, curves) in enumerate(zip(groups, of_groups, strict=True))
            ]
            if lines := [line for line in lines if line.x]:
                charts.append(_curve_chart(dataclasses.replace(kind, smooth=False), part, lines))
    return charts


def _band(name: str, curves: Sequence[tuple[list[int], list[float]]], place: int, smooth: bool) -> Line:
    """Returns the mean over seeds of their curves, at the steps that all have, with its interval."""
    of_seeds = [dict(zip(steps, smoothed(y) if smooth else y, strict=True)) for steps, y in curves]
    steps = sorted(set(of_seeds[0]).intersection(*of_seeds[1:])) if of_seeds else []
    found = [over_seeds([float(of_seed[step]) for of_seed in of_seeds]) for step in steps]
    band = [[one.low for one in found], [one.high for one in found]] if len(of_seeds) > 1 else []
    return Line(name, steps, [one.mean for one in found], LINES[place % len(LINES)], band=band)


def _curve_chart(kind: _Curve, part: str, lines: list[Line]) -> Chart:
    title = f"{kind.title} · {part}" if part else kind.title
    return curves_chart(file_name(kind.name, part), title, kind.unit, lines, smooth=kind.smooth, share=kind.share)


def _run_lines(runs: Sequence[RunReport], of_runs: Sequence[Mapping[str, Any]], part: str) -> list[Line]:
    return [
        Line(run.name, *curves[part], LINES[place % len(LINES)], "-")
        for place, (run, curves) in enumerate(zip(runs, of_runs, strict=True))
        if part in curves
    ]


def _curves(log: Sequence[Mapping[str, Any]], key: str) -> dict[str, tuple[list[int], list[float]]]:
    """Returns {data set or task ("" for the whole): (steps, values)} of the logged values of a key."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for line in log:
        for name, value in line.items():
            part = _part(name, key)
            if part is not None and isinstance(value, int | float):
                steps, values = curves.setdefault(part, ([], []))
                steps.append(line["step"])
                values.append(value)
    return {part: curve for part, curve in curves.items() if part or len(curves) == 1}


def _part(name: str, key: str) -> str | None:
    if name == key:
        return ""
    if not name.startswith(f"{key}/"):
        return None
    part = name.removeprefix(f"{key}/")
    if key != "eval":
        return part
    return part.removesuffix(f"/{HEADLINE_METRIC}") if part.endswith(f"/{HEADLINE_METRIC}") else None


# -------------------------------------------------------------------------------------------------------------- map


def map_charts(runs: Sequence[RunReport]) -> list[Chart]:
    """Returns a map per task and run.

    The labels most frequent over all runs of a task have the same colour in each of its maps.
    """
    charts = []
    for task in dict.fromkeys(space.task for run in runs for space in run.maps):
        spaces = [(run, space) for run in runs for space in run.maps if space.task == task]
        counts = Counter(label for _, space in spaces for label in space.labels if label)
        named = [label for label, _ in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:_NAMED_LABELS]]
        for run, space in spaces:
            name = file_name("map", task, _of_run(runs, run))
            charts.append(map_chart(name, _titled(runs, run, task), space.points, space.labels, named))
    return charts
