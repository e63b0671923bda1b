"""Computes the main effect of each axis of a sweep."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sail_jax.evaluation.metrics.seeds import Interval, over_seeds


class Point(NamedTuple):
    """A figure of a member.

    Attributes:
        axes: column -> value.
        seed: its seed.
        value: the figure.
    """

    axes: Mapping[str, Any]
    seed: int
    value: float


class Effect(NamedTuple):
    """The main effect of an axis.

    Attributes:
        axis: its columns, joined by ", "; those that only vary together are one axis.
        values: label of a value -> its effect: the figure over the mean of all values of the axis.
    """

    axis: str
    values: dict[str, Interval]


def main_effects(points: Sequence[Point], columns: Sequence[str]) -> list[Effect]:
    """Returns the main effect of each axis that varies.

    For each combination of the other axes that has all values of this one, with a seed, the figure less the mean over
    the values; then the mean over these combinations, and the interval over seeds.

    Args:
        points: the figures of the members, at most one for each combination and seed.
        columns: the columns that vary.

    Returns:
        The effects; one without values where no combination has all values of the axis.
    """
    axes = _axes(points, columns)
    return [Effect(", ".join(axis), _effect(points, axis, [c for c in columns if c not in axis])) for axis in axes]


def label_of(axes: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Returns the values of some columns as one label."""
    return ", ".join(str(axes[column]) for column in columns)


def _axes(points: Sequence[Point], columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the columns that vary, those together that tell each other's values."""
    kept: list[list[str]] = []
    for column in columns:
        if len({_key(point.axes, [column]) for point in points}) < 2:
            continue
        for axis in kept:
            both = {_key(point.axes, [axis[0], column]) for point in points}
            if (
                len(both)
                == len({_key(p.axes, [column]) for p in points})
                == len({_key(p.axes, axis[:1]) for p in points})
            ):
                axis.append(column)
                break
        else:
            kept.append([column])
    return [tuple(axis) for axis in kept]


def _key(axes: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Returns values of columns as a key; a value may be a list."""
    return json.dumps([axes.get(column) for column in columns], sort_keys=True)


def _effect(points: Sequence[Point], axis: Sequence[str], others: Sequence[str]) -> dict[str, Interval]:
    labels = dict.fromkeys(label_of(point.axes, axis) for point in points)
    cells: dict[tuple[int, str], dict[str, float]] = defaultdict(dict)
    for point in points:
        cells[point.seed, _key(point.axes, others)][label_of(point.axes, axis)] = point.value
    of_seeds: dict[int, list[np.ndarray]] = defaultdict(list)
    for (seed, _), cell in cells.items():
        if len(cell) == len(labels):
            values = np.array([cell[label] for label in labels])
            of_seeds[seed].append(values - values.mean())
    if not of_seeds:
        return {}
    effects = np.array([np.mean(of_seed, axis=0) for of_seed in of_seeds.values()])  # [seeds, values]
    return {label: over_seeds(effects[:, place].tolist()) for place, label in enumerate(labels)}
