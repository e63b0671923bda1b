"""Draws the tables of the report: metrics by model and run, the best value in bold."""

import html
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sail_jax.evaluation.report.data import RunReport, StoredResult
from sail_jax.evaluation.report.directions import facts_of, is_compared, lower_is_better
from sail_jax.patterns import Pattern

HEADLINE_METRIC = "recall@10"
# Of a random ranking and of a perfect model: columns that are never marked as the best.
CHANCE, CEILING = BOUNDS = ("chance", "ceiling")
# In the order of the columns.
MODELS = {
    CHANCE: "chance",
    "untrained": "untrained",
    "tfidf": "TF-IDF",
    "popularity": "popularity",
    "co_counts": "co-counts",
    "svd_cosine": "SVD, cosine",
    "svd_dot": "SVD × S, dot product",
    "two_tower": "two-tower",
    "embeddings": "embeddings",
    "trained": "trained",
    CEILING: "ceiling",
}
# Shares, shown in per cent; other metrics are plain numbers.
_SHARES = (
    *("recall@", "ndcg@", "mrr@", "map@", "accuracy", "agreement/top@", "bijective", "separability/overlap"),
    "graded/ndcg",
)
_COUNTS = ("graded/queries",)  # whole numbers
# The table shows one cut-off of each of these families, `_CUT_OFF` if it was measured; the others are folded away.
_ONE_CUT_OFF = re.compile(r"((?:graded/)?ndcg|mrr|map)@(\d+)")
_CUT_OFF = 10


def format_metric(name: str, value: float | None) -> str:
    """Returns a value as tables show it: a share in per cent, others with three digits, "–" for none."""
    if value is None or not np.isfinite(value):
        return "–"
    if name in _COUNTS:
        return f"{value:,.0f}"
    return f"{100 * value:.1f} %" if is_share(name) else f"{value:.3f}"


def is_share(name: str) -> bool:
    """Returns whether a metric is a share, which is shown in per cent."""
    return name.startswith(_SHARES)


def format_change(name: str, value: float) -> str:
    """Returns a difference of two values as tables show it; that of shares in percentage points."""
    if not np.isfinite(value):
        return "–"
    return f"{100 * value:+.1f}" if is_share(name) else f"{value:+.3f}"


def headline_metric(metrics: Iterable[str], corpus: int) -> str:
    """Returns the metric of a task to show if there is room for only one.

    Args:
        metrics: names of its metrics.
        corpus: number of items that are searched; of recalls, those count of which a random order has less than half.
            0 where it is not known.
    """
    every = list(metrics)
    names = [name for name in every if name.startswith(("recall@", "accuracy@"))] or every
    if corpus:
        telling = [name for name in names if not name.startswith("recall@") or 2 * int(name[7:]) < corpus]
        names = telling or names[:1]
    return HEADLINE_METRIC if HEADLINE_METRIC in names or not names else names[0]


def tasks_of(runs: Sequence[RunReport]) -> list[str]:
    """Returns the names of the tasks of all runs, each once."""
    return list(dict.fromkeys(figures.task for run in runs for figures in run.figures))


def main_figures(run: RunReport, task: str, model: str) -> StoredResult | None:
    """Returns the figures of a model under the task's own view at full width, or None."""
    own = [figures for figures in run.figures if (figures.task, figures.model) == (task, model) and figures.main]
    return max(own, key=lambda figures: figures.width, default=None)


def subject(run: RunReport) -> str:
    """Returns the model that a run's report is about: "trained", or "embeddings" if there is none."""
    return "trained" if any(figures.model == "trained" for figures in run.figures) else "embeddings"


def models_of(run: RunReport, task: str) -> list[str]:
    """Returns the models that have main figures on a task, in the order of the columns."""
    models = dict.fromkeys(figures.model for figures in run.figures if figures.task == task and figures.main)
    return sorted(models, key=lambda model: list(MODELS).index(model) if model in MODELS else -1)


def show_view(view: Pattern) -> str:
    """Returns a view as the page shows it: "VTA", or "T → VTA" if the two sides differ."""
    return view.short.replace("->", " → ")


def best_of(metric: str, values: Sequence[float | None]) -> float | None:
    """Returns the best of some values of a metric; None if none is better than another."""
    present = [v for v in values if v is not None and np.isfinite(v)]
    if len(set(present)) < 2 or not is_compared(metric):
        return None
    return min(present) if lower_is_better(metric) else max(present)


def same_data(runs: Sequence[RunReport], task: str) -> bool:
    """Returns whether all runs that have figures on a task were evaluated on the same data and task."""
    return len({repr(_what_is_scored(run, task)) for run in runs if main_figures(run, task, subject(run))}) < 2


def _what_is_scored(run: RunReport, task: str) -> tuple[Any, ...]:
    """Returns the numbers of queries and items of a task, and what the config says of it."""
    main = main_figures(run, task, subject(run))
    folder, settings = run.config.get("data", {}).get("dir"), run.settings.get("eval", {}).get("tasks", {}).get(task)
    return main.queries + main.skipped, main.corpus, folder, settings


def overview(runs: Sequence[RunReport]) -> str:
    """Returns the HTML of the main figures of several runs, a table of tasks by runs."""
    rows = []
    for task in tasks_of(runs):
        mains = [main_figures(run, task, subject(run)) for run in runs]
        metric = next((headline_metric(main.metrics, main.corpus) for main in mains if main), HEADLINE_METRIC)
        values = [None if main is None else main.metrics.get(metric) for main in mains]
        rows.append(_metric_row(f"{task} · {metric}", metric, values, [same_data(runs, task)] * len(values)))
    head = "".join(f"<th>{html.escape(run.name)}</th>" for run in runs)
    return f'<div class="card">{scroll_table(f"<tr><th>task</th>{head}</tr>", rows)}</div>\n' if rows else ""


def task_table(runs: Sequence[RunReport], task: str, *, best: bool = True) -> str:
    """Returns the HTML table of a task's main figures: a row per metric, a column per model.

    Several runs have a group of columns each. Metrics that are not in `main_metrics` are folded away.

    Args:
        runs: the runs.
        task: the task.
        best: whether the best value of a row is bold; it is not where the runs differ in their data or the task.
    """
    groups = [(run.name, [main_figures(run, task, model) for model in models_of(run, task)]) for run in runs]
    groups = [(name, columns) for name, columns in groups if columns]
    columns = [figures for _, of_run in groups for figures in of_run]
    names = dict.fromkeys(name for figures in columns for name in figures.metrics)
    main = main_metrics(list(names))
    same = best and same_data(runs, task) and len({(f.queries, f.skipped, f.corpus) for f in columns}) == 1
    marked = [figures.model not in BOUNDS and same for figures in columns]

    def rows_of(names: Iterable[str]) -> list[str]:
        values = {name: [f.metrics.get(name) for f in columns] for name in names}
        floors = {name: next((f.metrics.get(name) for f in columns if f.model == CHANCE), None) for name in values}
        return [_metric_row(name, name, of, marked, floors[name]) for name, of in values.items()]

    rows = rows_of(main)
    rows.append(_row("view", [show_view(figures.view) for figures in columns]))
    for label, of in (
        ("queries", lambda f: f.queries),
        ("left out", lambda f: f.skipped),
        ("corpus", lambda f: f.corpus),
    ):
        rows.append(_row(label, [f"{of(figures):,}" for figures in columns]))
    heads = _heads(groups, named=len(runs) > 1)
    folded = [name for name in names if name not in main]
    if not folded:
        return scroll_table(heads, rows)
    summary = f"Further cut-offs of {html.escape(task)} ({len(folded)})"
    further = f"<details><summary>{summary}</summary>{scroll_table(heads, rows_of(folded))}</details>"
    return scroll_table(heads, rows) + further


def main_metrics(names: Sequence[str]) -> list[str]:
    """Returns the metrics that are not folded away, in their order.

    They are all metrics but further cut-offs of nDCG, MRR and MAP. Each of these families keeps one cut-off: 10, or the
    highest if 10 was not measured.
    """
    cut_offs: dict[str, list[int]] = {}
    for name in names:
        if found := _ONE_CUT_OFF.fullmatch(name):
            cut_offs.setdefault(found[1], []).append(int(found[2]))
    kept = {f"{family}@{_CUT_OFF if _CUT_OFF in ks else max(ks)}" for family, ks in cut_offs.items()}
    return [name for name in names if name in kept or not _ONE_CUT_OFF.fullmatch(name)]


def _heads(groups: Sequence[tuple[str, Sequence[StoredResult]]], *, named: bool) -> str:
    models = "".join(f"<th>{html.escape(_model(f))}</th>" for _, columns in groups for f in columns)
    head = f"<tr><th>metric</th>{models}</tr>"
    if not named:
        return head
    runs = "".join(f'<th class="group" colspan="{len(columns)}">{html.escape(name)}</th>' for name, columns in groups)
    return f"<tr><td></td>{runs}</tr>{head}"


def _model(figures: StoredResult) -> str:
    return MODELS.get(figures.model, figures.model)


def _metric_row(
    label: str, metric: str, values: Sequence[float | None], marked: Sequence[bool], floor: float | None = None
) -> str:
    """Returns the HTML of a row, with the best of the `marked` values in bold, if it is above the floor."""
    compared = [v if mark else None for v, mark in zip(values, marked, strict=True)]
    best = best_of(metric, compared)
    if best is not None and floor is not None and best_of(metric, (best, floor)) != best:
        best = None  # no better than a random order
    marks = [' class="best"' if best is not None and value == best else "" for value in compared]
    cells = "".join(f"<td{mark}>{format_metric(metric, v)}</td>" for mark, v in zip(marks, values, strict=True))
    return f"<tr>{_metric_head(label, metric)}{cells}</tr>"


def _metric_head(label: str, metric: str) -> str:
    """Returns the head of a row, with what the metric is."""
    meaning = facts_of(metric).meaning
    better = " (lower is better)" if lower_is_better(metric) else ""
    title = f' title="{html.escape(meaning + better)}"' if meaning else ""
    return f'<th scope="row"{title}>{html.escape(label)}</th>'


def _row(label: str, cells: Sequence[str]) -> str:
    shown = "".join(f'<td class="soft">{html.escape(cell)}</td>' for cell in cells)
    return f'<tr><th class="soft">{html.escape(label)}</th>{shown}</tr>'


def scroll_table(head: str, rows: Sequence[str], kind: str = "") -> str:
    """Returns the HTML of a table in a box that scrolls sideways if the table is wider than the page."""
    return (
        f'<div class="scroll"><table class="{kind}"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def further_table(runs: Sequence[RunReport], task: str) -> str:
    """Returns the HTML of all other figures (views, modality matrix, smaller widths), folded away."""
    chosen = [
        (run, figures)
        for run in runs
        for figures in run.figures
        if figures.task == task and figures is not main_figures(run, task, figures.model)
    ]
    if not chosen:
        return ""
    names = list(dict.fromkeys(name for _, figures in chosen for name in figures.metrics))
    labels: list[tuple[str, Callable[[RunReport, StoredResult], str]]] = [
        ("model", lambda run, figures: _model(figures)),
        ("view", lambda run, figures: show_view(figures.view)),
        ("size", lambda run, figures: str(figures.width or "full")),
        ("queries", lambda run, figures: f"{figures.queries:,}"),
    ]
    if len(runs) > 1:
        labels.insert(0, ("run", lambda run, figures: run.name))
    rows = []
    for run, figures in chosen:
        cells = [html.escape(of(run, figures)) for _, of in labels]
        cells += [format_metric(name, figures.metrics.get(name)) for name in names]
        rows.append(f"<tr><th>{cells[0]}</th>" + "".join(f"<td>{cell}</td>" for cell in cells[1:]) + "</tr>")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in [*(label for label, _ in labels), *names])
    return (
        f"<details><summary>Further views and sizes of {html.escape(task)} ({len(chosen)})</summary>"
        f"{scroll_table(f'<tr>{head}</tr>', rows)}</details>"
    )


def facts(runs: Sequence[RunReport]) -> str:
    """Returns the HTML of the facts, a list for one run and a table for several; empty without facts."""
    if not any(map(_facts, runs)):
        return ""
    if len(runs) == 1:
        entries = (
            f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(str(v))}</dd></div>" for k, v in _facts(runs[0]).items()
        )
        return f'<dl class="facts">{"".join(entries)}</dl>'
    of_runs = [_facts(run) for run in runs]
    labels = dict.fromkeys(label for of_run in of_runs for label in of_run)
    rows = [_text_row(label, [str(of_run.get(label, "–")) for of_run in of_runs]) for label in labels]
    return scroll_table(_run_heads(runs), rows, "texts") if rows else ""


def _facts(run: RunReport) -> dict[str, str]:
    evaluated = {} if run.step is None else {"Evaluated at step": f"{run.step:,}"}
    return evaluated | dict(run.facts)


def settings(runs: Sequence[RunReport]) -> str:
    """Returns the HTML of the settings, folded away: all of one run, or those that differ between runs."""
    of_runs = [dict(flat(run.settings, "")) for run in runs]
    keys = list(dict.fromkeys(key for of_run in of_runs for key in of_run))
    if len(runs) > 1:
        keys = [key for key in keys if len({of_run.get(key) for of_run in of_runs}) > 1]
    if not keys:
        return ""
    rows = [_text_row(key, [of_run.get(key, "–") for of_run in of_runs]) for key in keys]
    head = _run_heads(runs) if len(runs) > 1 else ""
    summary = "All settings" if len(runs) == 1 else "Settings that differ"
    return f'<details id="settings"><summary>{summary}</summary>{scroll_table(head, rows, "texts code")}</details>'


def _run_heads(runs: Sequence[RunReport]) -> str:
    return f"<tr><td></td>{''.join(f'<th>{html.escape(run.name)}</th>' for run in runs)}</tr>"


def _text_row(label: str, cells: Sequence[str]) -> str:
    return f"<tr><th>{html.escape(label)}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"


def flat(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    """Returns (dotted key, value as JSON) of nested settings."""
    rows = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", json.dumps(value, ensure_ascii=False, default=str)))
    return rows
