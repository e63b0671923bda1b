"""Computes means, intervals and paired differences of a figure over the seeds of a run."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95
# Equal differences differ by less than this share of the figures, by rounding.
_ROUNDING = 1e-9
BETTER, WORSE, UNDECIDED = "better", "worse", "undecided"


class Interval(NamedTuple):
    """A mean over seeds with its 95 % interval, by Student's t.

    Attributes:
        mean: the mean; NaN without a value.
        standard_error: the standard error of the mean; NaN for fewer than two values.
        low: lower end; minus infinity for fewer than two values.
        high: upper end; infinity likewise.
        n: number of seeds.
    """

    mean: float
    standard_error: float
    low: float
    high: float
    n: int


class Difference(NamedTuple):
    """The difference of a figure to that of a baseline, paired by seed.

    Attributes:
        interval: of the differences.
        t: their mean over its standard error; 0 where they are all alike, or fewer than two.
        t_needed: the absolute value of t from which on the interval leaves out 0.
        verdict: "better" or "worse" if it leaves out 0, otherwise "undecided". Differences that are all alike are
            undecided: figures of few queries take few values, so that equal ones come by chance, and their spread,
            which the test compares with, is not known.
    """

    interval: Interval
    t: float
    t_needed: float
    verdict: str


def standard_error(values: Sequence[float]) -> float:
    """Returns the standard error of the mean; NaN for fewer than two values."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan


def t_needed(n: int) -> float:
    """Returns the two-sided critical value of Student's t for n values; infinity for fewer than two."""
    return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) if n > 1 else np.inf


def over_seeds(values: Sequence[float]) -> Interval:
    """Returns the mean of values with its interval; NaNs are no values."""
    present = [value for value in values if not np.isnan(value)]
    mean, n = float(np.mean(present)) if present else np.nan, len(present)
    error = standard_error(present)
    half = t_needed(n) * error if n > 1 else np.inf
    return Interval(mean, error, mean - half, mean + half, n)


def paired(values: Mapping[int, float], baseline: Mapping[int, float], *, lower_is_better: bool = False) -> Difference:
    """Returns the difference to a baseline, by the paired t test over the seeds that both have.

    Two runs of one seed start from the same parameters and draw the same batches, so that much of what a seed changes
    is in neither difference.

    Args:
        values: seed -> figure.
        baseline: seed -> figure of the baseline.
        lower_is_better: whether a smaller figure is the better one.
    """
    both = [(values[seed], baseline[seed]) for seed in values if seed in baseline]
    found = over_seeds([value - of_baseline for value, of_baseline in both])
    if not found.standard_error > _ROUNDING * np.nanmax(np.abs(both), initial=0):
        return Difference(found, 0.0, t_needed(found.n), UNDECIDED)
    verdict = UNDECIDED
    if found.low > 0 or found.high < 0:
        verdict = BETTER if (found.mean > 0) != lower_is_better else WORSE
    return Difference(found, found.mean / found.standard_error, t_needed(found.n), verdict)


def winner(groups: Mapping[str, Mapping[int, float]], *, lower_is_better: bool = False) -> str | None:
    """Returns the group that is better than every other one by `paired`; None if there is none.

    As all these tests have to pass, their number needs no correction.

    Args:
        groups: name -> seed -> figure.
        lower_is_better: whether a smaller figure is the better one.
    """
    for name, values in groups.items():
        others = [other for key, other in groups.items() if key != name]
        found = [paired(values, other, lower_is_better=lower_is_better).verdict for other in others]
        if found and set(found) == {BETTER}:
            return name
    return None
