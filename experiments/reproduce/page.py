"""Writes the page of results: HTML with a chart for each claim, a table in Markdown, and JSON."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter

from experiments.reproduce.verdicts import Row, count, plain
from sail_jax.evaluation.metrics.seeds import paired
from sail_jax.evaluation.report.figures import Chart, canvas, grid, literal, percent
from sail_jax.evaluation.report.page import Page, png_folder
from sail_jax.evaluation.report.seed_groups import CAPTION, seed_table
from sail_jax.evaluation.report.style import INK, LINES
from sail_jax.evaluation.report.tables import format_change, format_metric, is_share, scroll_table
from sail_jax.files import commit_bytes, commit_json

NAME = "reproduction"
HEADS = ("claim", "the report", "figure", "without", "with", "difference", "95 % interval", "verdict")
_VERDICTS = (
    "A claim is confirmed where the 95 % interval of the difference, paired by seed (Student's t), lies on the "
    "report's side of 0, contradicted where it lies on the other, and undecided where it has 0 within. Each test alone "
    "errs in one of twenty cases; it says so where the verdict also stands after Holm's correction for all claims that "
    "were tested here. Condition, figure and test were written into {record} before the runs."
)
_CHARTS = "Each line is a seed: its arms start alike and see data in the same order. The bar is the mean."


def write_page(
    folder: Path, rows: Sequence[Row], origins: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]
) -> Path:
    """Writes reproduction.html, .md and .json into a folder; returns the path of the page.

    Args:
        folder: the folder.
        rows: what was found of each claim.
        origins: claim -> digest of its declaration, and the machine; of the claims that were declared.
        settings: scale and base.
    """
    path = folder / f"{NAME}.html"
    png_folder(path).mkdir(parents=True, exist_ok=True)
    page = Page(png_folder(path))
    page.add("Verdicts", _VERDICTS.format(record="declared.json"), _table(rows))
    tested = [row for row in rows if row.difference is not None]
    page.charts("Charts", _CHARTS, [_chart(row) for row in tested])
    page.add("Figures", CAPTION, "".join(map(_figures, tested)))
    page.add("Conditions", "", "".join(map(_condition, rows)))
    page.add("Not tested", "", _not_tested(rows))
    head = _facts({"Verdicts": verdict_counts(rows), **settings, **_machines(origins)})
    commit_bytes(path, page.text("sail_jax: directions of the report", head, "").encode(errors="replace"))
    commit_bytes(folder / f"{NAME}.md", (markdown(rows) + "\n").encode())
    found = {row.claim.name: {**plain(row), **origins.get(row.claim.name, {})} for row in rows}
    commit_json(folder / f"{NAME}.json", {**settings, "claims": found}, ensure_ascii=False)
    return path


def _machines(origins: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns the facts of the machines that claims were run on, such as {"cores": "2, 16"}."""
    machines = [origin["machine"] for origin in origins.values()]
    values = {name: dict.fromkeys(str(of.get(name, "")) for of in machines) for name in (machines or [{}])[0]}
    return {name: ", ".join(of) for name, of in values.items()}


def verdict_counts(rows: Sequence[Row]) -> str:
    """Returns the counts of the verdicts, such as "9 confirmed, 2 undecided"."""
    return ", ".join(f"{n} {kind}" for kind, n in count(rows).items())


def cells(row: Row) -> list[str]:
    """Returns the cells of a claim's row, in the order of `HEADS`."""
    first = [f"{row.claim.name}: {row.claim.treatment}, not {row.claim.control}", row.claim.reported, row.figure]
    if row.difference is None:
        return [*first, "", "", "", "", row.verdict]
    return [*first, *_compared(row, row.figure), f"{row.verdict}{', also after Holm' * row.after_holm}"]


def markdown(rows: Sequence[Row]) -> str:
    """Returns the table for the docs; what was not tested follows with its reason."""
    lines = ["| " + " | ".join(HEADS) + " |", "| --- |" + " --- |" * (len(HEADS) - 1)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    reasons = [f"- {row.claim.name}: {row.verdict}: {row.reason}" for row in rows if row.reason]
    return "\n".join([*lines, *([""] if reasons else []), *reasons])


def metric_of(figure: str) -> str:
    """Returns the metric of a figure, without its task and its view."""
    rest = figure.partition("/")[2]
    first, _, others = rest.partition("/")
    return others if others and first.isupper() else rest


def _mean(values: Mapping[int, float]) -> float:
    return float(np.mean(list(values.values()))) if values else np.nan


def _table(rows: Sequence[Row]) -> str:
    head = "<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in HEADS) + "</tr>"
    body = []
    for row in rows:
        name, *others = cells(row)
        body.append(f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{html.escape(one)}</td>' for one in others)}</tr>")
    return scroll_table(head, body, "texts")


def _chart(row: Row) -> Chart:
    """Draws both arms of a claim, a line for each seed."""
    figure, (axes,) = canvas(f"{row.claim.name}: {row.verdict}", 2.6)
    treatment, control = (group.values(row.figure) for group in row.groups)
    for seed, value in treatment.items():
        axes.plot([0, 1], [control[seed], value], "o-", color=LINES[0], alpha=0.6, linewidth=1.2, markersize=4)
    for place, values in enumerate((control, treatment)):
        mean = _mean(values)
        axes.plot([place - 0.12, place + 0.12], [mean, mean], color=INK, linewidth=2.5)
    axes.set_xticks([0, 1], [literal(row.claim.control, 24), literal(row.claim.treatment, 24)])
    axes.set_xlim(-0.4, 1.4)
    if is_share(metric_of(row.figure)):
        axes.yaxis.set_major_formatter(FuncFormatter(percent))
    axes.set_ylabel(literal(row.figure), color=INK, fontsize=9)
    grid(axes)
    return Chart(row.claim.name, f"{row.figure} of both arms of {row.claim.name}, by seed", figure)


def _figures(row: Row) -> str:
    """Returns the table of the figure that decides, and one of the further figures, as tables 4 and 5 of the report."""
    main = f"<p>{html.escape(row.figure)}</p>{seed_table(row.groups, row.figure, row.claim.control)}"
    further = [figure for figure in row.claim.shown if figure != row.figure and row.groups[0].values(figure)]
    return f"<h3>{html.escape(row.claim.says)}</h3>{main}{_further(row, further) if further else ''}"


def _further(row: Row, figures: Sequence[str]) -> str:
    heads = (
        "further figures, which decide nothing",
        row.claim.control,
        row.claim.treatment,
        "difference",
        "95 % interval",
    )
    head = "<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in heads) + "</tr>"
    body = []
    for figure in figures:
        shown = "".join(f"<td>{html.escape(cell)}</td>" for cell in _compared(row, figure))
        body.append(f"<tr><th>{html.escape(figure)}</th>{shown}</tr>")
    return scroll_table(head, body)


def _compared(row: Row, figure: str) -> list[str]:
    """Returns the means of a figure without and with the ingredient, their difference and its interval."""
    metric, (treatment, control) = metric_of(figure), (group.values(figure) for group in row.groups)
    found = paired(treatment, control).interval
    means = [format_metric(metric, _mean(values)) for values in (control, treatment)]
    change, low, high = (format_change(metric, value) for value in (found.mean, found.low, found.high))
    return [*means, change, f"{low} to {high}"]


def _condition(row: Row) -> str:
    claim = row.claim
    varies = "".join(f" The arms differ in their {name} too: {why}" for name, why in claim.varies.items())
    words = f"{claim.section}. {claim.condition}{varies}"
    return f"<h3>{html.escape(claim.name)}</h3><p>{html.escape(words)}</p>"


def _not_tested(rows: Sequence[Row]) -> str:
    body = [
        f"<tr><th>{html.escape(row.claim.name)}</th><td>{html.escape(f'{row.verdict}: {row.reason}')}</td></tr>"
        for row in rows
        if row.reason
    ]
    return scroll_table("<tr><th>claim</th><th>why</th></tr>", body, "texts") if body else ""


def _facts(values: Mapping[str, Any]) -> str:
    shown = (f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(str(v))}</dd></div>" for k, v in values.items())
    return f'<dl class="facts">{"".join(shown)}</dl>'
