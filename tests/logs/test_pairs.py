"""Each builder against answers counted by hand or by brute force, and what holds for all of them."""

import collections
import contextlib
import dataclasses
import itertools
import json
import math

import ibis
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import small_logs as logs
from small_logs import build, config, events, searches, unordered, with_logs, write

from sail_jax.cli import main
from sail_jax.config import Config
from sail_jax.config.logs import EngineConfig
from sail_jax.data.row_order import row_order
from sail_jax.data.store import ItemStore
from sail_jax.data.tables import Pair, PairTable, write_pairs
from sail_jax.errors import SailError
from sail_jax.logs.conversion import words_of
from sail_jax.logs.pairs.attributes import word_grams
from sail_jax.logs.pairs.build import BUILDERS, build_pairs

LOOSE = {"min_users": 1, "min_npmi": -1.0}


def last_event(time: int) -> tuple[str, str, int, int]:
    """An event that nothing pairs with, which sets the span of time from 0 on."""
    return ("nobody", "z", time, 1)


# ---------------------------------------------------------------------------------------------------------- copair


def test_copair_by_hand(tmp_path):
    rows = [
        ("u1", "a", 0, 1),
        ("u1", "b", 10, 2),
        ("u1", "c", 500, 1),  # outside of the window of 100 seconds
        ("u1", "a", 505, 1),  # consumed before: counts at its first time alone
        ("u2", "b", 20, 1),
        ("u2", "x", 25, 0),  # no positive
        ("u2", "a", 30, 1),
        ("u3", "a", 40, 1),
        ("u3", "c", 40, 1),  # a tie in time is within the window; one user is not enough
        last_event(1000),
    ]
    write(tmp_path / "logs/events", events(rows))
    tables, counts = build(tmp_path, config(copair={"window_seconds": 100, "min_npmi": -1.0}), "copair")
    assert unordered(tables["copair"]["train"]) == {("a", "b")}
    assert tables["copair"]["test"] == []
    assert counts["copair"]["rows_read"] == 10
    assert counts["copair"]["dropped_rows_below_threshold"] == 1
    assert counts["copair"]["candidates"] == 2  # a-b and a-c
    assert counts["copair"]["dropped_support"] == 1
    assert counts["copair"]["distinct_items"] == 2


def brute_copair(rows: list[tuple], cut: int, settings) -> dict[tuple, tuple[int, float]]:
    """(a, b, test) -> (users, NPMI) in plain Python."""
    first = {}
    for user, item, time, positives in rows:
        if positives >= settings.positives:
            first[user, item] = min(time, first.get((user, item), time))
    histories = collections.defaultdict(list)
    for (user, item), time in first.items():
        histories[user].append((time, item))
    pairs, popular, users = collections.Counter(), collections.Counter(), collections.Counter()
    for history in histories.values():
        history.sort()
        for side in {time > cut for time, _ in history}:
            users[side] += 1
        for place, (time, item) in enumerate(history):
            popular[item, time > cut] += 1
            for later, other in history[place + 1 : place + 1 + settings.neighbours]:
                if later - time <= settings.window_seconds and (later > cut) == (time > cut):
                    pairs[(*sorted((item, other)), time > cut)] += 1
    found = {}
    for (a, b, test), n in pairs.items():
        total = users[test]
        information = math.log(n / total * total / popular[a, test] * total / popular[b, test])
        found[a, b, test] = (n, 1.0 if n == total else information / -math.log(n / total))
    return found


def export_events(folder) -> list[tuple]:
    frame = pl.concat([pl.read_parquet(part) for part in sorted((folder / "logs/events").glob("*"))])
    positives = frame.select(pl.sum_horizontal(logs.FLAGS)).to_series()
    return list(zip(frame["user_id"], frame["item_id"], frame["timestamp"], positives, strict=True))


@pytest.mark.parametrize("min_users, min_npmi", [(1, -1.0), (2, 0.05), (3, 0.1)])
def test_copair_equals_brute_force(tmp_path, min_users, min_npmi):
    logs.drawn_export(tmp_path)
    settings = config(
        copair={"window_seconds": 120, "neighbours": 6, "min_users": min_users, "min_npmi": min_npmi, "per_item": 1000}
    )
    tables, _ = build(tmp_path, settings, "copair")
    rows = export_events(tmp_path)
    times = [time for _, _, time, _ in rows]
    cut = min(times) + int((max(times) - min(times)) * 0.9)
    brute = brute_copair(rows, cut, settings.builders.copair)
    trained = {(a, b) for a, b, test in brute if not test}
    for split, side in (("train", False), ("test", True)):
        wanted = {
            (a, b)
            for (a, b, test), (n, npmi) in brute.items()
            if test == side and n >= min_users and npmi >= min_npmi and not (test and (a, b) in trained)
        }
        assert unordered(tables["copair"][split]) == wanted
    assert tables["copair"]["train"]


def test_a_pair_across_the_cut_is_none_and_a_trained_pair_is_no_test_pair(tmp_path):
    rows = [("u0", "first", 0, 1), last_event(1000)]
    rows += [
        (user, item, 899 + place * 3, 1) for user in ("u1", "u2") for place, item in enumerate(("a", "b"))
    ]  # across
    rows += [(user, item, time, 1) for user in ("u3", "u4") for item, time in (("c", 100), ("d", 101))]  # train
    rows += [
        (user, item, time, 1) for user in ("u5", "u6") for item, time in (("c", 950), ("d", 951))
    ]  # the same, later
    rows += [(user, item, time, 1) for user in ("u7", "u8") for item, time in (("e", 950), ("f", 951))]  # test
    write(tmp_path / "logs/events", events(rows))
    tables, counts = build(tmp_path, config(copair={"min_npmi": -1.0}), "copair")
    assert unordered(tables["copair"]["train"]) == {("c", "d")}
    assert unordered(tables["copair"]["test"]) == {("e", "f")}
    assert counts["copair"]["dropped_test_in_train"] == 1


def test_a_dense_log_of_few_items_keeps_pairs_for_the_test(tmp_path):
    """Two tastes of six items: all that users like late was liked together before."""
    rows = [("nobody", "z", 0, 1), last_event(10_000)]
    for user in range(80):
        liked = [f"{'ab'[user % 2]}{(user // 2 + place) % 6}" for place in range(4)]
        rows += [(f"u{user}", item, 120 * user + place, 1) for place, item in enumerate(liked)]
    write(tmp_path / "logs/events", events(rows))
    tables, counts = build(tmp_path, config(copair={"held_out": 0.1}), "copair")
    train, test = (unordered(tables["copair"][split]) for split in ("train", "test"))
    assert counts["copair"]["dropped_test_in_train"] > 0 and len(train | test) == 30
    assert counts["copair"]["test_drawn"] == len(test) > 0 and len(train) > len(test) and not train & test
    assert build(tmp_path, config(), "copair")[0]["copair"]["test"] == []


def test_pairs_of_split_users_may_repeat_and_be_those_of_train(tmp_path):
    """Three train users and two test users have a and b; each pair stands once for each user."""
    rows = [(user, item, time, 1) for user in ("u1", "u2", "u3") for item, time in (("a", 1), ("b", 2))]
    rows += [(user, item, time, 1) for user in ("v1", "v2") for item, time in (("a", 990), ("b", 1000))]
    rows += [("v2", "c", 995, 1)]
    write(tmp_path / "logs/events", events(rows))
    rules = {"min_npmi": -1.0, "min_users": 1, "new_test_pairs": False, "repeat": True}
    tables, counts = build(tmp_path, config(copair=rules), "copair")
    ends = {split: sorted(tuple(sorted(row[:2])) for row in tables["copair"][split]) for split in ("train", "test")}
    assert ends == {"train": [("a", "b")] * 3, "test": [("a", "b")] * 2 + [("a", "c"), ("b", "c")]}
    assert [counts["copair"][name] for name in ("train", "test", "rows", "candidates")] == [1, 3, 7, 4]
    assert not any(count for name, count in counts["copair"].items() if name.startswith("dropped"))


def test_npmi_keeps_popular_items_apart(tmp_path):
    """Everyone likes `hit`; `a` and `b` are liked by the same two."""
    rows = [(f"u{n}", "hit", 10, 1) for n in range(20)] + [(f"u{n}", f"own{n}", 12, 1) for n in range(20)]
    rows += [(f"u{n}", item, 11, 1) for n in (0, 1) for item in ("a", "b")] + [last_event(1000), ("v", "y", 0, 1)]
    write(tmp_path / "logs/events", events(rows))
    tables, counts = build(tmp_path, config(copair={"min_npmi": 0.5}), "copair")
    assert unordered(tables["copair"]["train"]) == {("a", "b")}
    assert counts["copair"]["dropped_strength"] == 2  # hit-a and hit-b


def test_cap_of_an_item(tmp_path):
    """A hub meets ten items; the two that it meets most often stay."""
    rows = [("first", "y", 0, 1), last_event(100_000)]
    for other in range(10):
        for user in range(2 + other):
            name = f"u{other}-{user}"
            rows += [(name, "hub", 100, 1), (name, f"o{other}", 101, 1)]
    write(tmp_path / "logs/events", events(rows))
    tables, counts = build(tmp_path, config(copair={"min_npmi": -1.0, "per_item": 2}), "copair")
    assert unordered(tables["copair"]["train"]) == {("hub", "o8"), ("hub", "o9")}
    assert counts["copair"]["dropped_over_per_item"] == 8


def test_live_counts_visits_that_last(tmp_path):
    user, item, seconds = zip(
        ("u1", "a", 60.0), ("u1", "b", 60.0), ("u1", "c", 59.0), ("u2", "b", 61.0), ("u2", "a", 90.0), strict=True
    )
    log = {"user_id": user, "item_id": item, "timestamp": [1, 2, 3, 4, 5], "seconds": seconds}
    write(tmp_path / "logs/live", log)
    write(tmp_path / "logs/events", events([("u", "y", 0, 1), last_event(1000)]))
    tables, counts = build(tmp_path, config(live={"min_seconds": 60.0, "min_npmi": -1.0}), "live")
    assert unordered(tables["live"]["train"]) == {("a", "b")}
    assert counts["live"]["dropped_rows_below_threshold"] == 1


# -------------------------------------------------------------------------------------------------------- searches


def only_searches(base: Config) -> Config:
    return with_logs(base, events=type(base.logs.events)(path=""))


def test_search_pairs_items_clicked_for_one_query(tmp_path):
    rows = [("Red  Shoes", "a", 1, True), ("red shoes ", "a", 2, True), ("red shoes", "b", 3, True)]
    rows += [("ＲＥＤ shoes", "b", 4, True), ("red shoes", "c", 5, True), ("red shoes", "c", 6, False)]
    rows += [("blue", "a", 0, True), ("blue", "d", 1000, True)]
    write(tmp_path / "logs/searches", searches(rows))
    tables, _ = build(tmp_path, only_searches(config()), "search", "q2i_search")
    assert unordered(tables["search"]["train"]) == {("a", "b")}
    assert sorted(tables["q2i_search"]["train"]) == [("red shoes", "a", None), ("red shoes", "b", None)]


def test_search_takes_the_most_clicked_of_a_query(tmp_path):
    rows = [("q", f"v{item}", 1, True) for item in range(8) for _ in range(item + 1)] + [("end", "z", 1000, True)]
    write(tmp_path / "logs/searches", searches(rows))
    settings = only_searches(config(search={"per_query": 3}, q2i_search={"per_query": 2}))
    tables, counts = build(tmp_path, settings, "search", "q2i_search")
    assert unordered(tables["search"]["train"]) == {("v5", "v6"), ("v5", "v7"), ("v6", "v7")}
    assert {row[1] for row in tables["q2i_search"]["train"]} == {"v6", "v7"}
    assert counts["q2i_search"]["dropped_over_per_query"] == 5


def test_a_query_of_train_is_none_of_test(tmp_path):
    rows = [("old", "a", 0, True), ("old", "b", 995, True), ("old", "b", 996, True)]  # one early click is enough
    rows += [("new", "b", 997, True), ("new", "b", 1000, True)]
    write(tmp_path / "logs/searches", searches(rows))
    tables, counts = build(tmp_path, only_searches(config()), "q2i_search")
    assert tables["q2i_search"] == {"train": [], "test": [("new", "b", None)]}
    assert counts["q2i_search"]["dropped_test_query_in_train"] == 1


def test_min_ctr(tmp_path):
    rows = (
        [("q", "a", 1, n < 2) for n in range(4)] + [("q", "b", 1, n < 2) for n in range(5)] + [("end", "z", 1000, True)]
    )
    write(tmp_path / "logs/searches", searches(rows))
    tables, _ = build(tmp_path, only_searches(config(q2i_search={"min_ctr": 0.5})), "q2i_search")
    assert tables["q2i_search"]["train"] == [("q", "a", None)]


def test_graded_scores_by_hand(tmp_path):
    rows = [("q", "a", 1, n < 6) for n in range(10)] + [("q", "b", 1, n < 1) for n in range(10)]
    rows += [("q", "c", 1, True), ("end", "z", 1000, True)]
    write(tmp_path / "logs/searches", searches(rows))
    settings = only_searches(config(q2i_score={"min_shown": 2, "prior": 10.0, "top_rate": 0.5, "levels": 10}))
    tables, counts = build(tmp_path, settings, "q2i_score")
    rate = 8 / 21  # of the rows before the cut
    assert counts["q2i_score"]["average_rate"] == pytest.approx(rate)
    wanted = {
        item: math.floor(min((clicks + 10 * rate) / 20 / 0.5, 1) * 10 + 0.5) / 10
        for item, clicks in (("a", 6), ("b", 1))
    }
    assert {item: score for _, item, score in tables["q2i_score"]["train"]} == pytest.approx(wanted)
    assert wanted["a"] > wanted["b"]


def test_scores_of_clicks_alone_are_shares_of_the_query(tmp_path):
    clicks = [("q", "a", 1, True)] * 8 + [("q", "b", 1, True)] * 2 + [("end", "z", 1000, True)]
    log = searches(clicks)
    del log["clicked"]
    write(tmp_path / "logs/searches", log)
    base = only_searches(config(q2i_score={"prior": 0.0, "top_rate": 1.0}))
    settings = with_logs(base, searches=type(base.logs.searches)(clicked=""))
    tables, _ = build(tmp_path, settings, "q2i_score")
    assert {item: score for _, item, score in tables["q2i_score"]["train"]} == pytest.approx({"a": 0.8, "b": 0.2})


# ------------------------------------------------------------------------------------------------------ attributes


def items(**columns) -> dict[str, list]:
    ids = columns.pop("item_id")
    empty = {"timestamp": [0] * len(ids), "labels": [[]] * len(ids), "summary": [""] * len(ids)}
    return {"item_id": ids} | empty | columns


def one_span(folder) -> None:
    write(folder / "logs/events", events([("u", "y", 0, 1), last_event(1000)]))


def test_hashtag_joins_items_of_a_tag_on_one_side(tmp_path):
    one_span(tmp_path)
    tags = [
        ("a", "#Cat", 1),
        ("b", "cat ", 2),
        ("c", "＃CAT", 990),
        ("d", "cat", 995),
        ("e", "dog", 1),
        ("a", "#cat", 999),
    ]
    item, hashtag, time = zip(*tags, strict=True)
    write(tmp_path / "logs/hashtags", {"item_id": item, "hashtag": hashtag, "timestamp": time})
    tables, _ = build(tmp_path, config(), "hashtag")
    assert unordered(tables["hashtag"]["train"]) == {("a", "b")}
    assert unordered(tables["hashtag"]["test"]) == {("c", "d")}


def test_hashtag_caps(tmp_path):
    one_span(tmp_path)
    rows = [(f"v{n}", "wide", 1) for n in range(50)] + [(f"v{n}", "general", 1) for n in range(100)]
    item, hashtag, time = zip(*rows, strict=True)
    write(tmp_path / "logs/hashtags", {"item_id": item, "hashtag": hashtag, "timestamp": time})
    settings = config(hashtag={"max_items": 50, "per_hashtag": 10, "neighbours": 2})
    tables, counts = build(tmp_path, settings, "hashtag")
    pairs = unordered(tables["hashtag"]["train"])
    assert len(pairs) == 9 + 8 and len({item for pair in pairs for item in pair}) == 10
    assert counts["hashtag"]["dropped_hashtags_too_general"] == 1


def test_word_grams_are_those_of_plain_python():
    texts = ["The cat sat, the CAT sat.", "a b", "红色的鞋 ok go", "", None]
    words = [["the", "cat", "sat", "the", "cat", "sat"], ["a", "b"], ["红", "色", "的", "鞋", "ok", "go"], [], []]
    rows = pl.DataFrame({"item": list("abcde"), "summary": texts}).select("item", words=words_of(pl.col("summary")))
    assert rows["words"].to_list() == words
    found = word_grams(ibis.memtable(rows.to_arrow()), 3).to_pyarrow()
    wanted = {
        (item, " ".join(of[i : i + 3])) for item, of in zip("abcde", words, strict=True) for i in range(len(of) - 2)
    }
    assert sorted(zip(found["item"].to_pylist(), found["gram"].to_pylist(), strict=True)) == sorted(wanted)


def test_summary_equals_brute_force(tmp_path):
    logs.drawn_export(tmp_path)
    rules = {"words": 2, "min_shared": 3, "max_documents": 12, "per_item": 1000}
    tables, _ = build(tmp_path, config(summary=rules), "summary")
    rows = pl.read_parquet(tmp_path / "logs/items/0.parquet")
    times = [time for _, _, time, _ in export_events(tmp_path)]
    cut = min(times) + int((max(times) - min(times)) * 0.9)
    for split, side in (("train", False), ("test", True)):
        members = collections.defaultdict(set)
        for item, time, summary in rows.select("item_id", "timestamp", "summary").iter_rows():
            words = summary.split()
            if (time > cut) == side:
                for gram in itertools.pairwise(words):
                    members[gram].add(item)
        shared = collections.Counter()
        for group in members.values():
            if len(group) <= 12:
                shared.update(itertools.combinations(sorted(group), 2))
        assert unordered(tables["summary"][split]) == {pair for pair, n in shared.items() if n >= 3}
    assert tables["summary"]["train"]


def test_labels_become_texts(tmp_path):
    one_span(tmp_path)
    log = items(
        item_id=["a", "b", "c", "d"],
        timestamp=[1, 2, 950, 3],
        labels=[["pets", "cats"], ["pets", "pets"], ["pets"], ["once", " "]],
    )
    write(tmp_path / "logs/items", log)
    tables, counts = build(tmp_path, config(), "cls")
    assert tables["cls"]["train"] == [("pets", "a", None), ("pets", "b", None)]
    assert tables["cls"]["test"] == [("pets", "c", None)]
    assert counts["cls"]["dropped_support"] == 2  # cats, once


def test_cap_of_a_label(tmp_path):
    one_span(tmp_path)
    write(tmp_path / "logs/items", items(item_id=[f"v{n}" for n in range(30)], labels=[["pets"]] * 30))
    tables, counts = build(tmp_path, config(cls={"per_label": 7}), "cls")
    assert len(tables["cls"]["train"]) == 7 and counts["cls"]["dropped_over_per_label"] == 23


# --------------------------------------------------------------------------------------------------------- vectors


def vector_sides(folder) -> tuple[np.ndarray, list[str], np.ndarray]:
    rows = pl.read_parquet(folder / "logs/items/0.parquet")
    times = [time for _, _, time, _ in export_events(folder)]
    cut = min(times) + int((max(times) - min(times)) * 0.9)
    vectors = np.array(pl.read_parquet(folder / "vectors/dense/0.parquet")["vector"].to_list())
    return (
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        rows["item_id"].to_list(),
        (rows["timestamp"] > cut).to_numpy(),
    )


def test_rsdf_equals_brute_force(tmp_path):
    logs.drawn_export(tmp_path)
    settings = config(rsdf={"min_cosine": 0.9, "neighbours": 60, "per_item": 1000})
    tables, _ = build(tmp_path, settings, "rsdf")
    z, ids, late = vector_sides(tmp_path)
    for split, side in (("train", False), ("test", True)):
        mine = np.flatnonzero(late == side)
        wanted = {tuple(sorted((ids[i], ids[j]))) for i, j in itertools.combinations(mine, 2) if z[i] @ z[j] >= 0.9}
        assert unordered(tables["rsdf"][split]) == wanted
    assert len(tables["rsdf"]["train"]) > 20


def test_inverted_lists_find_most_of_what_is_near(tmp_path):
    rng = np.random.default_rng(0)
    vectors = np.repeat(rng.standard_normal((200, 16)), 5, axis=0) + 0.05 * rng.standard_normal((1000, 16))
    ids = [f"v{n}" for n in range(1000)]
    write(tmp_path / "vectors/dense", {"item_id": ids, "vector": vectors.astype(np.float32).tolist()})
    one_span(tmp_path)
    settings = config(rsdf={"exact_items": 10, "probes": 8})
    base = with_logs(settings, catalogue=type(settings.logs.catalogue)(path=""))
    tables, _ = build(tmp_path, base, "rsdf")
    wanted = {tuple(sorted((ids[i], ids[j]))) for i in range(1000) for j in range(i + 1, 5 * (i // 5) + 5)}
    found = unordered(tables["rsdf"]["train"])
    assert len(found & wanted) > 0.95 * len(wanted)


def test_id_pairs_share_a_cluster(tmp_path):
    rng = np.random.default_rng(0)
    centres = 10 * rng.standard_normal((4, 8))
    ids = [f"v{n:02d}" for n in range(40)]
    vectors = centres[np.arange(40) % 4] + 0.1 * rng.standard_normal((40, 8))
    vectors[39] = 0  # no vector at all
    write(tmp_path / "vectors/id", {"item_id": ids, "vector": vectors.astype(np.float32).tolist()})
    one_span(tmp_path)
    settings = config(id={"cluster_items": 10, "neighbours": 3})
    base = with_logs(settings, catalogue=type(settings.logs.catalogue)(path=""), id_embeddings={"id": "vectors/id"})
    tables, counts = build(tmp_path, base, "id")
    pairs = unordered(tables["id"]["train"])
    z = vectors[:39] / np.linalg.norm(vectors[:39], axis=1, keepdims=True)
    wanted = set()
    for i in range(39):
        others = [j for j in range(i % 4, 39, 4) if j != i]
        wanted |= {tuple(sorted((ids[i], ids[j]))) for j in sorted(others, key=lambda j: -z[i] @ z[j])[:3]}
    assert pairs == wanted
    assert counts["id"]["dropped_rows_zero_or_not_finite"] == 1


# ------------------------------------------------------------------------------------------------ what holds for all


def all_settings(**changes) -> Config:
    rules = {
        "copair": LOOSE,
        "live": LOOSE,
        "summary": {"words": 2},
        "search": {"min_clicks": 1},
        "q2i_search": {"min_clicks": 1},
    }
    return with_logs(config(**rules, **changes), id_embeddings={"like": "vectors/id_like"})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A drawn export and all its tables."""
    folder = tmp_path_factory.mktemp("drawn")
    logs.drawn_export(folder)
    tables, counts = build(folder, all_settings())
    return folder, tables, counts


def test_all_builders_run_and_nothing_is_lost_in_the_counts(drawn):
    folder, tables, counts = drawn
    assert set(tables) == set(BUILDERS)
    for name, entry in counts.items():
        assert tables[name]["train"], name
        assert (entry["train"], entry["test"]) == (len(tables[name]["train"]), len(tables[name]["test"]))
        row_level = ("dropped_rows", "dropped_hashtags", "dropped_ngrams")
        dropped = sum(v for k, v in entry.items() if k.startswith("dropped") and not k.startswith(row_level))
        assert entry["candidates"] == dropped + entry["train"] + entry["test"]
        assert entry["settings"]
    assert not (folder / "tables" / ".pairs.scratch").exists()
    assert "<h2>copair" in (folder / "tables" / "pairs.html").read_text()


def test_no_pair_joins_an_item_with_itself_or_stands_on_both_sides(drawn):
    _, tables, _ = drawn
    for name, table in tables.items():
        if name in ("q2i_search", "q2i_score"):
            assert not {row[0] for row in table["train"]} & {row[0] for row in table["test"]}
        elif name != "cls":
            train, test = unordered(table["train"]), unordered(table["test"])
            assert not train & test and all(a != b for a, b in train | test)


def test_items_of_item_tables_are_on_one_side(drawn):
    folder, tables, _ = drawn
    _, ids, late = vector_sides(folder)
    side = dict(zip(ids, late, strict=True))
    for name in ("summary", "rsdf", "id"):
        for split in ("train", "test"):
            assert all(side[item] == (split == "test") for row in tables[name][split] for item in row[:2])


def test_which_item_is_the_query_is_drawn(drawn):
    _, tables, _ = drawn
    turned = [query > target for query, target, _ in tables["copair"]["train"]]
    assert 0.3 < np.mean(turned) < 0.7


@pytest.mark.slow
def test_a_build_that_is_broken_off_goes_on_with_the_next_table(drawn, tmp_path, monkeypatch):
    folder, _, counts = drawn
    logs.drawn_export(tmp_path)
    made, stops = [], ["live"]

    def counted(name, make):
        def of(logs):
            if name in stops:
                raise KeyboardInterrupt
            made.append(name)
            return make(logs)

        return of

    for name, (make, log) in list(BUILDERS.items()):
        monkeypatch.setitem(BUILDERS, name, (counted(name, make), log))
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, all_settings())
    assert made == ["copair", "search"]
    stops.clear()
    assert build(tmp_path, all_settings())[1] == counts
    assert made == list(BUILDERS)
    assert not list((tmp_path / "tables").glob(".*"))
    stops.append("live")
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, all_settings())
    write(tmp_path / "logs/events", events([("u", "a", 0, 1), last_event(9)]), parts=1)  # another log: all anew
    made.clear()
    stops.clear()
    with contextlib.suppress(SailError):
        build(tmp_path, all_settings())
    assert made[0] == "copair"


@pytest.mark.slow
@pytest.mark.parametrize("threads, parts", [(1, 5), (3, 3)])
def test_same_bytes_whatever_the_parts_and_threads(drawn, tmp_path, threads, parts):
    folder, _, _ = drawn
    logs.drawn_export(tmp_path, parts=parts, shuffle=parts)
    build(tmp_path, with_logs(all_settings(), engine=EngineConfig(threads=threads, memory_limit="500MB")))
    for name in BUILDERS:
        mine, other = tmp_path / "tables" / f"{name}.parquet", folder / "tables" / f"{name}.parquet"
        assert mine.read_bytes() == other.read_bytes(), name


def test_empty_logs_make_empty_tables(tmp_path):
    logs.drawn_export(tmp_path)
    for part in tmp_path.rglob("*.parquet"):
        pl.read_parquet(part).clear().write_parquet(part)
    tables, counts = build(tmp_path, all_settings())
    assert set(tables) == set(BUILDERS)
    assert all(table == {"train": [], "test": []} for table in tables.values())
    assert all(entry["rows_read"] == 0 for entry in counts.values())
    assert len(PairTable.open(tmp_path / "tables/copair.parquet", "")) == 0


def test_only_leaves_other_tables_and_counts_alone(drawn, tmp_path):
    folder, _, _ = drawn
    output = tmp_path / "tables"
    build(folder, all_settings(), "hashtag", output=output)
    before = (output / "hashtag.parquet").read_bytes()
    tables, _ = build(folder, all_settings(), "cls", output=output)
    assert set(tables) == {"hashtag", "cls"} and (output / "hashtag.parquet").read_bytes() == before


def test_items_that_the_store_lacks_are_left_out(world, tmp_path):
    known = list(itertools.islice(ItemStore.open(world / "items").item_ids(), 3))
    rows = [(user, item, 10 + place, 1) for user in ("u1", "u2") for place, item in enumerate([*known, "unknown"])]
    write(tmp_path / "logs/events", events([*rows, last_event(1000), ("u", known[0], 0, 1)]))
    tables, counts = build(tmp_path, config(copair={"min_npmi": -1.0}), "copair", store=ItemStore.open(world / "items"))
    assert unordered(tables["copair"]["train"]) == set(itertools.combinations(sorted(known), 2))
    assert counts["copair"]["dropped_rows_not_in_store"] == 3  # twice `unknown`, and `z`
    assert "data:image/webp" in (tmp_path / "tables/pairs.html").read_text()


def test_mistakes_are_told(tmp_path):
    write(tmp_path / "logs/events", events([last_event(1)]))
    with pytest.raises(SailError, match="no builder 'copairs'.*copair"):
        build_pairs(config(), tmp_path, tmp_path / "tables", ["copairs"])
    with pytest.raises(SailError, match="'id' reads config.logs.id_embeddings, which is empty"):
        build_pairs(config(), tmp_path, tmp_path / "tables", ["id"])
    with pytest.raises(SailError, match="There is no .*logs/searches.*config.logs.searches.path"):
        build_pairs(config(), tmp_path, tmp_path / "tables", ["search"])


def test_all_logs_that_are_missing_are_told_at_once(tmp_path):
    write(tmp_path / "logs/events", events([last_event(1)]))
    settings = with_logs(config(), id_embeddings={"cf": "vectors/cf"})
    with pytest.raises(SailError, match="no .*logs/live, no .*logs/hashtags, no .*logs/items") as error:
        build_pairs(settings, tmp_path, tmp_path / "tables", ["copair", "live", "hashtag", "cls", "rsdf", "id"])
    unset = ("live.path", "hashtags.path", "catalogue.path", "dense_features", "id_embeddings.cf")
    assert str(error.value).endswith(" ".join(f"--config.logs.{name}=''" for name in unset))


def test_a_builder_without_its_column_is_left_out(tmp_path):
    """Without summaries and labels, a catalogue tells times of publication alone."""
    write(tmp_path / "logs/events", events([("u1", "a", 5, 1), ("u1", "b", 6, 1), last_event(9)]))
    catalogue = dataclasses.replace(config().logs.catalogue, summary="", labels="")
    empty = {
        name: dataclasses.replace(getattr(config().logs, name), path="") for name in ("searches", "live", "hashtags")
    }
    settings = with_logs(
        config(copair={"min_users": 1}), catalogue=catalogue, dense_features="", id_embeddings={"cf": ""}, **empty
    )
    _, counts = build(tmp_path, settings)
    assert set(counts) == {"copair"}
    with pytest.raises(SailError, match="'cls' reads config.logs.catalogue.labels, which is empty"):
        build_pairs(settings, tmp_path, tmp_path / "tables", ["cls"])


def test_the_verb(drawn, tmp_path, capsys):
    folder, tables, _ = drawn
    path = tmp_path / "config.json"
    path.write_text("{}")
    words = ["--config", str(path), "--source", str(folder), "--output", str(tmp_path / "tables")]
    assert main(["pairs", *words, "--only", "hashtag,cls"]) == 0
    assert logs.read(tmp_path / "tables/hashtag.parquet") == tables["hashtag"]
    assert "pairs.json" in capsys.readouterr().out
    assert main(["pairs", *words, "--only", "hashtags"]) == 2
    assert "Did you mean hashtag" in capsys.readouterr().err


def test_times_are_checked_before_a_build(tmp_path):
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\nu,a,01/31/2024\nu,b,02/01/2024\n")
    settings = config()
    events = dataclasses.replace(settings.logs.events, path="events.csv", flags=(), watch_share="")
    with pytest.raises(SailError, match="no times; the first is '01/31/2024'"):
        build_pairs(with_logs(settings, events=events), tmp_path, tmp_path / "out", ["copair"])


def test_a_table_without_rows_is_an_error_that_names_what_took_them(tmp_path):
    """The other tables are written, and all counts."""
    export = tmp_path / "export"
    write(export / "logs/events", events([("u1", "a", 5, 0), ("u1", "b", 6, 0), ("u2", "a", 7, 0)]))
    with pytest.raises(SailError, match=r"copair\.parquet has no row: of 3 rows .* rows_below_threshold 3; change"):
        build_pairs(config(), export, tmp_path / "out", ["copair"])
    assert json.loads((tmp_path / "out/pairs.json").read_text())["builders"]["copair"]["dropped_rows_unusable"] == 0


@pytest.mark.parametrize("line", ["u,b,6,too many", 'u,"never closed,6'])
@pytest.mark.parametrize("verb", [("pairs", "--only=copair"), ("sequences",)])
def test_a_row_that_cannot_be_read_is_an_error_of_one_line(tmp_path, capsys, verb, line):
    (tmp_path / "events.csv").write_text(f"user_id,item_id,timestamp\nu,a,5\n{line}\nu,c,7\n")
    (tmp_path / "config.json").write_text("{}")
    words = ["--config", str(tmp_path / "config.json"), "--source", str(tmp_path), "--output", str(tmp_path / "out")]
    log = [f"--config.logs.events.{name}" for name in ("path=events.csv", "flags=()", "watch_share=''")]
    sequences = ["--config.sequences.single_positives=1", "--config.sequences.multi_positives=1"]
    assert main([*verb, *words, *log, *sequences]) == 2
    said = capsys.readouterr()
    assert "events.csv: cells are separated by commas." in said.out
    assert "events.csv, record 'row 2': the row " in said.err


# ---------------------------------------------------------------------------------------------------------- weights


def weights_of(path):
    rows = pq.read_table(path).to_pylist()
    return {(row["query_id"] or row["query_text"], row["target_id"]): row["weight"] for row in rows}


@pytest.mark.parametrize("weight", ["multiplicity", "strength"])
def test_weights_are_how_often_and_how_strongly_pairs_occur(tmp_path, weight):
    logs.drawn_export(tmp_path)
    wide = {"per_item": 1000, "new_test_pairs": False}
    base = config(
        weight=weight,
        copair={"window_seconds": 120, "neighbours": 6, "min_users": 1, "min_npmi": -1.0} | wide,
        q2i_search={"min_clicks": 1, "per_query": 1000},
    )
    plain = dataclasses.replace(base, builders=dataclasses.replace(base.builders, weight=""))
    names = ("copair", "q2i_search", "cls")
    without, _ = build(tmp_path, plain, *names, output=tmp_path / "plain")
    tables, _ = build(tmp_path, base, *names)
    assert tables == without  # the rows and their order are the same
    assert "weight" not in pq.read_schema(tmp_path / "plain/copair.parquet").names
    found = weights_of(tmp_path / "tables/copair.parquet")
    brute = brute_copair(export_events(tmp_path), 899, base.builders.copair)
    expected = collections.defaultdict(list)
    for (a, b, _), (n, npmi) in brute.items():
        expected[a, b].append(n if weight == "multiplicity" else max(npmi, 0))
    assert {tuple(sorted(pair)) for pair in found} == set(expected)
    for pair, value in found.items():
        assert min(abs(value - of) for of in expected[tuple(sorted(pair))]) < 1e-6
    shown = pl.read_parquet(tmp_path / "logs/searches/0.parquet").filter(pl.col("timestamp") <= 899)
    sums = shown.group_by("query", "item_id").agg(clicks=pl.col("clicked").sum(), shown=pl.len())
    clicks = {(query, item): (clicks, of) for query, item, clicks, of in sums.iter_rows()}
    searched = pq.read_table(tmp_path / "tables/q2i_search.parquet").to_pylist()
    assert searched
    for row in searched:
        of = clicks[row["query_text"], row["target_id"]]
        assert row["weight"] == pytest.approx(of[0] if weight == "multiplicity" else of[0] / of[1])
    assert set(weights_of(tmp_path / "tables/cls.parquet").values()) == {1.0}


def test_every_builder_writes_weights_that_can_be_drawn_by(tmp_path):
    logs.drawn_export(tmp_path)
    settings = config(weight="strength", copair=LOOSE, live=LOOSE, rsdf={"min_cosine": -1.0})
    build(tmp_path, with_logs(settings, id_embeddings={"like": "vectors/id_like"}))
    for name in BUILDERS:
        table = PairTable.open(tmp_path / f"tables/{name}.parquet", "")
        order = row_order(table, 0, groups=0, by_weight=True)
        assert 0 <= order[0] < len(table)


def test_multiplicity_counts_once(tmp_path):
    logs.drawn_export(tmp_path)
    with pytest.raises(SailError, match="would count twice"):
        build(tmp_path, config(weight="multiplicity", copair={"repeat": True}), "copair")


def test_a_folder_of_parts_in_the_place_of_a_table_is_refused_and_other_tables_are_built(tmp_path):
    logs.drawn_export(tmp_path)
    parts = tmp_path / "tables" / "copair.parquet"
    parts.mkdir(parents=True)
    write_pairs(parts / "train-00000.parquet", [(Pair("a", None, "b"), "train")])
    with pytest.raises(SailError, match=r"copair.parquet is a folder of parts, as Spark writes it: remove it, or name"):
        build(tmp_path, config(), "copair")
    assert (parts / "train-00000.parquet").is_file()
    tables, _ = build(tmp_path, config(), "q2i_search")
    assert tables["q2i_search"]["train"]
