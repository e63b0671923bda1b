"""The baselines without content, against plain numpy, under the protocol of the models."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sail_jax import config as config_lib
from sail_jax.data.pipeline import open_store
from sail_jax.data.sequence_tables import write_sequences
from sail_jax.data.tables import Pair, write_pairs
from sail_jax.errors import SailError
from sail_jax.evaluation import co_counts
from sail_jax.evaluation.baselines import baseline_results, check_baselines
from sail_jax.evaluation.co_counts import read_histories
from sail_jax.evaluation.tasks import load_tasks
from sail_jax.evaluation.two_tower import train_two_tower

COUNTING = ("popularity", "co_counts", "svd_cosine", "svd_dot")
KS = (1, 10, 25)
WIDTH = 2  # of the SVD: the two tastes, as the others hardly differ in size and are found only nearly


@pytest.fixture
def store(world, settings):
    return open_store(config_lib.build(settings))


@pytest.fixture
def histories():
    """Histories of users of two tastes by split, positions of items, the most loved first; some items are popular."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(2, 72)
    drawn = [70 * (user % 2) + rng.choice(70, 8, replace=False, p=shares / shares.sum()) for user in range(60)]
    return {"train": drawn[:45], "test": drawn[45:]}


def next_three(histories):
    return [(int(h[i]), int(h[j])) for h in histories for i in range(len(h)) for j in range(i + 1, min(i + 4, len(h)))]


@pytest.fixture
def config(settings, store, histories, tmp_path):
    ids = list(store.item_ids())
    rows = [(Pair(ids[a], None, ids[b], None), split) for split in histories for a, b in next_three(histories[split])]
    write_pairs(tmp_path / "copair.parquet", rows)
    names = [[ids[item] for item in history] for history in histories["train"]]
    columns = {
        "user_id": [str(user) for user in range(len(names))],
        "item_ids": [history[:-1] for history in names],
        "target_id": [history[-1] for history in names],
        "split": ["train"] * len(names),
    }
    write_sequences(tmp_path / "histories.parquet", [pa.table(columns)])
    settings.eval.tasks = {"i2i": {"table": str(tmp_path / "copair.parquet"), "both_ways": True, "split": "test"}}
    settings.eval.update(ks=KS, baselines=COUNTING, histories=str(tmp_path / "histories.parquet"))
    return config_lib.build(settings)


def plain_scores(histories, items):
    """Baseline -> [items, items] scores, in dense numpy."""
    train = np.array(next_three(histories["train"]))
    popular = np.bincount(train.ravel(), minlength=items).astype(float)
    both = np.zeros((items, items))
    for a, b in train:
        both[a, b] += 1
        both[b, a] += 1
    users = np.zeros((len(histories["train"]), items))
    for user, history in enumerate(histories["train"]):
        users[user, history] = 1
    _, singular, right = np.linalg.svd(users, full_matrices=False)
    vectors, scaled = right[:WIDTH].T, right[:WIDTH].T * singular[:WIDTH]
    unit = vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9)
    return {
        "popularity": np.tile(popular, (items, 1)),
        "co_counts": both / np.sqrt(np.outer(popular + 10, popular + 10)),
        "svd_cosine": unit @ unit.T,
        "svd_dot": scaled @ scaled.T,
    }


def test_baselines_equal_plain_numpy(config, store, histories, monkeypatch):
    monkeypatch.setattr(co_counts, "_SVD_WIDTH", WIDTH)
    relevant = {}
    for a, b in next_three(histories["test"]):
        relevant.setdefault(a, set()).add(b)
        relevant.setdefault(b, set()).add(a)
    results = {result.model: result for result in baseline_results(config, load_tasks(config, store), store)}
    factors = co_counts.decompose(read_histories(Path(config.eval.histories), store))
    for name, scores in plain_scores(histories, len(store)).items():
        if name.startswith("svd"):  # their order is not compared: the decomposition of scikit-learn is approximate
            score = co_counts.svd(factors, scaled=name == "svd_dot")
            np.testing.assert_allclose(score(np.arange(len(store))), scores, atol=0.02 * scores.max())
            continue
        np.fill_diagonal(scores, -np.inf)
        order = np.argsort(-scores, axis=1, kind="stable")
        for k in KS:
            recall = [len(found & set(order[query, :k].tolist())) / len(found) for query, found in relevant.items()]
            assert results[name].metrics[f"recall@{k}"] == pytest.approx(np.mean(recall)), (name, k)
        assert (results[name].queries, results[name].corpus) == (len(relevant), len(store))
    assert set(results) == set(COUNTING)
    assert results["svd_dot"].metrics["recall@25"] > 1.5 * 25 / len(store)
    assert results["popularity"].metrics["recall@10"] > 20 / len(store)


@pytest.mark.slow
def test_two_tower_learns_the_tastes(histories):
    """Items of a taste come before those of the other; the same seed gives the same vectors."""
    pairs = np.array(next_three(histories["train"]))
    query, target = train_two_tower(np.tile(pairs, (10, 1)), 160, seed=0)
    assert query.shape == target.shape == (160, 64)
    cosines = query @ target.T
    assert cosines[:70, :70][~np.eye(70, dtype=bool)].mean() > cosines[:70, 70:140].mean() + 0.05
    np.testing.assert_array_equal(train_two_tower(pairs[:64], 160, seed=1), train_two_tower(pairs[:64], 160, seed=1))


def test_what_is_missing_is_told_or_left_out(settings, config, store):
    settings.eval.histories = ""
    with pytest.raises(SailError, match="svd_cosine.*config.eval.histories.*sequences"):
        check_baselines(config_lib.build(settings))
    settings.eval.baselines = ("popularity",)
    settings.eval.tasks.i2i.update(split="")
    wrong = config_lib.build(settings)
    assert baseline_results(wrong, {}, store) == []
