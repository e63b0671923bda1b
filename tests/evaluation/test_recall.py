"""Search and recall against plain numpy."""

import numpy as np
import pytest

from sail_jax.evaluation.metrics.recall import recall_at_k
from sail_jax.evaluation.tfidf import tfidf_top_k
from sail_jax.vectors.top_k import top_k


def plain_top_k(queries, corpus, k, exclude):
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (queries, corpus)]
    scores = unit[0] @ unit[1].T
    scores[:, ~corpus.any(axis=1)] = -np.inf
    scores[np.arange(len(queries))[exclude >= 0], exclude[exclude >= 0]] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, 1)


@pytest.mark.parametrize("block", [7, 64, 1000])
def test_blocked_search_equals_numpy(block):
    rng = np.random.default_rng(0)
    queries, corpus = rng.normal(size=(30, 16)).astype(np.float32), rng.normal(size=(200, 16)).astype(np.float32)
    corpus[[3, 150]] = 0
    exclude = np.where(rng.random(30) < 0.5, rng.integers(0, 200, 30), -1)
    queries[exclude >= 0] = corpus[exclude[exclude >= 0]] + 1e-3
    rows, cosines = top_k(queries, corpus, 20, block=block, exclude=exclude)
    expected_rows, expected_cosines = plain_top_k(queries, corpus, 20, exclude)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(cosines, expected_cosines, atol=1e-6)
    assert not np.any(rows == exclude[:, None])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("block", [160, 640])
def test_many_blocks_of_which_ever_fewer_scores_are_among_the_best(block, ties):
    rng = np.random.default_rng(3)
    corpus = rng.normal(size=(6400, 8)).astype(np.float32)
    if ties:  # one of 60 rows, so that equal scores stand in all blocks
        corpus = corpus[rng.integers(0, 60, len(corpus))]
    queries = rng.normal(size=(12, 8)).astype(np.float32)
    rows, _ = top_k(queries, corpus, 24, block=block)
    np.testing.assert_array_equal(rows, plain_top_k(queries, corpus, 24, np.full(12, -1))[0])


def test_more_results_than_rows():
    rows, cosines = top_k(np.ones((2, 4), np.float32), np.eye(3, 4, dtype=np.float32), 5, block=2)
    np.testing.assert_array_equal(rows, [[0, 1, 2, -1, -1]] * 2)
    assert np.all(np.isneginf(cosines[:, 3:]))


def test_nothing_is_found_in_an_empty_corpus():
    rows, cosines = top_k(np.ones((2, 4), np.float32), np.zeros((0, 4), np.float32), 3, block=2)
    np.testing.assert_array_equal(rows, np.full((2, 3), -1))
    assert np.all(np.isneginf(cosines))


def test_many_queries_go_in_blocks():
    rng = np.random.default_rng(1)
    queries, corpus = rng.normal(size=(2500, 4)).astype(np.float32), rng.normal(size=(50, 4)).astype(np.float32)
    rows, _ = top_k(queries, corpus, 3, block=20)
    np.testing.assert_array_equal(rows, plain_top_k(queries, corpus, 3, np.full(2500, -1))[0])


def test_recall_equals_a_plain_count():
    rng = np.random.default_rng(2)
    rows = np.stack([rng.permutation(100)[:50] for _ in range(20)])
    relevant = [rng.choice(100, size=rng.integers(1, 9), replace=False) for _ in range(20)]
    measured = recall_at_k(rows, relevant, (1, 10, 50))
    for k in (1, 10, 50):
        expected = np.mean([len(set(r[:k]) & set(w)) / len(w) for r, w in zip(rows, relevant, strict=True)])
        assert measured[f"recall@{k}"] == pytest.approx(expected)


def test_missing_results_are_no_hits():
    assert recall_at_k(np.array([[-1, -1]]), [np.array([0])], (2,)) == {"recall@2": 0.0}


def test_tfidf_prefers_shared_rare_words_and_finds_nothing_without_a_shared_word():
    corpus = ["red car", "red bus", "red bicycle race"]
    rows, cosines = tfidf_top_k(["bus", "bicycle", "boat"], corpus, 2, exclude=np.array([-1, -1, -1]))
    np.testing.assert_array_equal(rows, [[1, -1], [2, -1], [-1, -1]])
    assert np.isneginf(cosines[2]).all()
    rows, _ = tfidf_top_k(corpus, corpus, 2, exclude=np.arange(3))
    assert all(row not in found for row, found in enumerate(rows))
