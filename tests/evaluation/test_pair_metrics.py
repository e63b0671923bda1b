"""Figures on pairs and on two spaces, against scikit-learn, scipy, faiss and counts by hand; ties included."""

import faiss
import numpy as np
import pytest
from scipy.stats import kendalltau
from sklearn.metrics import mutual_info_score

from sail_jax.evaluation.metrics.auc import auc
from sail_jax.evaluation.metrics.bijective import bijective_alignment
from sail_jax.evaluation.metrics.clustering import clustering_nmi
from sail_jax.evaluation.metrics.rank_agreement import kendall, rank_agreement
from sail_jax.evaluation.metrics.separability import separability
from sail_jax.evaluation.pairs import pair_cosines, sample_negatives, sample_rows
from sail_jax.vectors.top_k import top_k
from sail_jax.vectors.unit import unit_rows


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def plain_kendall(left, right):
    signs = np.sign(left[:, None] - left) * np.sign(right[:, None] - right)
    concordant, discordant = (signs > 0).sum(), (signs < 0).sum()
    return (concordant - discordant) / (concordant + discordant)


@pytest.mark.parametrize("levels", [3, 10, 10**9])
def test_kendall_counts_ties_as_neither(rng, levels):
    left, right = rng.integers(0, levels, (2, 80)).astype(np.float32)
    right[:40] = left[:40]
    assert kendall(left, right) == pytest.approx(plain_kendall(left, right), abs=1e-12)
    if levels > 1000:
        assert kendall(left, right) == pytest.approx(kendalltau(left, right).statistic)


def test_kendall_of_only_ties_is_undefined():
    assert np.isnan(kendall(np.zeros(5), np.arange(5.0)))


def test_rank_agreement_equals_a_plain_count(rng):
    left = rng.normal(size=(30, 6)).astype(np.float32)
    right = left + rng.normal(size=(30, 6)).astype(np.float32)
    left[10:14] = left[3]  # equal vectors, so equal cosines
    taus, shared = [], []
    anchors = np.array([0, 3, 7, 29])
    for anchor in anchors:
        scores = [np.delete((z := unit_rows(s).astype(float)) @ z[anchor], anchor).round(6) for s in (left, right)]
        taus.append(plain_kendall(*scores))
        shared.append(len(set.intersection(*(set(np.argsort(-s, kind="stable")[:5]) for s in scores))) / 5)
    figures = rank_agreement(left, right, anchors, (5,))
    assert figures["kendall"] == pytest.approx(np.mean(taus), abs=1e-12)
    assert figures["top@5"] == pytest.approx(np.mean(shared))


def test_the_same_space_agrees_with_itself(rng):
    z = rng.normal(size=(20, 4)).astype(np.float32)
    assert rank_agreement(z, 3 * z, np.arange(20), (1, 10)) == {"kendall": 1.0, "top@1": 1.0, "top@10": 1.0}


def test_auc_counts_ties_half(rng):
    positive, negative = rng.integers(2, 9, 60) / 8, rng.integers(0, 7, 90) / 8
    wins = (positive[:, None] > negative).mean() + (positive[:, None] == negative).mean() / 2
    assert auc(positive, negative) == pytest.approx(wins)


def test_separability_equals_its_definition(rng):
    positive, negative = rng.normal(0.6, 0.1, 4000), rng.normal(0.2, 0.2, 9000)
    figures, histograms = separability(positive, negative)
    spread = np.sqrt((positive.var() + negative.var()) / 2)
    assert figures["gap"] == pytest.approx(positive.mean() - negative.mean())
    assert figures["dprime"] == pytest.approx((positive.mean() - negative.mean()) / spread)
    # The overlap of the two normal densities, integrated.
    x = np.linspace(-1, 1.5, 20001)
    densities = [np.exp(-(((x - m) / s) ** 2) / 2) / s / np.sqrt(2 * np.pi) for m, s in ((0.6, 0.1), (0.2, 0.2))]
    assert figures["overlap"] == pytest.approx(np.minimum(*densities).sum() * (x[1] - x[0]), abs=0.02)
    assert (
        len(histograms["edges"]) == 51 and sum(histograms["positive"]) == 4000 and sum(histograms["negative"]) == 9000
    )


def test_separability_of_separate_and_of_equal_distributions():
    assert separability(np.ones(3), np.zeros(3))[0]["overlap"] == 0
    assert separability(np.ones(3), np.zeros(3))[0]["dprime"] == np.inf
    alike = separability(np.ones(3), np.ones(5))[0]
    assert (alike["overlap"], alike["dprime"], alike["gap"]) == (1, 0, 0)


def test_nmi_of_two_well_separated_groups_is_that_of_their_labels(rng):
    """If clusters are well separated, the NMI equals that of the true labels, computed from entropies."""
    centres = np.eye(2, 8)
    left, right = rng.integers(0, 2, 300), (rng.random(300) < 0.7).astype(int)
    right[:150] = left[:150]
    sides = [3 * centres[labels] + rng.normal(0, 0.02, (300, 8)) for labels in (left, right)]
    entropy = [-sum(p * np.log(p) for p in np.bincount(labels) / 300) for labels in (left, right)]
    expected = 2 * mutual_info_score(left, right) / sum(entropy)
    measured = clustering_nmi(*(side.astype(np.float32) for side in sides), clusters=2, seed=0)
    assert measured == pytest.approx(expected, abs=1e-9)


def test_nmi_of_few_and_of_equal_pairs(rng, capfd):
    z = rng.normal(size=(3, 4)).astype(np.float32)
    assert clustering_nmi(z, z, clusters=64, seed=0) == pytest.approx(1)
    assert clustering_nmi(np.ones((4, 2)), np.ones((4, 2)), clusters=1, seed=0) == 1
    assert capfd.readouterr() == ("", "")  # no warning of faiss about few points


def test_nmi_is_the_mean_of_several_k_means_and_depends_less_on_the_seed(rng):
    queries = rng.normal(size=(300, 8)).astype(np.float32)
    targets = queries + rng.normal(0, 0.7, (300, 8)).astype(np.float32)
    of_seed = [clustering_nmi(queries, targets, clusters=12, seed=seed, runs=1) for seed in range(16)]
    means = [clustering_nmi(queries, targets, clusters=12, seed=seed) for seed in range(0, 16, 4)]
    assert means == pytest.approx(np.mean(np.reshape(of_seed, (4, 4)), axis=1))
    assert np.ptp(means) < 0.6 * np.ptp(of_seed)


@pytest.mark.parametrize("block", [3, 1000])
def test_bijective_alignment_equals_two_searches_of_faiss(rng, block):
    corpus = rng.normal(size=(50, 8)).astype(np.float32)
    queries = corpus[:20] + rng.normal(size=(20, 8)).astype(np.float32)
    queries[[4, 9]] = 0
    own = np.full(20, -1)
    nearest = top_k(queries, corpus, 1, block=block, exclude=own)[0][:, 0]
    there, back = (faiss.IndexFlatIP(8) for _ in range(2))
    there.add(unit_rows(corpus))
    back.add(unit_rows(queries))
    targets = there.search(unit_rows(queries), 1)[1][:, 0]
    returned = back.search(unit_rows(corpus[targets]), 1)[1][:, 0]
    counts = queries.any(axis=1)
    expected = (returned == np.arange(20))[counts].mean()
    assert 0 < expected < 1
    assert bijective_alignment(queries, corpus, nearest, own, block=block) == pytest.approx(expected)


def test_bijective_alignment_among_items_never_finds_the_item_itself():
    z = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [0.6, 0.4]], np.float32)
    own = np.arange(5)
    nearest = top_k(z, z, 1, block=9, exclude=own)[0][:, 0]
    np.testing.assert_array_equal(nearest, [1, 0, 3, 2, 1])
    assert bijective_alignment(z, z, nearest, own, block=9) == pytest.approx(4 / 5)


def test_bijective_alignment_without_results_or_queries():
    z = np.eye(2, dtype=np.float32)
    none = np.full(2, -1)
    assert bijective_alignment(z, z, none, none, block=9) == 0
    assert np.isnan(bijective_alignment(0 * z, z, none, none, block=9))


@pytest.mark.parametrize("count", [60, 400])
def test_negatives_are_pairs_that_are_not_known_each_once(rng, count):
    present = np.arange(20) % 5 > 0, np.arange(40) % 7 > 0
    known = np.stack([rng.integers(0, 20, 100), rng.integers(-1, 40, 100)], axis=1)
    known[known[:, 1] < 0, 1] = 0
    drawn = sample_negatives(np.random.default_rng(1), present, known, count)
    np.testing.assert_array_equal(drawn, np.unique(drawn, axis=0))
    assert not {*map(tuple, drawn)} & {*map(tuple, known)}
    assert present[0][drawn[:, 0]].all() and present[1][drawn[:, 1]].all()
    possible = {(q, n) for q in np.flatnonzero(present[0]) for n in np.flatnonzero(present[1])} - {*map(tuple, known)}
    assert len(drawn) == min(count, len(possible))
    again = sample_negatives(np.random.default_rng(1), present, known, count)
    np.testing.assert_array_equal(drawn, again)


def test_negatives_are_drawn_uniformly():
    present = np.ones(30, bool), np.ones(300, bool)
    counts = np.zeros(30)
    for seed in range(20):
        drawn = sample_negatives(np.random.default_rng(seed), present, np.zeros((0, 2), int), 500)
        counts += np.bincount(drawn[:, 0], minlength=30)
    assert counts.sum() == 10_000 and np.all(np.abs(counts - 333) < 90)  # five deviations


def test_pair_cosines(rng, monkeypatch):
    monkeypatch.setattr("sail_jax.evaluation.pairs._BLOCK", 7)
    queries, corpus = rng.normal(size=(5, 3)), rng.normal(size=(9, 3))
    corpus[2] = 0
    pairs = np.stack([rng.integers(0, 5, 30), rng.integers(0, 9, 30)], axis=1)
    expected = (unit_rows(queries) @ unit_rows(corpus).T)[pairs[:, 0], pairs[:, 1]]
    np.testing.assert_allclose(pair_cosines(queries, corpus, pairs), expected, atol=1e-6)
    assert sample_rows(rng, pairs, 99) is pairs and len(sample_rows(rng, pairs, 4)) == 4
