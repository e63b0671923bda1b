"""Stochastic specialization: frequencies, agreement between hosts, and the same draws after a resume."""

import numpy as np
import pytest

from sail_jax.data.sampler import Sampler
from sail_jax.errors import SailError


def test_frequencies_follow_the_weights():
    sampler = Sampler([1.0, 3.0, 0.0, 6.0], seed=0)
    drawn = np.bincount([sampler.dataset(step) for step in range(20_000)], minlength=4)
    np.testing.assert_allclose(drawn / 20_000, [0.1, 0.3, 0.0, 0.6], atol=0.015)


def test_hosts_agree_and_order_of_asking_does_not_matter():
    steps = [9_000, 3, 4_095, 4_096, 0, 12_345]
    first, second = Sampler([1, 2, 3], 7), Sampler([10, 20, 30], 7)
    assert [first.dataset(s) for s in steps] == [second.dataset(s) for s in reversed(steps)][::-1]


def test_seeds_differ():
    first, second = Sampler([1, 1], 0), Sampler([1, 1], 1)
    assert [first.dataset(s) for s in range(50)] != [second.dataset(s) for s in range(50)]


@pytest.mark.parametrize("draw", [0, 1, 4_095, 4_096, 10_000])
def test_counts_are_those_of_the_draws_before(draw):
    sampler = Sampler([2, 1], 3)
    expected = np.bincount([sampler.dataset(d) for d in range(draw)], minlength=2)
    np.testing.assert_array_equal(Sampler([2, 1], 3).counts(draw), expected)


@pytest.mark.parametrize("weights", [[0, 0], [1, -1], [float("nan"), 1], []])
def test_bad_weights(weights):
    with pytest.raises(SailError, match="weight"):
        Sampler(weights, 0)
