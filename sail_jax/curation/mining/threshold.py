"""Finds the threshold that best separates positives from negatives, lambda* = argmax_t F1(t).

A pair is predicted to be positive if its score is >= t. tp(t) is the number of the P positives predicted so, and fp(t)
that of the negatives.
Precision = tp / (tp + fp), recall = tp / P, F1 = 2 tp / (tp + fp + P).

Source: arXiv 2510.12709, sec. 3.1.2.
"""

import dataclasses
from typing import Protocol

import numpy as np

from sail_jax.vectors.score_blocks import BIN, BINS, bin_of

CURVE_POINTS = 512


@dataclasses.dataclass(frozen=True)
class Curve:
    """Counts of true and false positives at some thresholds.

    Attributes:
        thresholds: [T] float64, ascending.
        true_positives: [T] int64 number of positives with a score of at least the threshold.
        false_positives: [T] int64 number of negatives with such a score.
        positives: number of all positives.
        negatives: number of all negatives.
    """

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    positives: int
    negatives: int

    @property
    def precision(self) -> np.ndarray:
        """Returns the precision, [T] float64; 1 if no pair is predicted to be positive."""
        predicted = self.true_positives + self.false_positives
        return np.where(predicted, self.true_positives / np.maximum(predicted, 1), 1.0)

    @property
    def recall(self) -> np.ndarray:
        """Returns the recall, [T] float64."""
        return self.true_positives / self.positives

    @property
    def f1(self) -> np.ndarray:
        """Returns F1, [T] float64."""
        return 2 * self.true_positives / (self.true_positives + self.false_positives + self.positives)


@dataclasses.dataclass(frozen=True)
class Threshold:
    """lambda* with its figures.

    Attributes:
        value: lambda*.
        f1: F1 at lambda*.
        precision: precision at lambda*.
        recall: recall at lambda*.
        false_negatives: number of negatives with a score >= lambda*, which are assumed to be unlisted positives.
        resolution: 0 if lambda* is exact, else the width of the bins: lambda* is then the bin edge with the highest F1.
            This F1 misses the maximum by the scores of one bin at most, but where F1 is flat, the exact threshold may
            be a few bins away.
        curve: counts over the range of the scores, including lambda*.
    """

    value: float
    f1: float
    precision: float
    recall: float
    false_negatives: int
    resolution: float
    curve: Curve


class Scores(Protocol):
    """Counts the scores of positives and negatives above thresholds."""

    resolution: float

    def candidates(self) -> np.ndarray:
        """Returns thresholds, ascending, one of which has the highest F1."""

    def at(self, thresholds: np.ndarray) -> Curve:
        """Returns the counts at some thresholds, ascending multiples of `BIN` or candidates."""


class SortedScores:
    """Counts scores that are all held in memory.

    Args:
        positives: [P] float32.
        negatives: [M] float32.
    """

    resolution = 0.0

    def __init__(self, positives: np.ndarray, negatives: np.ndarray) -> None:
        self._positives, self._negatives = np.sort(positives), np.sort(negatives)

    def candidates(self) -> np.ndarray:
        """Returns the distinct scores of positives.

        Raising a threshold up to the next of them loses no positive, and may drop negatives.
        """
        return np.unique(self._positives).astype(np.float64)

    def at(self, thresholds: np.ndarray) -> Curve:
        """Returns the counts at any thresholds."""
        wanted = np.asarray(thresholds, np.float32)
        counts = [len(scores) - np.searchsorted(scores, wanted) for scores in (self._positives, self._negatives)]
        return Curve(thresholds, *counts, len(self._positives), len(self._negatives))


class BinnedScores:
    """Counts scores by bin.

    Args:
        positives: [BINS] int64; bin b counts the scores s with b = `bin_of`(s).
        negatives: [BINS] int64.
    """

    resolution = BIN

    def __init__(self, positives: np.ndarray, negatives: np.ndarray) -> None:
        self._tails = [np.cumsum(counts[::-1])[::-1] for counts in (positives, negatives)]

    def candidates(self) -> np.ndarray:
        """Returns the edges of all bins."""
        return np.arange(BINS) * BIN - 1.0

    def at(self, thresholds: np.ndarray) -> Curve:
        """Returns the counts at edges of bins."""
        bins = bin_of(np.asarray(thresholds, np.float32))
        return Curve(thresholds, *(tail[bins] for tail in self._tails), *(int(tail[0]) for tail in self._tails))


def find_threshold(scores: Scores) -> Threshold:
    """Returns lambda*; of several thresholds with the highest F1, the highest."""
    everywhere = scores.at(scores.candidates())
    best = len(everywhere.f1) - 1 - int(np.argmax(everywhere.f1[::-1]))
    value = everywhere.thresholds[best]
    return Threshold(
        value=float(value),
        f1=float(everywhere.f1[best]),
        precision=float(everywhere.precision[best]),
        recall=float(everywhere.recall[best]),
        false_negatives=int(everywhere.false_positives[best]),
        resolution=scores.resolution,
        curve=scores.at(_curve_thresholds(scores, value)),
    )


def _curve_thresholds(scores: Scores, value: float) -> np.ndarray:
    """Returns evenly spaced edges of bins over the range of the scores, and lambda*."""
    edges = np.arange(BINS) * BIN - 1.0
    counts = scores.at(edges)
    seen = counts.true_positives + counts.false_positives
    first, last = np.flatnonzero(seen == seen[0])[-1], np.flatnonzero(seen)[-1] + 1
    step = -(-(last - first) // (CURVE_POINTS - 2))
    grid = np.minimum(np.arange(first, last + step, step)[: CURVE_POINTS - 1], BINS - 1) * BIN - 1.0
    return np.union1d(grid, [value])
