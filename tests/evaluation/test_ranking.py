"""nDCG, MRR and MAP against trec_eval."""

import numpy as np
import pytest
import pytrec_eval

from sail_jax.evaluation.metrics.ranking import ranking_metrics

KS = (1, 3, 10)


def random_results(seed):
    """Draws results of 40 queries, some with more relevant rows than results, some with too few results."""
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.permutation(60)[:10] for _ in range(40)])
    rows[5, 4:] = -1
    rows[6] = -1
    relevant = [rng.choice(60, size=rng.integers(1, 25), replace=False) for _ in range(40)]
    return rows, relevant


def of_trec_eval(rows, relevant):
    truth = {f"q{i}": {f"d{row}": 1 for row in wanted} for i, wanted in enumerate(relevant)}
    names = {f"ndcg_cut.{k}" for k in KS} | {f"map_cut.{k}" for k in KS} | {"recip_rank"}
    evaluator = pytrec_eval.RelevanceEvaluator(truth, names)
    means = {}
    for k in KS:
        run = {
            f"q{i}": {f"d{row}": float(-rank) for rank, row in enumerate(found[:k]) if row >= 0}
            for i, found in enumerate(rows)
        }
        per_query = evaluator.evaluate(run)
        for name, theirs in (("ndcg", f"ndcg_cut_{k}"), ("map", f"map_cut_{k}"), ("mrr", "recip_rank")):
            means[f"{name}@{k}"] = sum(figures[theirs] for figures in per_query.values()) / len(rows)
    return means


@pytest.mark.parametrize("seed", [0, 1])
def test_ranking_metrics_equal_trec_eval(seed):
    rows, relevant = random_results(seed)
    measured, expected = ranking_metrics(rows, relevant, KS), of_trec_eval(rows, relevant)
    assert measured.keys() == expected.keys()
    for name, value in expected.items():
        assert measured[name] == pytest.approx(value, abs=1e-12), name


def test_a_perfect_ranking_scores_one():
    figures = ranking_metrics(np.array([[4, 2, 7]]), [np.array([2, 4])], (2, 3))
    assert set(figures.values()) == {1.0}
