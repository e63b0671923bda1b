"""Draws tables of runs that differ by their seed alone: means, intervals, differences to a baseline."""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sail_jax.evaluation.metrics.seeds import Interval, over_seeds, paired, winner
from sail_jax.evaluation.report.data import RunReport
from sail_jax.evaluation.report.directions import is_compared, lower_is_better
from sail_jax.evaluation.report.tables import (
    MODELS,
    flat,
    format_change,
    format_metric,
    main_figures,
    scroll_table,
    subject,
    tasks_of,
)

CAPTION = (
    "Mean over seeds, standard error of the mean, and its 95 % interval by Student's t. Differences are paired by seed "
    "(two runs of one seed start from the same parameters and draw the same batches), in percentage points where the "
    "figure is a share. A row is better or worse than the baseline where the interval of the difference leaves out 0, "
    "that is where |t| reaches the t in brackets. The best is bold only if it is better, by the same test, than every "
    "other row. Each test alone errs in one of twenty cases; of many rows without any effect, some will be called "
    "better."
)


@dataclasses.dataclass(frozen=True)
class SeedGroup:
    """Runs that differ by their seed alone.

    Attributes:
        name: their name.
        figures: seed -> "TASK/METRIC" -> value, under the tasks' own views.
        logs: seed -> lines of the training log.
        device_seconds: what they cost; None where that is not known.
    """

    name: str
    figures: Mapping[int, Mapping[str, float | None]]
    logs: Mapping[int, Sequence[Mapping[str, Any]]] = dataclasses.field(default_factory=dict)
    device_seconds: float | None = None

    def values(self, figure: str) -> dict[int, float]:
        """Returns {seed: value} of a figure, of the seeds that have it."""
        found = {seed: of_seed.get(figure) for seed, of_seed in self.figures.items()}
        return {seed: float(value) for seed, value in found.items() if value is not None and np.isfinite(value)}


def group_by_seed(runs: Sequence[RunReport]) -> list[SeedGroup]:
    """Returns runs whose configs differ by their seed alone as groups, in the order of the runs.

    A run of a seed that its group has already, or whose config is not known, is a group of its own.
    """
    grouped: dict[str, list[RunReport]] = {}
    for place, run in enumerate(runs):
        key = _without_seed(run) if run.config else f"run {place}"
        if any(other.config["seed"] == run.config["seed"] for other in grouped.get(key, ())):
            key = f"run {place}"
        grouped.setdefault(key, []).append(run)
    return [_group(of_group) for of_group in grouped.values()]


def _without_seed(run: RunReport) -> str:
    """Returns the settings of a run but its seed and how trackers call it."""
    settings = [row for row in flat(run.config, "") if row[0] != "seed" and not row[0].startswith("train.tracker")]
    return repr((settings, run.step))


def _group(runs: Sequence[RunReport]) -> SeedGroup:
    seeds = [run.config.get("seed", 0) for run in runs]
    name = f"{runs[0].name} (seeds {', '.join(map(str, seeds))})" if len(runs) > 1 else runs[0].name
    figures = [_own_figures(run) for run in runs]
    return SeedGroup(
        name, dict(zip(seeds, figures, strict=True)), {seed: run.log for seed, run in zip(seeds, runs, strict=True)}
    )


def _own_figures(run: RunReport) -> dict[str, float]:
    """Returns {"TASK/METRIC": value} of what a report is about, under the tasks' own views."""
    mains = {task: main_figures(run, task, subject(run)) for task in tasks_of([run])}
    return {f"{task}/{name}": value for task, main in mains.items() if main for name, value in main.metrics.items()}


def best_group(groups: Sequence[SeedGroup], figure: str) -> str | None:
    """Returns the group that is better than each of the others; None if there is none."""
    metric = figure.partition("/")[2]
    if not is_compared(metric):
        return None
    return winner({group.name: group.values(figure) for group in groups}, lower_is_better=lower_is_better(metric))


def seed_table(
    groups: Sequence[SeedGroup],
    figure: str,
    baseline: str = "",
    bounds: Mapping[str, float] | None = None,
    *,
    compared: bool = True,
) -> str:
    """Returns the HTML table of a figure: a row per group.

    Args:
        groups: the groups.
        figure: "TASK/METRIC".
        baseline: the group that the others are compared with; empty for none.
        bounds: other models, such as chance -> their value, for rows that are not compared.
        compared: whether all groups are of the same data and tasks, so that they may be compared.
    """
    metric, best = figure.partition("/")[2], best_group(groups, figure) if compared else None
    base = next((group for group in groups if group.name == baseline and compared), None)
    costed = any(group.device_seconds is not None for group in groups)
    heads = ["", "seeds", "mean", "standard error", "95 % interval"]
    if base is not None:
        heads += ["difference", "95 % interval", "t (needed)", ""]
    heads += ["device-hours"] * costed
    rows = []
    for group in groups:
        found = over_seeds(list(group.values(figure).values()))
        cells = [str(found.n), format_metric(metric, found.mean), format_error(metric, found.standard_error)]
        cells.append(format_interval(metric, found))
        if base is not None:
            cells += difference_cells(group, base, figure)
        if costed:
            cells.append("–" if group.device_seconds is None else f"{group.device_seconds / 3600:.2f}")
        marks = [' class="best"' if place == 1 and group.name == best else "" for place in range(len(cells))]
        shown = "".join(f"<td{mark}>{html.escape(cell)}</td>" for mark, cell in zip(marks, cells, strict=True))
        rows.append(f"<tr><th>{html.escape(group.name)}</th>{shown}</tr>")
    for model, value in (bounds or {}).items():
        name, shown = html.escape(MODELS.get(model, model)), format_metric(metric, value)
        cells = f'<td></td><td class="soft">{shown}</td>' + "<td></td>" * (len(heads) - 3)
        rows.append(f'<tr><th class="soft">{name}</th>{cells}</tr>')
    return scroll_table("<tr>" + "".join(f"<th>{html.escape(head)}</th>" for head in heads) + "</tr>", rows)


def difference_cells(group: SeedGroup, base: SeedGroup, figure: str) -> list[str]:
    """Returns a group's difference to the baseline, its interval, t with the t needed, and the verdict."""
    if group.name == base.name:
        return ["baseline", "", "", ""]
    metric = figure.partition("/")[2]
    found = paired(group.values(figure), base.values(figure), lower_is_better=lower_is_better(metric))
    tested = f"{found.t:+.2f} ({found.t_needed:.2f})" if found.interval.n > 1 else "–"
    ends = [format_change(metric, end) for end in (found.interval.low, found.interval.high)]
    between = "–" if found.interval.n < 2 else f"{ends[0]} to {ends[1]}"
    verdict = found.verdict if is_compared(metric) else ""
    return [format_change(metric, found.interval.mean), between, tested, verdict]


def format_interval(metric: str, found: Interval) -> str:
    """Returns the ends of an interval as tables show them; "–" where a single seed has none."""
    if found.n < 2:
        return "–"
    return f"{format_metric(metric, found.low)} to {format_metric(metric, found.high)}"


def format_error(metric: str, error: float) -> str:
    """Returns a standard error as tables show it, without a sign; that of shares in percentage points."""
    return format_change(metric, error).lstrip("+")
