"""The floor of recall and accuracy, against random rankings."""

import numpy as np
import pytest

from sail_jax.evaluation.chance import chance_results
from sail_jax.evaluation.classification import accuracy_at_k
from sail_jax.evaluation.metrics.chance import accuracy_by_chance, recall_by_chance
from sail_jax.evaluation.metrics.recall import recall_at_k
from sail_jax.evaluation.suite import TaskResult
from sail_jax.patterns import Pattern

DRAWS = 20_000


def test_expected_figures_are_the_mean_of_random_rankings():
    """Two queries: one may find any of its 3 relevant rows of 12, the other 1 of 2 among the 9 that have a vector."""
    rng = np.random.default_rng(0)
    of_first = rng.permuted(np.tile(np.arange(12), (DRAWS, 1)), axis=1)
    of_second = np.concatenate([rng.permuted(np.tile(np.arange(9), (DRAWS, 1)), axis=1), np.full((DRAWS, 3), -1)], 1)
    rows = np.concatenate([of_first, of_second])
    relevant = [np.array([0, 5, 11])] * DRAWS + [np.array([2, 10])] * DRAWS
    candidates, findable = np.array([12, 9]), np.array([3, 1])
    expected = recall_by_chance(candidates, findable, np.array([3, 2]), (1, 5, 12))
    assert expected == pytest.approx(recall_at_k(rows, relevant, (1, 5, 12)), abs=0.01)
    assert expected["recall@12"] == pytest.approx((1 + 0.5) / 2)
    assert accuracy_by_chance(candidates, findable, (1, 5)) == pytest.approx(accuracy_at_k(rows, relevant), abs=0.01)


def test_a_query_without_a_vector_finds_nothing():
    none = np.array([0])
    assert recall_by_chance(none, none, np.array([4]), (3,)) == {"recall@3": 0}
    assert accuracy_by_chance(none, none, (3,)) == {"accuracy@3": 0}


def test_each_task_and_view_has_one_result():
    def result(view, chance=None, **changes):
        own = view == Pattern("VT", "VT")
        values = {"queries": 20, "skipped": 4, "corpus": 136, "width": 32, "own_view": own, "chance": chance, **changes}
        return TaskResult("trained", "i2i", view, own, {"recall@1": 0.5}, **values)

    floor = {"recall@1": 0.25}
    own, further, cell = Pattern("VT", "VT"), Pattern("V", "V"), Pattern("V", "T")
    models = [result(own, floor), result(own, floor, full=False), result(further, floor), result(cell)] * 2
    made = chance_results(models)
    assert [(r.model, r.view, r.main, r.metrics, r.queries) for r in made] == [
        ("chance", own, True, floor, 20),
        ("chance", further, False, floor, 20),
    ]
