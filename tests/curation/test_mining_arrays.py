"""Mining on arrays against plain numpy, and the blocked path against the exact one."""

import dataclasses

import numpy as np
import pytest

from sail_jax.config.curation import MiningConfig
from sail_jax.curation.mining.arrays import Miner, mine, pair_codes
from sail_jax.curation.mining.threshold import BIN, CURVE_POINTS
from sail_jax.errors import SailError
from sail_jax.vectors.score_blocks import ScoreBlocks, TargetBlocks

pytestmark = pytest.mark.slow

SMALL = MiningConfig(per_query=5, query_block=7, target_block=48, exact_scores=10**9)
BLOCKED = dataclasses.replace(SMALL, exact_scores=0)
SIZES = [(7, 48), (1024, 8192), (3, 33), (50, 100), (64, 704)]


def coarse_vectors(rng, rows):
    """Draws unit vectors whose cosines are multiples of 1/4, exact in float32, so that there are many ties."""
    z = np.zeros((rows, 12), np.float32)
    for row in z:
        row[rng.choice(12, 4, replace=False)] = rng.choice([-0.5, 0.5], 4)
    return z


def clustered(rng, rows, of=40, width=16, spread=0.25):
    centres = np.random.default_rng(99).normal(size=(of, width))
    topic = rng.integers(0, of, rows)
    z = centres[topic] + spread * rng.normal(size=(rows, width)) * np.sqrt(width)
    return (z * rng.uniform(0.5, 2, (rows, 1))).astype(np.float32), topic


def problem(kind="clustered", queries=90, targets=700):
    """Draws vectors with rows of zeros, positives, and excluded pairs, some of which repeat positives."""
    rng = np.random.default_rng(1)
    if kind == "coarse":
        q, t = coarse_vectors(rng, queries), coarse_vectors(rng, targets)
        positives = np.argwhere((q @ t.T >= 0.75) & (rng.random((queries, targets)) < 0.5))
    else:
        (q, of_query), (t, of_target) = clustered(rng, queries), clustered(rng, targets)
        positives = np.argwhere((of_query[:, None] == of_target) & (rng.random((queries, targets)) < 0.3))
    excluded = np.stack([rng.integers(0, queries, 900), rng.integers(0, targets, 900)], axis=1)
    excluded = np.concatenate([excluded, excluded[:50], positives[::9]])
    q[[4, 60]], t[[0, 123, targets - 1]] = 0, 0
    return q, t, rng.permutation(positives), excluded


def plain(queries, targets, positives, excluded, k):
    """Mines by the definition, pair by pair."""
    norm = [np.linalg.norm(z, axis=1) for z in (queries, targets)]
    label = {}
    listed, left_out = set(map(tuple, positives.tolist())), set(map(tuple, excluded.tolist()))
    scores = (queries / np.maximum(norm[0], 1e-9)[:, None]) @ (targets / np.maximum(norm[1], 1e-9)[:, None]).T
    for i, j in np.ndindex(*scores.shape):
        if norm[0][i] > 0 and norm[1][j] > 0 and ((i, j) in listed or (i, j) not in left_out):
            label[i, j] = (i, j) in listed
    values = np.array([scores[pair] for pair in label])
    labels = np.array(list(label.values()))
    best = (-1.0, -2.0)
    for t in np.unique(values):
        found = values >= t
        tp, fp = (found & labels).sum(), (found & ~labels).sum()
        best = max(best, (2 * tp / (tp + fp + labels.sum()), t))
    f1, threshold = best
    negatives = []
    for i in range(len(queries)):
        row = [
            (-scores[i, j], j) for j in range(len(targets)) if label.get((i, j)) is False and scores[i, j] < threshold
        ]
        negatives.append([j for _, j in sorted(row)[:k]])
    return threshold, f1, values, labels, negatives


def best_edge(queries, targets, positives, excluded):
    """Returns the edge of a bin with the highest F1, and that F1, from the matrix of scores."""
    with np.errstate(invalid="ignore"):
        unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (queries, targets)]
    scores = unit[0] @ unit[1].T
    kind = np.zeros(scores.shape, int)
    kind[tuple(excluded.T)], kind[tuple(positives.T)] = 2, 1
    sides = [np.sort(scores[(kind == which) & np.isfinite(scores)]) for which in (1, 0)]
    edges = np.arange(-(2**15), 2**15 + 1) / 2**15
    tp, fp = (len(side) - np.searchsorted(side, edges.astype(np.float32)) for side in sides)
    f1 = 2 * tp / (tp + fp + len(sides[0]))
    return edges[f1 == f1.max()].max(), f1.max()


def as_lists(mined):
    return [[j for j in row if j >= 0] for row in mined.rows.tolist()]


@pytest.mark.parametrize("kind", ["clustered", "coarse"])
def test_exact_path_equals_the_definition(kind):
    q, t, positives, excluded = problem(kind, targets=200)
    mined = mine(q, t, positives, excluded, SMALL)
    threshold, f1, values, labels, negatives = plain(q, t, positives, excluded, SMALL.per_query)
    found, true = mined.threshold, values >= threshold
    assert found.value == pytest.approx(threshold, abs=1e-6 if kind == "clustered" else 0)
    assert found.f1 == pytest.approx(f1)
    assert found.precision == pytest.approx(labels[true].mean())
    assert found.recall == pytest.approx(true[labels].mean())
    assert found.false_negatives == (true & ~labels).sum() > 0
    assert found.resolution == 0
    assert as_lists(mined) == negatives
    assert np.isneginf(mined.scores[mined.rows < 0]).all()
    curve = found.curve
    assert (curve.positives, curve.negatives) == (labels.sum(), (~labels).sum())
    assert found.value in curve.thresholds
    assert len(curve.thresholds) <= CURVE_POINTS
    assert curve.thresholds[0] <= values.min() + BIN and curve.thresholds[-1] >= values.max() - BIN
    for at, t_ in enumerate(curve.thresholds[::10]):
        # Rounding may differ by a unit in the last place, so counts are bracketed.
        low, high = values >= t_ + 1e-6, values >= t_ - 1e-6
        assert (low & labels).sum() <= curve.true_positives[::10][at] <= (high & labels).sum()
        assert (low & ~labels).sum() <= curve.false_positives[::10][at] <= (high & ~labels).sum()
    tp, fp = curve.true_positives, curve.false_positives
    np.testing.assert_allclose(curve.precision[tp > 0], (tp / np.maximum(tp + fp, 1))[tp > 0])
    np.testing.assert_allclose(curve.recall, tp / labels.sum())
    precision, recall = curve.precision[tp > 0], curve.recall[tp > 0]
    np.testing.assert_allclose(curve.f1[tp > 0], 2 * precision * recall / (precision + recall))


@pytest.mark.parametrize("blocks", SIZES)
@pytest.mark.parametrize("kind", ["clustered", "coarse"])
def test_blocked_path_equals_the_exact_one(kind, blocks):
    q, t, positives, excluded = problem(kind)
    exact = mine(q, t, positives, excluded, SMALL)
    settings = dataclasses.replace(BLOCKED, query_block=blocks[0], target_block=blocks[1])
    blocked = mine(q, t, positives, excluded, settings)
    assert blocked.threshold.resolution == BIN
    value, f1 = best_edge(q, t, positives, excluded)
    assert (blocked.threshold.value, blocked.threshold.f1) == (value, pytest.approx(f1, rel=1e-6))
    # An edge and the threshold just above it differ by the scores of one bin.
    assert exact.threshold.f1 * (1 - 2e-3) < f1 <= exact.threshold.f1
    counts = [np.array([c.positives, c.negatives]) for c in (exact.threshold.curve, blocked.threshold.curve)]
    np.testing.assert_array_equal(*counts)
    if kind == "coarse":
        assert exact.threshold.value == blocked.threshold.value
        assert exact.threshold.f1 == blocked.threshold.f1
        for name in ("thresholds", "true_positives", "false_positives"):
            np.testing.assert_array_equal(*(getattr(m.threshold.curve, name) for m in (exact, blocked)))
        np.testing.assert_array_equal(exact.scores, blocked.scores)
        np.testing.assert_array_equal(exact.rows, blocked.rows)


def test_negatives_agree_given_the_same_threshold():
    q, t, positives, excluded = problem("clustered", queries=200, targets=3000)
    settings = dataclasses.replace(SMALL, per_query=10, query_block=64, target_block=800)
    known = [pair_codes(*pairs.T, len(t)) for pairs in (positives, excluded)]
    exact = Miner(q, t, *known, settings)
    blocked = Miner(q, t, *known, dataclasses.replace(settings, exact_scores=0))
    value, f1 = best_edge(q, t, positives, excluded)
    assert (blocked.threshold.value, blocked.threshold.f1) == (value, pytest.approx(f1, rel=1e-6))
    # Where F1 is flat, the best edge may be a few bins from the best threshold; its F1 is nearly equal.
    assert abs(exact.threshold.value - value) < 1e-3
    assert exact.threshold.f1 * (1 - 1e-3) < f1 <= exact.threshold.f1
    blocked.threshold = exact.threshold
    found = [[np.concatenate(parts) for parts in list(zip(*m.negatives(), strict=True))[1:]] for m in (exact, blocked)]
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-6)
    # If two scores are equal but for rounding, either order is right: compare the rows found by their own scores.
    unit_q, unit_t = (z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-30) for z in (q, t))
    for rows, scores in found:
        kept = rows >= 0
        np.testing.assert_allclose((unit_q @ unit_t.T)[np.nonzero(kept)[0], rows[kept]], scores[kept], atol=1e-6)
        assert all(len(np.unique(row[row >= 0])) == np.sum(row >= 0) for row in rows)
    assert np.mean(found[0][0] == found[1][0]) > 0.995


def test_known_pairs_and_rows_of_zeros_are_never_mined():
    q, t, positives, excluded = problem()
    for settings in (SMALL, BLOCKED):
        rows = mine(q, t, positives, excluded, dataclasses.replace(settings, per_query=700)).rows
        mined = {(i, j) for i, row in enumerate(rows) for j in row[row >= 0].tolist()}
        assert len(mined) > 10_000
        assert not mined & {tuple(pair) for pair in [*positives.tolist(), *excluded.tolist()]}
        assert not {4, 60} & {i for i, _ in mined}
        assert not {0, 123, 699} & {j for _, j in mined}


@pytest.mark.parametrize("settings", [SMALL, BLOCKED])
def test_scores_at_the_threshold_are_left_out(settings):
    """Two targets score exactly as high as the only positive; one scores less."""
    q = np.array([[1, 0]], np.float32)
    t = np.array([[3, 4], [0.6, 0.8], [30, 40], [0, 1], [0, 0]], np.float32)
    mined = mine(q, t, np.array([[0, 0]]), np.zeros((0, 2), int), settings)
    assert mined.rows.tolist() == [[3, -1, -1, -1, -1]]
    assert mined.threshold.value == pytest.approx(0.6, abs=BIN)
    assert (mined.threshold.false_negatives, mined.threshold.recall) == (2, 1.0)


@pytest.mark.parametrize("settings", [SMALL, BLOCKED])
def test_of_equal_f1_the_highest_threshold_is_taken(settings):
    """F1 is 2/3 at the score 1 (one of two positives, alone) and at 0 (both, and two negatives)."""
    q, t = np.array([[1, 0]], np.float32), np.array([[1, 0], [0, 1], [0, 2], [0, 3]], np.float32)
    mined = mine(q, t, np.array([[0, 0], [0, 1]]), np.zeros((0, 2), int), settings)
    assert (mined.threshold.f1, mined.threshold.value) == (pytest.approx(2 / 3), 1.0)
    assert mined.rows[0].tolist() == [2, 3, -1, -1, -1]


@pytest.mark.parametrize("settings", [SMALL, BLOCKED])
def test_all_scores_equal_or_no_negative(settings):
    one = np.ones((2, 3), np.float32)
    mined = mine(one, one, np.array([[0, 0]]), np.zeros((0, 2), int), settings)
    assert np.all(mined.rows == -1)
    assert mined.threshold.false_negatives == 3
    mined = mine(one, one, np.argwhere(np.ones((2, 2))), np.zeros((0, 2), int), settings)
    assert (mined.threshold.f1, mined.threshold.false_negatives, mined.threshold.curve.negatives) == (1.0, 0, 0)


@pytest.mark.parametrize("settings", [SMALL, BLOCKED])
def test_without_a_positive_there_is_no_threshold(settings):
    q, t, *_ = problem()
    for positives in (np.zeros((0, 2), int), np.array([[4, 1], [1, 123]])):
        with pytest.raises(SailError, match="No positive pair has embeddings on both sides"):
            mine(q, t, positives, np.zeros((0, 2), int), settings)


def test_embeddings_that_are_not_finite():
    q, t, positives, excluded = problem()
    t[77, 3] = np.nan
    with pytest.raises(SailError, match="row 77 of the targets is not finite"):
        mine(q, t, positives, excluded, SMALL)


def test_a_block_with_too_many_scores():
    many, few = np.ones((2**20, 1), np.float32), np.ones((2**17, 1), np.float32)
    present = np.ones(2**20, bool), np.ones(2**17, bool)
    with pytest.raises(SailError, match="131072 x 131072 scores are over 2.31"):
        ScoreBlocks(many, TargetBlocks(few, present[1], 2**18), present[0], np.zeros(1, np.int64), 2**17)


def test_the_same_vectors_from_a_mapped_file(tmp_path):
    q, t, positives, excluded = problem()
    np.save(tmp_path / "q.npy", q.astype(np.float16))
    mapped = np.load(tmp_path / "q.npy", mmap_mode="r")
    found = [mine(z, t, positives, excluded, BLOCKED) for z in (mapped, np.array(mapped))]
    np.testing.assert_array_equal(found[0].rows, found[1].rows)


@pytest.mark.parametrize("columns", [64, 352, 1024])
def test_of_equal_scores_the_lower_row_comes_first(columns):
    rng = np.random.default_rng(3)
    q, t = coarse_vectors(rng, 50), coarse_vectors(rng, 1000)
    settings = dataclasses.replace(BLOCKED, target_block=columns)
    targets = TargetBlocks(t, t.any(axis=1), settings.target_block, held=columns == 352)
    blocks = ScoreBlocks(q, targets, q.any(axis=1), np.zeros(0, np.int64), settings.query_block)
    for limit in (2.0, 0.5):
        (rows, scores) = (np.concatenate(parts) for parts in list(zip(*blocks.top_below(limit, 5), strict=True))[1:])
        expected = np.where(q @ t.T < limit, q @ t.T, -np.inf)
        order = np.argsort(-expected, axis=1, kind="stable")[:, :5]
        np.testing.assert_array_equal(rows, order)
        np.testing.assert_array_equal(scores, np.take_along_axis(expected, order, axis=1))
