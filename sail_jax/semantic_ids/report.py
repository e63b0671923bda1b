"""Shows the figures of semantic IDs: a table, and a plot of how often each code is used."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from sail_jax.files import commit_bytes

_COLORS = ("#2f7fd6", "#1b9e77", "#e08214", "#c2559d", "#5c6675", "#8c6bb1")


def figures_table(figures: dict[str, Any]) -> Table:
    """Returns a table with a row per level: figures of the level, and of the IDs up to that level."""
    table = Table(title=f"{figures['items']:,} items", title_justify="left")
    for name in ("level", "codes", "used %", "bits", "perplexity", "IDs", "collide %", "error %", "cosine", "purity %"):
        table.add_column(name, justify="right")
    table.add_column("by chance %", justify="right")
    for level, prefix in zip(figures["levels"], figures["prefixes"], strict=True):
        table.add_row(
            f"{level['level']}",
            f"{level['codes']:,}",
            f"{100 * level['utilisation']:.1f}",
            f"{level['entropy_bits']:.2f}",
            f"{level['perplexity']:.1f}",
            f"{prefix['distinct_ids']:,}",
            f"{100 * prefix['collision_rate']:.1f}",
            f"{100 * prefix['relative_error']:.1f}",
            f"{prefix['cosine']:.3f}",
            "-" if prefix["purity"] is None else f"{100 * prefix['purity']:.1f}",
            f"{100 * prefix['purity_by_chance']:.2f}",
        )
    return table


def draw_frequencies(path: Path, title: str, of_codes: Sequence[np.ndarray]) -> None:
    """Draws how many items each code has, as a PNG: a curve per level, the most frequent code first.

    A curve ends before its unused codes.

    Args:
        path: the file.
        title: title of the plot.
        of_codes: for each level, the number of items of each code.
    """
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.subplots()
        for level, counts in enumerate(of_codes):
            share = np.sort(counts[counts > 0])[::-1] / counts.sum()
            place = np.arange(1, len(share) + 1) / len(counts)
            label = f"level {level + 1}: {len(share):,} of {len(counts):,} codes used"
            axes.plot(place, share * len(counts), color=_COLORS[level % len(_COLORS)], label=label)
        axes.axhline(1, color="#b0b0b0", linestyle="--", linewidth=1, label="all codes equally often")
        axes.set(yscale="log", xlim=(0, 1), xlabel="codes by frequency, as a share of the codebook")
        axes.set(ylabel="items, relative to the mean of a code", title=title)
        axes.legend(frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
    commit_bytes(path, buffer.getvalue())
