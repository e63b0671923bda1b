"""Writes the figures of a mining run as JSON, and draws its distributions of scores."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from sail_jax.curation.mining.threshold import Curve, Threshold
from sail_jax.files import commit_json, partial_file

_HISTOGRAM_BINS = 64


def write_figures(path: Path, figures: dict[str, Any], threshold: Threshold) -> None:
    """Writes figures and curves as JSON.

    Args:
        path: the file.
        figures: name -> value.
        threshold: lambda*; its curve is written point by point.
    """
    curve = threshold.curve
    points = {"threshold": curve.thresholds, "precision": curve.precision, "recall": curve.recall, "f1": curve.f1}
    points |= {"true_positives": curve.true_positives, "false_positives": curve.false_positives}
    everything = figures | {"curves": {name: values.tolist() for name, values in points.items()}}
    commit_json(path, everything)


def draw(path: Path, title: str, threshold: Threshold) -> None:
    """Draws the scores of positives and negatives, and precision, recall and F1 by threshold, as PNG."""
    import matplotlib
    from matplotlib.figure import Figure

    curve, value = threshold.curve, threshold.value
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8, 6.4), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        for name, color, counts in _histograms(curve):
            edges, density = counts
            above.stairs(density, edges, fill=True, alpha=0.5, color=color, label=name)
        above.set_ylabel("density of scores")
        for name, color in (("precision", "#1b9e77"), ("recall", "#c2559d"), ("f1", "#2f7fd6")):
            below.plot(curve.thresholds, getattr(curve, name), color=color, label=name.replace("f1", "F1"))
        below.set(xlabel="cosine", ylim=(0, 1.02))
        for axes in (above, below):
            axes.axvline(value, color="#e08214", linestyle="--", label=f"lambda* = {value:.3f}")
            axes.legend(frameon=False)
        figure.suptitle(title)
        with partial_file(path) as partial:
            figure.savefig(partial, format="png", dpi=120)


def _histograms(curve: Curve) -> list[tuple[str, str, tuple[np.ndarray, np.ndarray]]]:
    """Returns (name, colour, (edges, density)) of negatives and of positives, from the curve's counts."""
    kept = np.unique(np.linspace(0, len(curve.thresholds) - 1, _HISTOGRAM_BINS + 1).astype(int))
    edges = curve.thresholds[kept]
    # A last bin for the scores beyond the last threshold, or for all scores if they are equal.
    edges = np.append(edges, edges[-1] + (edges[-1] - edges[0] or 1) / _HISTOGRAM_BINS)
    drawn = []
    for name, color, tail, total in (
        ("negatives", "#5c6675", curve.false_positives, curve.negatives),
        ("positives", "#2f7fd6", curve.true_positives, curve.positives),
    ):
        counts = -np.diff(np.append(tail[kept], 0))
        drawn.append((f"{name} ({total:,})", color, (edges, counts / max(total, 1) / np.diff(edges))))
    return drawn


def threshold_figures(threshold: Threshold) -> dict[str, Any]:
    """Returns lambda* and its figures by name, without the curve."""
    figures = {field.name: getattr(threshold, field.name) for field in dataclasses.fields(threshold)}
    del figures["curve"]
    return {"lambda": figures.pop("value")} | figures
