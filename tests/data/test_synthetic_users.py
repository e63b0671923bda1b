"""The generated recommender: its logs keep to their layout, and what they hold cannot be read off content."""

import dataclasses
import hashlib
import itertools
import json

import numpy as np
import polars as pl
import pytest
import scipy.sparse
import tiny
from scipy.stats import mannwhitneyu

from sail_jax import config as config_lib
from sail_jax.cli import main
from sail_jax.config.data import SyntheticConfig
from sail_jax.config.logs import LogsConfig
from sail_jax.data.ingest.ingest import ingest
from sail_jax.data.store import ItemStore
from sail_jax.data.synthetic import world as synthetic
from sail_jax.data.synthetic.factors import factorise
from sail_jax.data.synthetic.logs import write_logs
from sail_jax.data.synthetic.topics import draw_topics, draws
from sail_jax.errors import SailError

ITEMS, ITEMS_PER_TOPIC = 480, 3
CONFIG = SyntheticConfig(num_items=ITEMS, communities=8, styles=3, log_users=700, log_events_per_user=60)
FLAGS = list(LogsConfig().events.flags)


def generate(folder, config=CONFIG, seed=5):
    topics = draw_topics(config.num_items // ITEMS_PER_TOPIC, seed)
    topic_of = draws(seed, "items").permutation(config.num_items) % len(topics)
    ids = np.array([f"item{n:06d}" for n in range(config.num_items)])
    folder.mkdir()
    return write_logs(topics, topic_of, ids, config, seed, 0.2, folder)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("users") / "w"
    return folder, generate(folder)


def table(folder, name):
    return pl.concat([pl.read_parquet(part) for part in sorted((folder / name).glob("*.parquet"))])


@pytest.fixture(scope="module")
def truth(logs):
    """item -> label, item -> style, user -> communities, communities."""
    folder = logs[0]
    items = table(folder, "logs/items")
    labels = dict(zip(items["item_id"], items["labels"].list.last(), strict=True))
    styles = {row["item_id"]: row["style"] for row in lines(folder / "styles.jsonl")}
    tastes = {row["user_id"]: row["communities"] for row in lines(folder / "tastes.jsonl")}
    return labels, styles, tastes, lines(folder / "communities.jsonl")


def positives(folder):
    return table(folder, "logs/events").filter(pl.any_horizontal(FLAGS))


def unit_vectors(folder, name):
    rows = table(folder, f"vectors/{name}")
    z = np.array(rows["vector"].to_list())
    return rows["item_id"].to_list(), z / np.linalg.norm(z, axis=1, keepdims=True)


# ---------------------------------------------------------------------------------------------------------- layout


@pytest.mark.slow
def test_the_logs_have_the_layout_that_the_settings_expect(logs):
    folder, summary = logs
    settings = LogsConfig()
    for name, columns in [
        ("events", ("user", "item", "time", "watch_share")),
        ("searches", ("user", "query", "item", "time", "clicked")),
        ("live", ("user", "item", "time", "seconds")),
        ("hashtags", ("item", "hashtag", "time")),
        ("catalogue", ("item", "time", "labels", "summary")),
    ]:
        log = getattr(settings, name)
        rows = table(folder, log.path)
        assert {getattr(log, column) for column in columns} <= set(rows.columns)
        assert rows.select(pl.exclude("summary").null_count()).sum_horizontal().item() == 0
        assert rows["timestamp"].is_sorted() or name == "catalogue"
        # Weeks are parts, so the order of the parts is that of time.
        assert rows.height > 100
    events = table(folder, "logs/events")
    assert [events[flag].dtype for flag in FLAGS] == [pl.Boolean] * 5
    assert events["watch_share"].is_between(0, 1).all() and len(list((folder / "logs/events").iterdir())) >= 6
    assert summary.events == events.height and summary.positive_events == positives(folder).height
    for name, width in (("dense", 64), ("id_finish", 32), ("id_like", 24)):
        rows = table(folder, f"vectors/{name}")
        assert rows.columns == ["item_id", "vector"] and rows["item_id"].n_unique() == rows.height
        assert set(map(len, rows["vector"].to_list())) == {width}
        assert np.isfinite(np.array(rows["vector"].to_list())).all()
        assert summary.vectors[name] == rows.height


def test_same_settings_give_same_bytes_and_another_seed_does_not(tmp_path):
    small = SyntheticConfig(num_items=96, communities=3, log_users=60, log_events_per_user=40)
    assert generate(tmp_path / "a", small) == generate(tmp_path / "b", small)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    generate(tmp_path / "c", small, seed=6)
    assert not set(digests(tmp_path / "c").values()) & set(digests(tmp_path / "a").values())


def test_the_rest_of_a_world_does_not_change(tmp_path):
    small = SyntheticConfig(num_items=48, num_users=5, test_queries=0, searches=20, test_searches=4, off_domain_items=0)
    with_logs = dataclasses.replace(small, communities=2, log_users=30)
    synthetic.make_world(small, 3, tmp_path / "plain")
    synthetic.make_world(with_logs, 3, tmp_path / "logs")
    plain, more = digests(tmp_path / "plain"), digests(tmp_path / "logs")
    assert "communities" not in json.loads((tmp_path / "plain/world.json").read_text())["settings"]
    assert set(plain) < set(more) and not any(name.startswith(("logs/", "vectors/")) for name in plain)
    assert {name for name in plain if plain[name] != more[name]} == {"world.json"}
    with pytest.raises(SailError, match="other settings"):
        synthetic.make_world(with_logs, 3, tmp_path / "logs", test_share=0.3)


def test_from_the_verb_to_items_with_id_embeddings(tmp_path, capsys):
    config = str(tiny.REPO / "configs" / "recommender.py")
    changes = [
        "synthetic.num_items=48",
        "synthetic.log_users=60",
        "synthetic.num_users=5",
        "synthetic.searches=20",
        "ingest.tokenizer_vocab=300",
    ]
    words = [f"--config.{change}" for change in changes]
    assert main(["world", "--config", config, "--output", str(tmp_path / "export"), *words]) == 0
    assert str(tmp_path / "export") in capsys.readouterr().out
    ingest(config_lib.load(config, changes), tmp_path / "export", tmp_path / "data")
    for item in ItemStore.open(tmp_path / "data/items"):
        for name in ("id_finish", "id_like"):
            rows = table(tmp_path / "export", f"vectors/{name}").filter(item_id=item.item_id)
            joined = item.id_embeddings.get(name)
            assert (joined is None) == rows.is_empty()
            if joined is not None:
                assert joined.tolist() == rows["vector"][0].to_list()


# ------------------------------------------------------------------------------------------------------- behaviour


def test_impressions_are_skewed_and_most_go_without_a_positive(logs):
    events = table(logs[0], "logs/events")
    assert 0.05 < logs[1].positive_events / len(events) < 0.4
    rates = {flag: events[flag].mean() for flag in FLAGS}
    assert rates["like"] > rates["share"] > rates["follow"] > 0.002
    assert (events["watch_share"].filter(events["finish"]) >= 0.9).all()
    counts = np.sort(events["item_id"].value_counts()["count"].to_numpy())[::-1]
    assert counts[: ITEMS // 10].sum() > 0.25 * counts.sum()
    assert events.select(pl.struct("user_id", "item_id").n_unique()).item() == len(events)
    assert 40 < len(events) / CONFIG.log_users < 70
    # Several behaviours at once, which sequences of strong interest need.
    assert (events.select(pl.sum_horizontal(FLAGS)).to_series() >= 3).mean() > 0.02


def test_nothing_happens_to_an_item_before_it_is_published(logs):
    published = table(logs[0], "logs/items").select("item_id", published="timestamp")
    assert (published["published"].max() - published["published"].min()) > 7 * 86_400
    for name in ("events", "searches", "live"):
        rows = table(logs[0], f"logs/{name}").join(published, on="item_id")
        assert (rows["timestamp"] >= rows["published"]).all()


def test_the_topics_of_a_community_have_nothing_in_common(logs, truth):
    topics = {topic.name: topic for topic in draw_topics(ITEMS // ITEMS_PER_TOPIC, 5)}
    assert len({community["style"] for community in truth[3]}) == CONFIG.styles
    for community in truth[3]:
        assert len(community["topics"]) >= 3
        for a, b in itertools.combinations([topics[name] for name in community["topics"]], 2):
            assert a.look != b.look and a.sound != b.sound and a.theme != b.theme


def test_users_prefer_the_topics_and_the_style_of_their_communities(logs, truth):
    labels, styles, tastes, communities = truth

    def level(user, item):
        known = [communities[taste] for taste in tastes[user]]
        on = [taste for taste in known if labels[item] in taste["topics"]]
        return 0 if not on else 2 if any(styles[item] == taste["style"] for taste in on) else 1

    events = table(logs[0], "logs/events")
    levels = np.array([level(user, item) for user, item in zip(events["user_id"], events["item_id"], strict=True)])
    positive = events.select(pl.any_horizontal(FLAGS)).to_series().to_numpy()
    rates = [positive[levels == each].mean() for each in range(3)]
    assert rates[0] < 0.1 and rates[2] > 2 * rates[1] > 4 * rates[0]
    clicks = table(logs[0], "logs/searches")
    assert 0.1 < clicks["clicked"].mean() < 0.6
    assert (clicks.filter("clicked").group_by("query").agg(pl.col("user_id").n_unique())["user_id"] > 1).mean() > 0.3


# ----------------------------------------------------------------------------------------------------------- signal


@pytest.mark.parametrize("name", ["id_finish", "id_like"])
def test_id_embeddings_tell_what_is_consumed_together_next_better_than_content(logs, truth, name):
    """Of an item's ten nearest, how many share a user with it after the training time; against items of its topic."""
    folder, summary = logs
    ids, z = unit_vectors(folder, name)
    number = {item: place for place, item in enumerate(ids)}
    later = positives(folder).filter((pl.col("timestamp") > summary.train_until) & pl.col("item_id").is_in(ids))
    users, rows = np.unique(later["user_id"].to_numpy(), return_inverse=True)
    columns = [number[item] for item in later["item_id"]]
    consumed = scipy.sparse.coo_array((np.ones(len(rows)), (rows, columns)), (len(users), len(ids))).tocsr()
    together = (consumed.T @ consumed).toarray() > 0
    np.fill_diagonal(together, False)
    scores = z @ z.T
    np.fill_diagonal(scores, -np.inf)
    near = np.argsort(-scores, axis=1)[:, :10]
    label = np.array([truth[0][item] for item in ids])
    found, by_content, across = [], [], []
    for item in np.flatnonzero(together.any(1)):
        alike = np.flatnonzero((label == label[item]) & (np.arange(len(ids)) != item))
        found.append(together[item, near[item]].mean())
        by_content.append(together[item, alike].mean() if len(alike) else 0)
        across.append((label[near[item]] != label[item]).mean())
    assert len(found) > 100
    assert np.mean(found) > 1.15 * np.mean(by_content) > 1.5 * together.mean()
    assert np.mean(across) > 0.5  # most links are ones that content has not


def test_id_embeddings_come_from_the_training_time_alone(logs):
    folder, summary = logs
    events = table(folder, "logs/events")
    span = events["timestamp"].max() - events["timestamp"].min()
    assert summary.train_until == events["timestamp"].min() + int(span * 0.8)
    training = events.filter(pl.col("timestamp") <= summary.train_until)
    rules = {"id_finish": ["finish"], "id_like": ["like", "share", "follow"]}
    for name, flags in rules.items():
        expected = set(training.filter(pl.any_horizontal(flags))["item_id"])
        assert (
            set(table(folder, f"vectors/{name}")["item_id"]) == expected < set(table(folder, "logs/items")["item_id"])
        )


def test_histories_of_multi_peak_users_are_spread_wider(logs, truth):
    ids, z = unit_vectors(logs[0], "id_finish")
    vector = dict(zip(ids, z, strict=True))
    spread = {True: [], False: []}
    for (user,), rows in positives(logs[0]).filter(pl.col("item_id").is_in(ids)).group_by("user_id"):
        if rows.height >= 5:
            mean = np.mean([vector[item] for item in rows["item_id"]], axis=0)
            spread[len(truth[2][user]) == 1].append(1 - np.linalg.norm(mean))
    single, multi = spread[True], spread[False]
    statistic, p = mannwhitneyu(multi, single, alternative="greater")
    assert min(len(single), len(multi)) > 100
    assert statistic / (len(single) * len(multi)) > 0.65 and p < 1e-6


def test_factors_are_the_singular_vectors_of_the_normalised_matrix():
    rng = np.random.default_rng(0)
    user, item = rng.integers(30, size=400), rng.integers(1, 21, size=400)
    item[item == 7] = 8  # an item without events
    weight = rng.integers(0, 3, 400).astype(float)
    items, vectors = factorise(user, item, weight, 4, seed=1)
    matrix = np.zeros((21, 30))
    np.add.at(matrix, (item, user), weight)
    assert items.tolist() == np.flatnonzero(matrix.sum(1)).tolist() and 7 not in items
    matrix = matrix[items][:, matrix.sum(0) > 0]
    matrix = matrix / np.sqrt(matrix.sum(1, keepdims=True) * matrix.sum(0, keepdims=True))
    u, s, _ = np.linalg.svd(matrix)
    expected = u[:, :4] * s[:4]
    np.testing.assert_allclose(np.abs(vectors), np.abs(expected), atol=1e-2)
    assert factorise(user[:0], item[:0], weight[:0], 4, seed=1)[1].shape == (0, 0)
