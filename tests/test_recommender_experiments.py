"""The parts of experiments/ranking.py and experiments/enhancement.py that could be wrong without anyone seeing it."""

import dataclasses

import numpy as np
import pytest

from experiments import enhancement, ranking
from sail_jax import config as config_lib
from sail_jax import sweeps
from sail_jax.sweeps.shared_stages import find_forks


def impressions(users=60, items=40, rows=6000, seed=0):
    """Users of two tastes; what they like is told by the taste of the item alone."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, users, rows), rng.integers(1, items + 1, rows)
    liked = rng.random(rows) < np.where(user % 2 == item % 2, 0.7, 0.1)
    made = ranking.Impressions(
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        history=np.zeros((rows, ranking.HISTORY), np.int32),
        counts=np.zeros((rows, 2), np.float32),
        label=liked.astype(np.float32),
    )
    ranking._fill_histories(made)
    ranking._fill_counts(made, np.arange(rows) // 100, items + 1)
    return made


def test_histories_and_counts_know_only_what_was_before():
    made = impressions(rows=700)
    for row in (0, 350, 699):
        before = [i for i in range(row) if made.user[i] == made.user[row] and made.label[i]]
        latest = made.item[before[::-1][: ranking.HISTORY]]
        np.testing.assert_array_equal(made.history[row], np.pad(latest, (0, ranking.HISTORY - len(latest))))
        earlier = np.arange(row // 100 * 100)
        shown = made.item[earlier] == made.item[row]
        liked = made.label[earlier][shown].sum()
        np.testing.assert_allclose(
            made.counts[row], [np.log1p(shown.sum()), (liked + 1) / (shown.sum() + 10)], rtol=1e-6
        )


def test_match_features_equal_brute_force():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[0] = 0
    history = np.array([[2, 3, 0], [4, 0, 0]])
    found = ranking.match_features(vectors, np.array([1, 2]), history)
    for row, (item, seen) in enumerate([(1, [2, 3]), (2, [4])]):
        cosines, centre = vectors[seen] @ vectors[item], vectors[seen].mean(0)
        to_centre = vectors[item] @ centre / np.linalg.norm(centre)
        np.testing.assert_allclose(found[row], [cosines.mean(), cosines.max(), to_centre], rtol=1e-5)


@pytest.mark.slow
def test_features_that_tell_the_taste_raise_the_auc(monkeypatch, tmp_path):
    monkeypatch.setattr(ranking, "BATCH", 256)
    monkeypatch.setattr(ranking, "EPOCHS", 2)
    monkeypatch.setattr(ranking, "BOOTSTRAPS", 20)
    made = impressions()
    train, test = made.rows(np.arange(4000)), made.rows(np.arange(4000, 6000))
    tastes = np.eye(2, dtype=np.float32)[np.arange(41) % 2]
    tastes[0] = 0
    codes = (np.arange(41) % 2 + 1)[:, None].astype(np.int32)
    ranking.write_inputs(tmp_path, train, test, tastes, codes)
    config = config_lib.load("recommender", [f"data.dir={tmp_path}"])
    scores = {}
    for name in ("base", "+ embeddings", "+ semantic IDs"):
        figures = ranking.member(config, {"variant": name}, tmp_path)
        scores[name] = np.load(tmp_path / ranking.SCORES)[None]
        assert figures["impressions/queries"] == 2000 and 0.4 < figures["impressions/auc"] < 1
    with pytest.raises(SystemExit, match="other impressions"):
        ranking.write_inputs(tmp_path, train, test, tastes, codes + 1)
    table = ranking.summarise(scores, test)
    assert table["+ embeddings"]["auc"] > 0.75
    assert table["+ embeddings"]["low"] < table["+ embeddings"]["auc"] < table["+ embeddings"]["high"]
    assert table["+ semantic IDs"]["auc"] > table["base"]["auc"]
    assert table["base"]["gain"] == 0 and "gain over base" in ranking.markdown(table)


def test_the_table_of_the_enhancement():
    keys = [key for key, _ in enhancement.FIGURES.values()]
    of_rows = {row: [dict.fromkeys(keys, value) for value in (0.2, 0.4)] for row in enhancement.ROWS}
    table = enhancement.summarise(dict.fromkeys(keys, 0.1), of_rows)
    cell = table["+ ID-to-item"]["Gid R@50"]
    assert (cell["mean"], cell["change"]) == (pytest.approx(30), pytest.approx(20))
    assert cell["standard_error"] == pytest.approx(10)
    assert "30.0 ± 10.0" in enhancement.markdown(table)


def test_id_to_item_goes_on_from_the_stage_that_sequence_to_item_trains(tmp_path):
    found = sweeps.load("enhancement")
    overrides = (*found.overrides, *enhancement.of_content(tmp_path))
    members = sweeps.expand(dataclasses.replace(found, overrides=overrides, seeds=[0, 1]))
    configs = {member.name: config_lib.load(found.base, member.overrides) for member in members}
    forks = find_forks(configs)
    assert {name: (fork.leader, fork.step) for name, fork in forks.items()} == {
        f"+_ID-to-item,seed={seed}": (f"+_sequence-to-item,seed={seed}", enhancement.STEPS) for seed in (0, 1)
    }
