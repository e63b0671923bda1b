"""Gives the verdict on each claim: confirmed, contradicted or undecided, from the paired test alone."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from experiments.reproduce.claim import Claim
from sail_jax.errors import SailError
from sail_jax.evaluation.metrics.seeds import BETTER, CONFIDENCE, WORSE, Difference, paired
from sail_jax.evaluation.report.seed_groups import SeedGroup
from sail_jax.evaluation.report.tables import lower_is_better

CONFIRMED, CONTRADICTED, UNDECIDED, NOT_RUN = "confirmed", "contradicted", "undecided", "not run"
DOES_NOT_APPLY = "does not apply"
_VERDICTS = {BETTER: CONFIRMED, WORSE: CONTRADICTED}


@dataclasses.dataclass(frozen=True)
class Row:
    """What was found of a claim.

    Attributes:
        claim: the claim.
        figure: the figure that decides.
        verdict: one of the words above.
        reason: why it was not run or does not apply; empty if there is a verdict.
        groups: the arm with the ingredient and the one without; empty without a verdict.
        difference: of the figure, paired by seed; None without a verdict.
        p: of the paired t test; 1 without a verdict.
        after_holm: whether the verdict stands when all tests of the page together may err in one of twenty cases.
    """

    claim: Claim
    figure: str
    verdict: str
    reason: str = ""
    groups: tuple[SeedGroup, ...] = ()
    difference: Difference | None = None
    p: float = 1.0
    after_holm: bool = False


def judge(claim: Claim, figure: str, treatment: SeedGroup, control: SeedGroup, seeds: int) -> Row:
    """Returns the verdict on a claim.

    Args:
        claim: the claim.
        figure: the figure that decides.
        treatment: the figures of the arm with the ingredient.
        control: those of the arm without it.
        seeds: how many there should be.
    """
    values, baseline = treatment.values(figure), control.values(figure)
    both = values.keys() & baseline.keys()
    if len(both) < seeds:
        return Row(claim, figure, NOT_RUN, f"only {len(both)} of {seeds} seeds have the figure {figure} in both arms")
    found = paired(values, baseline, lower_is_better=lower_is_better(figure.partition("/")[2]))
    p = float(2 * student.sf(abs(found.t), found.interval.n - 1))
    return Row(claim, figure, _VERDICTS.get(found.verdict, UNDECIDED), "", (treatment, control), found, p)


def with_holm(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows with Holm's correction for the number of claims that were tested.

    The smallest p must be below 5 % over the number of tests, the next below 5 % over one less, and so on up to the
    first that is not.
    """
    tested = sorted((row.p, place) for place, row in enumerate(rows) if row.difference is not None)
    stands: set[int] = set()
    for rank, (p, place) in enumerate(tested):
        if p > (1 - CONFIDENCE) / (len(tested) - rank):
            break
        stands.add(place)
    return [dataclasses.replace(row, after_holm=place in stands) for place, row in enumerate(rows)]


def count(rows: Sequence[Row]) -> dict[str, int]:
    """Returns {verdict: number of claims}, of the verdicts that occur."""
    kinds = (CONFIRMED, CONTRADICTED, UNDECIDED, NOT_RUN, DOES_NOT_APPLY)
    return {kind: n for kind in kinds if (n := sum(row.verdict == kind for row in rows))}


def plain(row: Row) -> dict[str, object]:
    """Returns a row for JSON: figures of every seed, difference, interval, verdict."""
    values: dict[str, object] = {
        "claim": row.claim.says,
        "reported": row.claim.reported,
        "figure": row.figure,
        "seeds": row.difference.interval.n if row.difference else 0,
        "verdict": row.verdict,
    }
    if row.difference is None:
        return values | {"reason": row.reason}
    found = row.difference
    return values | {
        "difference": found.interval.mean,
        "interval": [found.interval.low, found.interval.high],
        "t": found.t if np.isfinite(found.t) else None,
        "t_needed": found.t_needed,
        "p": row.p,
        "after_holm": row.after_holm,
        "arms": {group.name: _by_seed(group, row) for group in row.groups},
        "device_seconds": {group.name: group.device_seconds or 0.0 for group in row.groups},
    }


def _by_seed(group: SeedGroup, row: Row) -> dict[str, dict[int, float]]:
    """Returns {figure: {seed: value}} of an arm, of the figure that decides and of those that are shown."""
    found = {figure: group.values(figure) for figure in dict.fromkeys((row.figure, *row.claim.shown))}
    return {figure: values for figure, values in found.items() if values}


def from_plain(claim: Claim, values: Mapping[str, Any]) -> Row:
    """Returns the row of a claim that `plain` wrote, judged again.

    Raises:
        SailError: it has other arms than the claim.
    """
    names = (claim.treatment, claim.control)
    if set(values["arms"]) != set(names):
        raise SailError(f"its arms are {' and '.join(values['arms'])}, and those of {claim.name} {' and '.join(names)}")
    groups = (
        SeedGroup(name, _of_seeds(values["arms"][name]), device_seconds=values["device_seconds"][name])
        for name in names
    )
    return judge(claim, values["figure"], *groups, values["seeds"])


def _of_seeds(figures: Mapping[str, Mapping[str, float]]) -> dict[int, dict[str, float]]:
    """Returns {seed: {figure: value}} of {figure: {seed: value}}."""
    found: dict[int, dict[str, float]] = {}
    for figure, values in figures.items():
        for seed, value in values.items():
            found.setdefault(int(seed), {})[figure] = value
    return found
