"""Draws the charts of the report with matplotlib, as SVG inside the page and as PNG files beside it."""

import contextlib
import csv
import dataclasses
import html
import io
import itertools
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sail_jax.evaluation.report.style import GREY, INK, LINES
from sail_jax.patterns import MODALITY_SETS

_WIDTH = 4.6  # inches; about the width of a column of the page's grid of charts
_DPI = 180
_MAX_POINTS = 400  # drawn of a curve
_DASHES = ("-", "--", "-.", ":")


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart, its file name and its description.

    Attributes:
        name: file name of its PNG, without the suffix.
        label: a description for screen readers.
        figure: the drawing; on the page, the colour `INK` becomes the colour of the text.
        rows: the values that it shows, a row of heads first.
    """

    name: str
    label: str
    figure: Figure
    rows: Sequence[Sequence[object]] = ()

    @property
    def csv(self) -> str:
        """Returns the values as CSV."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(self.rows)
        return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: its name in the legend.
        x: [N].
        y: [N]; NaNs leave gaps.
        colour: its colour; if empty, chosen by its place among the lines.
        dash: its dash pattern; if empty, chosen likewise.
        band: lower and upper ends of a band around it, [N] each; empty for none.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = ""
    dash: str = ""
    band: Sequence[Sequence[float]] = ()


def inline_svg(chart: Chart) -> str:
    """Returns the chart as an SVG element for an HTML page.

    The element has no prolog, metadata, fixed size or repeated ids; its text has the colour of the page's text.
    """
    buffer = io.StringIO()
    # "none" keeps text as text. The salt makes the bytes reproducible and the ids unique to the chart.
    with _settings({"svg.fonttype": "none", "svg.hashsalt": f"sail_jax {chart.name}"}):
        chart.figure.savefig(buffer, format="svg", transparent=True, dpi=_DPI)
    chart.figure.set_layout_engine("none")  # keeps this layout for the PNG
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    root, rest = svg.split(">", 1)
    svg = re.sub(r' (width|height)="[^"]*"', "", root) + ">" + rest
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)
    svg = svg.replace(INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(chart.label)}"', 1)


def save_png(chart: Chart, folder: Path) -> None:
    """Writes the chart as FOLDER/NAME.png, on a white background."""
    with _settings({}):
        chart.figure.savefig(folder / f"{chart.name}.png", dpi=_DPI, facecolor="white")


@contextlib.contextmanager
def _settings(values: Mapping[str, object]) -> Iterator[None]:
    """Sets matplotlib's settings, and hides its warnings of missing glyphs, which the browser has."""
    with matplotlib.rc_context(dict(values)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def canvas(title: str, height: float, panels: int = 1, pad: float = 8) -> tuple[Figure, list[Axes]]:
    """Returns a figure with a title and panels one below the other, in the colour of the page's text."""
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = list(figure.subplots(panels, sharex=True, squeeze=False)[:, 0])
    heading = "\n".join(literal(line, 38) for line in title.split("\n"))
    axes[0].set_title(heading, loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=pad)
    for one in axes:
        one.tick_params(colors=INK, labelsize=8.5, length=3)
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color(INK)
        one.spines[["left", "bottom"]].set_alpha(0.5)
    return figure, axes


def grid(axes: Axes, axis: str = "y") -> None:
    """Draws faint lines behind the data."""
    axes.grid(axis=axis, color=INK, alpha=0.13, linewidth=0.7)
    axes.set_axisbelow(True)


def percent(share: float, _: int) -> str:
    """Returns the label of a tick of an axis of shares."""
    return f"{100 * share:.3g}%"


def legend(figure: Figure, **settings: object) -> None:
    """Adds one legend for all panels, under the axes, where it hides nothing."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    longest = max(map(len, labels))
    columns = 3 if longest < 16 else 2 if longest < 28 else 1
    shown = {"loc": "outside lower left", "frameon": False, "labelcolor": INK, "fontsize": 8.5, "ncols": columns}
    shown |= {"columnspacing": 1.2, "borderaxespad": 0.1, "handlelength": 1.8}
    figure.legend(handles, labels, **(shown | settings))


def literal(name: str, longest: int = 48) -> str:
    """Returns a name, cut to `longest`, that matplotlib draws as it is.

    matplotlib would typeset "$" as a formula, break lines, and hide names that begin with "_" from the legend.
    """
    plain = re.sub(r"[\x00-\x1f]", " ", name)
    return "\u200b" + (plain if len(plain) <= longest else plain[: longest - 1] + "…").replace("$", r"\$")


def curves_chart(
    name: str, title: str, unit: str, lines: Sequence[Line], *, smooth: bool = False, share: bool = False
) -> Chart:
    """Draws training curves.

    Args:
        name: file name of the chart's PNG, without the suffix.
        title: its heading.
        unit: label of the y axis.
        lines: the curves, at least one.
        smooth: whether to draw the running mean too, and the curve itself faintly.
        share: whether the values are shares, shown in per cent from 0.
    """
    figure, (axes,) = canvas(title, 2.7)
    for number, line in enumerate(lines):
        colour = line.colour or LINES[number % len(LINES)]
        dash = line.dash or _DASHES[number // len(LINES) % len(_DASHES)]
        stride = -(-len(line.x) // _MAX_POINTS)
        strong = smoothed(line.y) if smooth else np.asarray(line.y, np.float64)
        if smooth:
            axes.plot(line.x[::stride], line.y[::stride], color=colour, alpha=0.3, linewidth=0.8)
        if line.band:
            low, high = line.band
            axes.fill_between(line.x[::stride], low[::stride], high[::stride], color=colour, alpha=0.15, linewidth=0)
        marker = "o" if len(line.x) < 15 and not smooth else None
        shown = {"color": colour, "linestyle": dash, "linewidth": 1.7, "marker": marker, "markersize": 3}
        axes.plot(line.x[::stride], strong[::stride], label=literal(line.label), **shown)
    axes.set_xlabel("step", color=INK, fontsize=9)
    axes.set_ylabel(literal(unit, 24), color=INK, fontsize=9)
    if share:
        axes.yaxis.set_major_formatter(FuncFormatter(percent))
        axes.set_ylim(bottom=0)
    axes.margins(x=0.02)
    grid(axes)
    if len(lines) > 1:
        legend(figure)
    return Chart(name, f"{title} over training steps", figure, _rows_of(lines, "step", unit))


def smoothed(values: Sequence[float]) -> np.ndarray:
    """Returns the centred running mean over a twentieth of the points, fewer at the ends; ignores NaNs.

    Args:
        values: [N].

    Returns:
        [N] float64.
    """
    values = np.asarray(values, np.float64)
    half = max(len(values) // 40, 1)
    present = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(present, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(present)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    number = counts[high] - counts[low]
    return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


def widths_chart(name: str, title: str, metric: str, lines: Sequence[Line]) -> Chart:
    """Draws a metric, which is a share, by Matryoshka size on a logarithmic axis."""
    figure, (axes,) = canvas(title, 2.7)
    for line in lines:
        style = {"color": line.colour, "linestyle": line.dash, "linewidth": 1.7, "marker": "o", "markersize": 4}
        axes.plot(line.x, line.y, label=literal(line.label), **style)
    widths = sorted({width for line in lines for width in line.x})
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(widths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(widths, [str(width) for width in widths], rotation=0 if len(widths) <= 8 else 60)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(percent))
    axes.set_xlabel("dimensions kept", color=INK, fontsize=9)
    axes.set_ylabel(literal(metric, 24), color=INK, fontsize=9)
    grid(axes)
    if len(lines) > 1:
        legend(figure)
    return Chart(name, f"{title}: {metric} by Matryoshka size", figure, _rows_of(lines, "dimensions", metric))


def separability_chart(name: str, title: str, panels: Sequence[tuple[str, Mapping[str, Sequence[float]]]]) -> Chart:
    """Draws histograms of the cosines of relevant and of other pairs, a panel per model on one axis.

    Args:
        name: file name of the chart's PNG, without the suffix.
        title: its heading.
        panels: (heading, {"edges": [B + 1], "positive": [B], "negative": [B]}) of each; counts or densities.
    """
    figure, axes = canvas(title, 1.1 + 1.25 * len(panels), len(panels), pad=20)
    low, high = _range([histogram for _, histogram in panels])
    for one, (heading, histogram) in zip(axes, panels, strict=True):
        edges = np.asarray(histogram["edges"], np.float64)
        for key, label, colour in (("positive", "relevant", LINES[0]), ("negative", "other", LINES[1])):
            counts = np.asarray(histogram[key], np.float64)
            shares = counts / max(counts.sum(), 1e-12)
            one.stairs(shares, edges, fill=True, color=colour, alpha=0.35)
            one.stairs(shares, edges, color=colour, linewidth=1.3, label=f"{label} pairs")
        one.set_ylim(bottom=0)
        one.set_xlim(low, high)
        one.yaxis.set_major_formatter(FuncFormatter(percent))
        one.text(0.0, 1.02, literal(heading), transform=one.transAxes, fontsize=8.5, color=INK, va="bottom")
        grid(one)
    legend(figure)
    axes[-1].set_xlabel("cosine", color=INK, fontsize=9)
    figure.supylabel("share of pairs", color=INK, fontsize=9)
    rows = [(heading, *bin_) for heading, of in panels for bin_ in _bins(of)]
    heads = ("model", "cosine from", "to", "relevant", "other")
    return Chart(name, f"{title}: cosines of relevant and of other pairs", figure, [heads, *rows])


def _bins(histogram: Mapping[str, Sequence[float]]) -> Iterator[tuple[float, ...]]:
    """Yields the ends of each bin with its two counts."""
    ends = itertools.pairwise(histogram["edges"])
    for (low, high), positive, negative in zip(ends, histogram["positive"], histogram["negative"], strict=True):
        yield low, high, positive, negative


def _rows_of(lines: Sequence[Line], x: str, y: str) -> list[tuple[object, ...]]:
    """Returns the values of lines, a row of heads first."""
    rows = [(line.label, *point) for line in lines for point in zip(line.x, line.y, strict=True)]
    return [("line", x, y), *rows]


def _range(histograms: Sequence[Mapping[str, Sequence[float]]]) -> tuple[float, float]:
    """Returns the range of cosines in which any bin is filled, with a small margin."""
    low, high = [], []
    for histogram in histograms:
        filled = np.flatnonzero(np.asarray(histogram["positive"]) + np.asarray(histogram["negative"]))
        if len(filled):
            low.append(histogram["edges"][filled[0]])
            high.append(histogram["edges"][filled[-1] + 1])
    return (min(low) - 0.02, max(high) + 0.02) if low else (-1.0, 1.0)


def bars_chart(name: str, title: str, metric: str, views: Sequence[str], groups: Sequence[Line]) -> Chart:
    """Draws a metric, which is a share, by view: a bar per view and group.

    Args:
        name: file name of the chart's PNG, without the suffix.
        title: its heading.
        metric: name of the metric.
        views: [N] labels of the views.
        groups: one per model or run; x is the place of the view, y the value, NaN if there is none.
    """
    thick = 0.8 / len(groups)
    figure, (axes,) = canvas(title, 1.0 + max(0.3, 0.17 * len(groups)) * len(views))
    for number, group in enumerate(groups):
        values = np.asarray(group.y, np.float64)
        places = np.asarray(group.x) - 0.4 + thick * (number + 0.5)
        axes.barh(places, np.nan_to_num(values), thick * 0.9, color=group.colour, label=literal(group.label))
        for place, value in zip(places, values, strict=True):
            if np.isfinite(value):
                axes.text(value, place, f" {100 * value:.1f}", va="center", fontsize=7.5, color=INK)
    axes.set_yticks(range(len(views)), [literal(view, 16) for view in views])
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.02)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(percent))
    axes.set_xlabel(literal(metric), color=INK, fontsize=9)
    grid(axes, "x")
    if len(groups) > 1:
        legend(figure)
    rows = [
        (group.label, views[place], value)
        for group in groups
        for place, value in zip(group.x, group.y, strict=True)
        if np.isfinite(value)
    ]
    return Chart(name, f"{title}: {metric} by what is shown", figure, [("model", "view", metric), *rows])


def matrix_chart(name: str, title: str, metric: str, values: Mapping[tuple[str, str], float], limit: float) -> Chart:
    """Draws a metric, which is a share, by the modalities of the query (rows) and target (columns).

    Args:
        name: file name of the chart's PNG, without the suffix.
        title: its heading.
        metric: name of the metric.
        values: (query's modalities, target's modalities) -> value.
        limit: value with the strongest colour.
    """
    figure, (axes,) = canvas(title, 4.1)
    for row, query in enumerate(MODALITY_SETS):
        for column, target in enumerate(MODALITY_SETS):
            value = values.get((query, target), np.nan)
            if not np.isfinite(value):
                axes.text(column, row, "–", ha="center", va="center", fontsize=8, color=INK, alpha=0.5)
                continue
            # Weak enough that the number, in the colour of the text, can be read in the light and the dark scheme.
            strength = 0.05 + 0.65 * value / max(limit, 1e-12)
            axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, color=LINES[0], alpha=strength, lw=0))
            axes.text(column, row, f"{100 * value:.1f}", ha="center", va="center", fontsize=8, color=INK)
    ends = (-0.5, len(MODALITY_SETS) - 0.5)
    axes.set(xlim=ends, ylim=ends[::-1], aspect="equal")
    axes.set_xticks(range(len(MODALITY_SETS)), MODALITY_SETS)
    axes.set_yticks(range(len(MODALITY_SETS)), MODALITY_SETS)
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlabel("shown of the target", color=INK, fontsize=9)
    axes.set_ylabel("shown of the query", color=INK, fontsize=9)
    rows = [(*view, value) for view, value in values.items()]
    label = f"{title}: {metric} in per cent by the modalities of both sides"
    return Chart(name, label, figure, [("query", "target", metric), *rows])


def map_chart(
    name: str, title: str, points: Sequence[Sequence[float]], labels: Sequence[str], named: Sequence[str]
) -> Chart:
    """Draws items in the plane, coloured by label.

    Args:
        name: file name of the chart's PNG, without the suffix.
        title: its heading.
        points: [N, 2].
        labels: [N], empty for an item without labels.
        named: labels with a colour of their own; the others are grey.
    """
    figure, (axes,) = canvas(title, 4.6)
    places, labels = np.asarray(points, np.float64).reshape(-1, 2), np.asarray(labels, object)
    size = 16 if len(places) < 400 else 7
    groups = [(GREY, "other" if named else "", ~np.isin(labels, np.asarray(named, object)))]
    groups += [(LINES[i % len(LINES)], label, labels == label) for i, label in enumerate(named)]
    for colour, label, chosen in groups:
        if chosen.any():
            # Rasterized inside the SVG: thousands of circles would fill most of the page's size.
            style = {"s": size, "color": colour, "alpha": 0.35 if colour == GREY else 0.9, "linewidths": 0}
            axes.scatter(*places[chosen].T, label=literal(label), rasterized=True, **style)
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    axes.spines[:].set_visible(False)
    if named:
        legend(figure, handletextpad=0.2, markerscale=2 if size < 10 else 1.2, fontsize=8, handlelength=1.4)
    rows = [(*point, label) for point, label in zip(points, labels, strict=True)]
    return Chart(name, f"{title}: a map of the items", figure, [("x", "y", "label"), *rows])
