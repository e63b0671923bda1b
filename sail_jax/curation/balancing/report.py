"""Writes the result of balancing as JSON, which training reads, and as a heat map."""

import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sail_jax.config.curation import BalancingConfig
from sail_jax.files import commit_bytes, commit_json


@dataclasses.dataclass(frozen=True)
class BalancingResult:
    """The similarities of m training sets to n benchmarks, and the sampling weights computed from them.

    Attributes:
        datasets: m names of training sets.
        tasks: n names of benchmarks.
        similarity: [m, n] float64; NaN if the two have no kind of embedding in common.
        kinds: m tuples of n: the kinds of embedding compared, ("fused",) or single modalities; empty if NaN.
        weights: [m] float64, summing to one.
        samples: "datasets" and "tasks" -> name -> number of items embedded ("items"), and of those with each kind.
        settings: the settings of the computation.
        seed: the experiment's seed.
    """

    datasets: tuple[str, ...]
    tasks: tuple[str, ...]
    similarity: np.ndarray
    kinds: tuple[tuple[tuple[str, ...], ...], ...]
    weights: np.ndarray
    samples: dict[str, dict[str, dict[str, int]]]
    settings: BalancingConfig
    seed: int


def write_json(result: BalancingResult, path: Path) -> None:
    """Writes weights, similarities and settings as JSON, for `data.sampling_weights.read_weights`."""
    rows = range(len(result.datasets))
    values = [[None if math.isnan(value) else float(value) for value in row] for row in result.similarity]
    kinds = [[",".join(kinds) or None for kinds in row] for row in result.kinds]
    tree: dict[str, Any] = {
        "weights": {result.datasets[i]: float(result.weights[i]) for i in rows},
        "similarity": {result.datasets[i]: dict(zip(result.tasks, values[i], strict=True)) for i in rows},
        "kind": {result.datasets[i]: dict(zip(result.tasks, kinds[i], strict=True)) for i in rows},
        "settings": dataclasses.asdict(result.settings),
        "samples": result.samples,
        "seed": result.seed,
    }
    commit_json(path, tree, allow_nan=False)


def write_heat_map(result: BalancingResult, path: Path) -> None:
    """Draws the similarities as a heat map, and the weights as bars beside it, into a PNG file.

    Each cell shows its value, and below it the kinds of embedding compared if it was not the fused one.
    """
    m, n = result.similarity.shape
    longest = max(map(len, (*result.datasets, *result.tasks)))
    figure = Figure(figsize=(4.5 + 0.9 * n + 0.08 * longest, 1.8 + 0.5 * m + 0.08 * longest), layout="constrained")
    cells, bars = figure.subplots(1, 2, width_ratios=(max(0.9 * n, 1.5), 2.2), sharey=True)
    _draw_cells(cells, result)
    _draw_weights(bars, result)
    figure.colorbar(cells.images[0], ax=bars, label="similarity", fraction=0.08, pad=0.04)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    commit_bytes(path, buffer.getvalue())


def _draw_cells(axes: Axes, result: BalancingResult) -> None:
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="#d9d9d9")
    image = axes.imshow(np.ma.masked_invalid(result.similarity), cmap=colours, aspect="auto")
    axes.set_xticks(range(len(result.tasks)), map(_literal, result.tasks), rotation=30, ha="right")
    axes.set_yticks(range(len(result.datasets)), map(_literal, result.datasets))
    axes.set_xlabel("benchmark")
    axes.set_ylabel("training set")
    axes.set_title("similarity", fontsize=10)
    for (row, column), value in np.ndenumerate(result.similarity):
        kinds = result.kinds[row][column]
        text = "nothing\nshared" if not kinds else f"{value:.3f}"
        if kinds and kinds != ("fused",):
            text += "\n" + ",".join(kinds)
        # Viridis runs from dark to light: low values need white text.
        dark = bool(kinds) and image.norm(value) < 0.55
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")


def _draw_weights(axes: Axes, result: BalancingResult) -> None:
    rows = np.arange(len(result.datasets))
    axes.barh(rows, result.weights, height=0.6, color="#3b528b")
    for row, weight in zip(rows, result.weights, strict=True):
        axes.annotate(f"{weight:.1%}", (weight, row), (3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xlim(0, 1.35 * result.weights.max())
    axes.set_xticks([])
    axes.tick_params(axis="y", left=False, labelleft=False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_title("sampling weight", fontsize=10)


def _literal(name: str) -> str:
    """Returns a name that matplotlib does not typeset as a formula."""
    return name.replace("$", r"\$")
