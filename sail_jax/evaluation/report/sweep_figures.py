"""Draws the charts of a sweep: the effect of each axis, and parallel coordinates."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter

from sail_jax.evaluation.metrics.seeds import Interval
from sail_jax.evaluation.report.figures import Chart, canvas, grid, literal, percent
from sail_jax.evaluation.report.style import GREY, INK, LINES

# A numeric axis whose values span more is drawn by their logarithm.
_WIDE = 20.0
# Labels of an axis are at least so much of its height apart.
_APART = 0.06


def effects_chart(
    name: str, axis: str, unit: str, values: Sequence[str], effects: Sequence[Interval], *, share: bool
) -> Chart:
    """Draws the main effect of each value of an axis, with its interval.

    Args:
        name: file name of the chart's PNG, without the suffix.
        axis: the axis.
        unit: the figure.
        values: labels of its values, [N].
        effects: [N].
        share: whether the figure is a share.
    """
    figure, (axes,) = canvas(axis, 1.0 + 0.3 * len(values))
    for place, found in enumerate(effects):
        if found.n > 1:
            axes.plot([found.low, found.high], [place, place], color=LINES[0], linewidth=2, alpha=0.6)
        axes.plot(found.mean, place, "o", color=LINES[0], markersize=5)
    axes.axvline(0, color=INK, alpha=0.5, linewidth=0.9)
    axes.set_yticks(range(len(values)), [literal(value, 20) for value in values])
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.margins(x=0.12)
    if share:
        axes.xaxis.set_major_formatter(FuncFormatter(percent))
    axes.set_xlabel(literal(f"{unit}, over the mean of the axis"), color=INK, fontsize=9)
    grid(axes, "x")
    rows = [(value, of.mean, of.low, of.high, of.n) for value, of in zip(values, effects, strict=True)]
    return Chart(name, f"Effect of {axis} on {unit}", figure, [(axis, "effect", "low", "high", "seeds"), *rows])


def parallel_chart(name: str, columns: Sequence[tuple[str, Sequence[object]]], unit: str) -> Chart:
    """Draws each combination as a line over the axes, coloured by its figure, the last column.

    Args:
        name: file name of the chart's PNG, without the suffix.
        columns: (label, [N] values) of each axis, and of the figure at last.
        unit: the figure.
    """
    figure, (axes,) = canvas(f"Combinations by {unit}", 3.6, pad=20)
    scaled = [_scaled(values) for _, values in columns]
    colours = LinearSegmentedColormap.from_list("figure", [GREY, LINES[0]])  # seen on light and dark pages
    last = scaled[-1][0]
    for row in np.argsort(last, kind="stable"):  # the best one on top
        heights = [heights[row] for heights, _ in scaled]
        axes.plot(range(len(columns)), heights, color=colours(last[row]), linewidth=1.6, alpha=0.85)
    for place, ((label, _), (_, ticks)) in enumerate(zip(columns, scaled, strict=True)):
        axes.axvline(place, color=INK, alpha=0.35, linewidth=0.9)
        axes.text(place, 1.06, literal(label, 18), ha="center" if place else "left", fontsize=8, color=INK)
        for height, text in ticks:
            axes.text(place + 0.03, height, literal(text, 14), fontsize=7.5, color=INK, va="center")
    axes.set(xlim=(-0.1, len(columns) - 0.55), ylim=(-0.05, 1.12), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    rows = [[label for label, _ in columns], *zip(*(values for _, values in columns), strict=True)]
    return Chart(name, f"Parallel coordinates of the combinations, coloured by {unit}", figure, rows)


def _scaled(values: Sequence[object]) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Returns the heights of values from 0 to 1, and (height, label) of the ticks."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        numbers = np.asarray(values, np.float64)
        lowest, highest = numbers.min(), numbers.max()
        wide = lowest > 0 and highest / lowest > _WIDE
        transform = np.log if wide else np.asarray
        span = transform(highest) - transform(lowest)
        heights = (transform(numbers) - transform(lowest)) / span if span else np.full(len(numbers), 0.5)
        shown = sorted(set(zip(heights.tolist(), numbers.tolist(), strict=True)))
        ticks = [shown[0]]
        for tick in shown[1:]:
            if tick[0] - ticks[-1][0] > _APART:
                ticks.append(tick)
        return heights, [(height, f"{number:.4g}") for height, number in ticks]
    names = list(dict.fromkeys(map(str, values)))
    places = {name: place / max(len(names) - 1, 1) if len(names) > 1 else 0.5 for place, name in enumerate(names)}
    return np.array([places[str(value)] for value in values]), [(place, name) for name, place in places.items()]
