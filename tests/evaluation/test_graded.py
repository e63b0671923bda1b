"""Spearman's rho and graded nDCG within a query, against scipy and scikit-learn."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import ndcg_score

from sail_jax.evaluation.metrics.graded import graded_metrics


def judged(seed):
    """Draws the judgements of 30 queries: 2 to 12 items, five grades and few cosines, so that both have ties."""
    rng = np.random.default_rng(seed)
    queries = np.repeat(np.arange(30) * 3, rng.integers(2, 13, 30))
    cosines = np.round(rng.uniform(-1, 1, len(queries)), 1).astype(np.float32)
    return queries, rng.integers(0, 5, len(queries)) / 4, cosines


@pytest.mark.parametrize("seed", [0, 1])
def test_figures_equal_scipy_and_scikit_learn(seed):
    queries, grades, cosines = judged(seed)
    grades[queries == 6] = 0.5
    of_query = [(grades[queries == q], cosines[queries == q]) for q in np.unique(queries)]
    counted = [(g, c) for g, c in of_query if len(set(g)) > 1]
    rho = [spearmanr(g, c).statistic for g, c in counted]
    figures = graded_metrics(queries, grades, cosines, (1, 3, 10, 50))
    assert set(figures) == {"spearman", "ndcg", "ndcg@1", "ndcg@3", "ndcg@10", "queries"}
    assert figures["queries"] == len(counted) < 30
    assert figures["spearman"] == pytest.approx(np.mean(np.nan_to_num(rho)))
    for name, k in (("ndcg", None), ("ndcg@1", 1), ("ndcg@3", 3), ("ndcg@10", 10)):
        expected = np.mean([ndcg_score([g], [c], k=k) for g, c in counted])
        assert figures[name] == pytest.approx(expected, abs=1e-12), name


def test_a_perfect_order_and_equal_cosines():
    queries, grades = np.array([0, 0, 0]), np.array([0.0, 1.0, 0.5])
    assert graded_metrics(queries, grades, grades, (1,)) == {"spearman": 1, "ndcg": 1, "ndcg@1": 1, "queries": 1}
    assert graded_metrics(queries, grades, -grades, ())["spearman"] == -1
    same = graded_metrics(queries, grades, np.ones(3), (1,))
    assert (same["spearman"], same["ndcg@1"]) == (0, pytest.approx(0.5))


def test_without_two_different_grades_there_are_no_figures():
    assert graded_metrics(np.array([0, 0, 1]), np.array([1, 1, 0.5]), np.ones(3), (1,)) == {}
    assert graded_metrics(np.zeros(0, int), np.zeros(0), np.zeros(0), (1,)) == {}
