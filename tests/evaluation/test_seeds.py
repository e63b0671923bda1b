"""Statistics over seeds, against scipy."""

import numpy as np
import pytest
from scipy import stats

from sail_jax.evaluation.metrics.seeds import over_seeds, paired, standard_error, t_needed, winner


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_mean_and_interval_are_those_of_scipy(n):
    values = np.random.default_rng(n).normal(0.3, 0.1, n).tolist()
    found = over_seeds([*values, np.nan])
    test = stats.ttest_1samp(values, 0)
    expected = (np.mean(values), stats.sem(values), *test.confidence_interval(0.95), n)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert standard_error(values) == found.standard_error and t_needed(n) == pytest.approx(stats.t.ppf(0.975, n - 1))


@pytest.mark.parametrize(("shift", "verdict"), [(0.2, "better"), (-0.2, "worse"), (0.01, "undecided")])
def test_differences_are_those_of_the_paired_t_test(shift, verdict):
    rng = np.random.default_rng(0)
    base = {seed: float(value) for seed, value in enumerate(rng.normal(0.5, 0.3, 5))}
    values = {seed: value + shift + 0.02 * rng.normal() for seed, value in base.items()} | {7: 0.9}  # one without pair
    found = paired(values, base)
    test = stats.ttest_rel([values[seed] for seed in base], list(base.values()))
    assert found.t == pytest.approx(test.statistic) and found.t_needed == pytest.approx(2.7764, abs=1e-4)
    np.testing.assert_allclose(found.interval[2:4], test.confidence_interval(0.95))
    assert (found.verdict, found.interval.n) == (verdict, 5)
    assert (abs(found.t) > found.t_needed) == (test.pvalue < 0.05) == (verdict != "undecided")
    lower = paired(values, base, lower_is_better=True).verdict
    assert lower == {"better": "worse", "worse": "better"}.get(verdict, verdict)


def test_one_seed_decides_nothing():
    found = paired({0: 0.9, 1: 0.5}, {0: 0.1, 2: 0.1})
    assert (found.interval.n, found.interval.mean, found.verdict) == (1, pytest.approx(0.8), "undecided")
    assert found.interval.low == -np.inf and found.t_needed == np.inf and np.isnan(found.interval.standard_error)
    none = paired({}, {0: 1.0})
    assert np.isnan(none.interval.mean) and (none.t, none.verdict) == (0.0, "undecided")


def test_differences_that_are_all_alike_decide_nothing():
    assert paired({0: 0.75, 1: 0.5}, {0: 0.5, 1: 0.25})[1:] == (0.0, pytest.approx(12.706, abs=1e-3), "undecided")
    assert 0.3 - 0.2 != 0.2 - 0.1  # equal but for rounding
    assert paired({0: 0.3, 1: 0.2, 2: 0.3}, {0: 0.2, 1: 0.1, 2: 0.2}).verdict == "undecided"
    assert paired({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5})[1::2] == (0.0, "undecided")
    assert paired({0: 0.5, 1: 0.51, 2: 0.5}, {0: 0.1, 1: 0.1, 2: 0.1}).verdict == "better"
    assert winner({"low": {0: 0.1, 1: 0.1, 2: 0.1}, "high": {0: 0.2, 1: 0.2, 2: 0.2}}) is None


def test_a_winner_is_better_than_each_of_the_others():
    low, middle, noisy = {0: 0.1, 1: 0.11, 2: 0.1}, {0: 0.2, 1: 0.22, 2: 0.21}, {0: 0.1, 1: 0.3, 2: 0.15}
    assert winner({"low": low, "middle": middle}) == "middle"
    assert winner({"low": low, "middle": middle}, lower_is_better=True) == "low"
    assert winner({"low": low, "middle": middle, "noisy": noisy}) is None
    assert winner({"low": low}) is None and winner({}) is None
