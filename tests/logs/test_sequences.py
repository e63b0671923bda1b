"""Sequences from hand-made logs, against the rules written out in plain Python."""

import collections
import dataclasses
import hashlib
import itertools

import ibis
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_logs import with_logs
from small_sequences import SIZE, World, build, config_of, make_world, rows_of, write_logs

from sail_jax import cli
from sail_jax import config as config_lib
from sail_jax.config.logs import EngineConfig
from sail_jax.data.pipeline import open_store
from sail_jax.data.sequence_tables import Sequence, SequenceTable
from sail_jax.errors import SailError
from sail_jax.logs import outputs
from sail_jax.logs.rules import Logs
from sail_jax.logs.sequences import item_facts
from sail_jax.logs.sequences.build import build_sequences
from sail_jax.vectors.embedding_set import EmbeddingInfo, write_info, write_part


@pytest.fixture(scope="module")
def logs():
    return make_world(0)


@pytest.fixture(scope="module")
def source(logs, tmp_path_factory):
    return write_logs(logs, tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    """(tables, summary) of the whole world, in one part."""
    return build(config_of(), source, tmp_path_factory.mktemp("built"))


def test_a_build_that_is_broken_off_goes_on_with_the_next_table(built, source, tmp_path, monkeypatch):
    write, tables = outputs.write_sequences, []

    def stops(path, batches):
        tables.append(path.name)
        if len(tables) == 3:
            raise KeyboardInterrupt
        return write(path, batches)

    monkeypatch.setattr(outputs, "write_sequences", stops)
    with pytest.raises(KeyboardInterrupt):
        build(config_of(), source, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name in tables[2:]]
    found, summary = build(config_of(), source, tmp_path)
    assert len(tables) == len(set(tables)) + 1 == 7  # one table was begun twice
    assert found == built[0]
    assert all(summary[name] == built[1][name] for name in ("tables", "events"))


# -------------------------------------------------------------------------------------- the rules, in plain Python

CUT = 80  # 0 .. 100, of which the last fifth is test


def histories(world, positives):
    """user -> [(time, item)], each item at its first event that counts."""
    first = collections.defaultdict(dict)
    for user, item, time, count in world.events:
        if count >= positives:
            first[user][item] = min(time, first[user].get(item, time))
    return {user: sorted((time, item) for item, time in items.items()) for user, items in first.items()}


def targets(world, positives, split, history):
    """(user, target, the items before it) of all windows, those with a short history too."""
    for user, entries in histories(world, positives).items():
        names = [item for _, item in entries]
        train = sum(time <= CUT for time, _ in entries)
        if split == "test":
            places = [len(names) - 1] if entries[-1][0] > CUT else []
        else:
            places = [p for p in range(train - 1, -1, -SIZE["stride"]) if p > 0 or p == train - 1][: SIZE["windows"]]
        for place in places:
            yield user, names[place], names[max(0, place - history) : place]


def jaccard(a, b):
    return len(set(a) & set(b)) / len(set(a) | set(b)) if set(a) | set(b) else 0


def cosine(world, a, b):
    a, b = world.vectors[a], world.vectors[b]
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def consumers(world):
    users = collections.defaultdict(set)
    for user, item, time, positives in world.events:
        if positives >= 1 and time <= CUT:
            users[item].add(user)
    return users


def cluster(world, item):
    return (world.labels.get(item) or [None])[0]


def expected_kept(world, name, user, target, before, users):
    """The items before a target that a construction keeps."""
    if name == "seq_content_single":
        known = [item for item in before if {item, target} <= set(world.vectors)]
        return [item for item in known if cosine(world, item, target) >= 0.5]
    if name == "seq_content_multi":
        return [item for item in before if jaccard(world.labels.get(item, ()), world.labels.get(target, ())) > 0.5]
    if name == "seq_collab_single":
        return [item for item in before if jaccard(users[item] - {user}, users[target] - {user}) >= 0.02]
    if name == "eval_filtered":
        return [item for item in before if cluster(world, target) and cluster(world, item) == cluster(world, target)]
    return before


PEAKS = {"seq_content_single": 3, "seq_collab_single": 3}
HISTORY = {"eval_vanilla": SIZE["vanilla_history"]}
TABLES = [
    (name, split)
    for name in ("seq_content_single", "seq_content_multi", "seq_collab_single", "seq_collab_multi")
    for split in ("train", "test")
] + [("eval_vanilla", "test"), ("eval_filtered", "test")]


def windows_of(world, name, split):
    users = consumers(world)
    for user, target, before in targets(world, PEAKS.get(name, 1), split, HISTORY.get(name, SIZE["history"])):
        yield user, target, before, expected_kept(world, name, user, target, before, users)


@pytest.mark.parametrize(("name", "split"), TABLES)
def test_targets_and_items_are_those_of_the_rules(built, logs, name, split):
    tables, summary = built
    found = {(row.user_id, row.target_id): row.item_ids for row in tables[name][split]}
    assert len(found) == len(tables[name][split])
    expected = {}
    windows = list(windows_of(logs, name, split))
    for user, target, before, kept in windows:
        if len(kept) >= SIZE["min_items"]:
            expected[user, target] = before, kept
    assert len(expected) > 8  # else nothing is tested
    for row in tables[name][split]:
        assert list(row.seen_ids) == expected[row.user_id, row.target_id][0][-SIZE["seen"] :]
    assert set(found) == set(expected)
    for key, items in found.items():
        before, kept = expected[key]
        assert len(items) == min(SIZE["length"], len(kept))
        assert list(items) == [item for item in before if item in set(items)]  # the oldest first, each once
        assert set(items) <= set(kept)
        if name.startswith("seq_content"):
            assert list(items) == kept[-SIZE["length"] :]
        if name.startswith("seq_collab"):
            check_proportions(logs, before, kept, items)
    counts = summary["tables"][name][split]
    assert counts["users"] == len({window[0] for window in windows})
    assert counts["targets"] == len(windows)
    assert counts["short_history"] == sum(len(before) < SIZE["min_items"] for _, _, before, _ in windows)
    assert counts["sequences"] == len(found)
    assert sum(counts["lengths"].values()) == len(found)
    assert counts["lengths"] == {str(k): v for k, v in sorted(collections.Counter(map(len, found.values())).items())}
    assert counts["candidates"] == sum(len(before) for _, _, before, _ in windows)
    assert counts["kept"] == sum(len(kept) for *_, kept in windows)
    dropped = counts["short_history"] + counts["unknown_target"] + counts["few_kept"]
    assert counts["targets"] == dropped + counts["sequences"]


def check_proportions(world, before, kept, items):
    """Seats go to the cluster with the highest share / (seats + 1/2), as in Sainte-Lague; ties may go either way."""
    shares = collections.Counter(cluster(world, item) for item in before)
    free = collections.Counter(cluster(world, item) for item in kept)
    wanted, seats = [], collections.Counter()
    for _ in items:
        best = max((c for c in free if free[c] > seats[c]), key=lambda c: shares[c] / (seats[c] + 0.5))
        wanted.append(shares[best] / (seats[best] + 0.5))
        seats[best] += 1
    got = collections.Counter(cluster(world, item) for item in items)
    priorities = sorted((shares[c] / (rank + 0.5) for c, count in got.items() for rank in range(count)), reverse=True)
    assert priorities == pytest.approx(wanted)


def test_unknown_targets_are_counted(built, logs):
    unlabelled = [w for w in windows_of(logs, "seq_content_multi", "train") if not logs.labels.get(w[1])]
    long = [w for w in unlabelled if len(w[2]) >= SIZE["min_items"]]
    assert built[1]["tables"]["seq_content_multi"]["train"]["unknown_target"] == len(long) > 0
    without = [w for w in windows_of(logs, "seq_content_single", "train") if w[1] not in logs.vectors]
    long = [w for w in without if len(w[2]) >= SIZE["min_items"]]
    assert built[1]["tables"]["seq_content_single"]["train"]["unknown_target"] == len(long)


def test_events_are_counted(built, logs):
    positive = [event for event in logs.events if event[3] >= 1]
    assert built[1]["events"] == {
        "rows": len(logs.events),
        "positive": len(positive),
        "not_in_store": 0,
        "users": len({event[0] for event in positive}),
    }
    assert built[1]["cut"] == {"test_share": 0.2, "last_second_of_train": CUT}


# ------------------------------------------------------------------------------------------- leakage and determinism


def test_what_happens_after_the_cut_changes_no_train_sequence(built, logs, source, tmp_path):
    rng = np.random.default_rng(5)
    names = list(logs.labels)
    events = [event for event in logs.events if event[2] <= CUT]
    users = sorted({user for user, *_ in logs.events})
    events += [(str(rng.choice(users)), str(rng.choice(names)), int(rng.integers(CUT + 1, 100)), 5) for _ in range(300)]
    events.append(("ends", names[0], 100, 5))  # so that the cut stays where it is
    changed = write_logs(dataclasses.replace(logs, events=events), tmp_path / "export")
    tables, summary = build(config_of(), changed, tmp_path / "out")
    assert summary["cut"] == built[1]["cut"]
    for name, splits in tables.items():
        assert splits["train"] == built[0][name]["train"]
        assert splits["test"] != built[0][name]["test"]


def test_test_targets_lie_after_the_cut_and_train_items_before(built, logs):
    first = {
        positives: {u: {i: t for t, i in e} for u, e in histories(logs, positives).items()} for positives in (1, 3)
    }
    for name, splits in built[0].items():
        times = first[PEAKS.get(name, 1)]
        for split, rows in splits.items():
            for row in rows:
                at = times[row.user_id]
                assert (at[row.target_id] > CUT) == (split == "test")
                assert row.target_id not in row.item_ids
                assert all((at[item], item) < (at[row.target_id], row.target_id) for item in row.item_ids)


def test_the_order_of_the_log_and_threads_change_nothing(built, logs, tmp_path):
    events = list(logs.events)
    np.random.default_rng(1).shuffle(events)
    events = [(str(user), str(item), int(time), int(count)) for user, item, time, count in events]
    shuffled = write_logs(dataclasses.replace(logs, events=events), tmp_path / "export")
    tables, summary = build(with_logs(config_of(), engine=EngineConfig(threads=3)), shuffled, tmp_path / "out")
    assert tables == built[0]
    assert summary["tables"] == built[1]["tables"] and summary["events"] == built[1]["events"]


def test_the_seed_changes_draws_alone(built, source, tmp_path):
    config = dataclasses.replace(config_of(), seed=1)
    tables, summary = build(config, source, tmp_path)
    assert summary["tables"] == built[1]["tables"]
    for name in ("seq_content_single", "seq_content_multi"):
        assert tables[name] == built[0][name]
    for name in ("seq_collab_multi", "eval_vanilla"):
        ours, theirs = tables[name]["test"], built[0][name]["test"]
        assert [row[::2] for row in ours] == [row[::2] for row in theirs]
        assert ours != theirs


def test_draws_are_uniform(tmp_path):
    """Each of the last twelve items is as likely as the others."""
    events = [(f"u{u}", f"i{i:02}", i, 1) for u in range(600) for i in range(14)]
    world = World(events, {"i00": ["x"]}, {"i00": np.ones(2)})
    source = write_logs(world, tmp_path / "export")
    tables, _ = build(config_of(constructions=("eval_vanilla",)), source, tmp_path / "out")
    counts = collections.Counter(itertools.chain.from_iterable(row.item_ids for row in tables["eval_vanilla"]["test"]))
    assert set(counts) == {f"i{i:02}" for i in range(1, 13)}
    assert min(counts.values()) > 240 and max(counts.values()) < 360  # 300 expected, deviation 12


# --------------------------------------------------------------------------------------------------------- the parts


def tables_of(settings, **tables):
    """Logs with some tables in memory, of which every event lies before the cut."""
    return Logs(settings, 0, {name: ibis.memtable(rows) for name, rows in tables.items()}, lambda table, _: table)


@pytest.mark.parametrize("users", [4, 16, 1000])
def test_jaccard_of_consumers(users):
    rng = np.random.default_rng(2)
    sets = {f"i{i}": set(rng.choice(60, rng.integers(1, 50), replace=False).tolist()) for i in range(12)}
    rows = [(f"u{u}", item, 0, 1) for item, some in sets.items() for u in some] * 2  # each twice
    events = pl.DataFrame(rows, schema=["user", "item", "time", "positives"], orient="row").to_arrow()
    found = item_facts.consumers(tables_of(config_of(behaviour_users=users), events=events))
    pairs = ibis.memtable({"own_id": [f"u{u}" for u in range(0, 60, 7)]}).cross_join(found)
    pairs = pairs.cross_join(found.rename(target="item", target_users="users", target_reach="reach"))
    pairs = pairs.mutate(own=item_facts.hash_of_user(pairs.own_id))
    got = pairs.select("item", "target", "own_id", jaccard=item_facts.consumers_jaccard(pairs)).to_pyarrow().to_pylist()
    assert len(got) == 12 * 12 * 9
    hashes = {u: hashlib.md5(f"u{u}".encode()).hexdigest() for u in range(60)}
    for row in got:
        one, two = ({u for u in sets[row[key]] if f"u{u}" != row["own_id"]} for key in ("item", "target"))
        kept = [sorted(hashes[u] for u in sets[row[key]])[:users] for key in ("item", "target")]
        reach = min((some[-1] for some in kept if len(some) == users), default="~")
        near = jaccard(*({u for u in some if hashes[u] <= reach} for some in (one, two)))
        assert row["jaccard"] == pytest.approx(near)
        assert users < 1000 or row["jaccard"] == pytest.approx(jaccard(one, two))


def test_label_sets():
    rows = {"item": ["a", "a", "b", "c"], "labels": [["y", "x"], ["x", "y", "x"], [], ["z"]]}
    found = item_facts.labels(tables_of(config_of(cluster_level=1), catalogue=pa.table(rows)))
    facts = {row["item"]: (sorted(row["labels"]), row["cluster"]) for row in found.to_pyarrow().to_pylist()}
    # Of a repeated item the labels that sort first count, each once; an item without labels has no facts.
    assert facts == {"a": (["x", "y"], "y"), "c": (["z"], "z")}


def test_embeddings_of_a_folder_that_embed_wrote(built, logs, source, tmp_path):
    info = EmbeddingInfo("model", "0", 8, "float32", "VTA", (), "")
    (tmp_path / "set").mkdir()
    names = list(logs.vectors)
    for number in range(2):
        some = names[number::2]
        z = np.stack([logs.vectors[name] for name in some]).astype(np.float32) * 3
        write_part(tmp_path / "set" / f"part-{number:05d}.parquet", some, z, "float32")
    write_info(tmp_path / "set", info)
    config = config_of(constructions=("seq_content_single",))
    tables, _ = build(config, source, tmp_path / "out", embeddings=tmp_path / "set")
    assert tables["seq_content_single"] == built[0]["seq_content_single"]


def test_items_that_the_store_lacks(world_store, source, tmp_path):
    store, known, world = world_store
    tables, summary = build(config_of(), write_logs(world, tmp_path / "export"), tmp_path / "out", store=store)
    positive = [event for event in world.events if event[3] >= 1]
    assert summary["events"]["not_in_store"] == sum(event[1] not in known for event in positive) > 0
    seen = {
        item for splits in tables.values() for rows in splits.values() for row in rows for item in (*row[1], row[2])
    }
    assert seen and seen <= known
    alone = dataclasses.replace(world, events=[e for e in world.events if e[1] in known or e[3] == 0])
    expected, _ = build(config_of(), write_logs(alone, tmp_path / "less"), tmp_path / "expected")
    assert tables == expected


@pytest.fixture
def world_store(settings):
    """The shared store, and a log of its items and of others."""
    store = open_store(config_lib.build(settings))
    made, ids = make_world(3, items=60), list(itertools.islice(store.item_ids(), 45))
    name = {f"item {i}": item_id for i, item_id in enumerate(ids)}
    events = [(user, name.get(item, item), *rest) for user, item, *rest in made.events]
    labels = {name.get(item, item): some for item, some in made.labels.items()}
    return store, set(ids), World(events, labels, {name.get(i, i): vector for i, vector in made.vectors.items()})


# ------------------------------------------------------------------------------------------- nothing, and wrong input


def test_times_and_rows_are_checked_before_a_build(tmp_path):
    world = World([("u", "a", 1, 1), ("u", "b", 9, 1)], {"a": ["x"]}, {"a": np.ones(2)})
    source = write_logs(world, tmp_path / "export")
    path = source / "logs" / "events.parquet"
    pl.read_parquet(path).with_columns(timestamp=pl.lit("01/31/2024")).write_parquet(path)
    with pytest.raises(SailError, match="no times; the first is '01/31/2024'"):
        build(config_of(), source, tmp_path / "out")
    pl.read_parquet(path).write_csv(path := path.with_suffix(".csv"))
    with path.open("a") as file:
        file.write("u,a,1\n")
    settings = config_of()
    events = dataclasses.replace(settings.logs.events, path="logs/events.csv")
    settings = dataclasses.replace(settings, logs=dataclasses.replace(settings.logs, events=events))
    with pytest.raises(SailError, match=r"events\.csv, record 'row 3': the row has 3 cells"):
        build(settings, source, tmp_path / "out")


def test_no_positive_event(tmp_path):
    world = World([("u", "a", 1, 0), ("u", "b", 9, 0)], {"a": ["x"]}, {"a": np.ones(2)})
    with pytest.raises(SailError, match="no sequence: of the events, rows 2, positive 0, not_in_store 0, users 0"):
        build(config_of(), write_logs(world, tmp_path / "export"), tmp_path / "out")
    tables = {path.stem: rows_of(path) for path in (tmp_path / "out").glob("*.parquet")}
    assert all(rows == {"train": [], "test": []} for rows in tables.values()) and len(tables) == 6


def test_nothing_of_three_positives(tmp_path):
    events = [("u", f"i{i}", i, 1) for i in range(20)]
    world = World(events, {"i0": ["x"]}, {"i0": np.ones(2)})
    tables, _ = build(config_of(), write_logs(world, tmp_path / "export"), tmp_path / "out")
    assert tables["seq_content_single"] == tables["seq_collab_single"] == {"train": [], "test": []}
    assert len(tables["eval_vanilla"]["test"]) == 1


def test_equal_times_are_ordered_by_item(tmp_path):
    events = [("u", name, 5, 1) for name in "cab"] + [("u", "z", 0, 0), ("u", "z", 10, 0)]
    world = World(events, {"a": ["x"]}, {"a": np.ones(2)})
    tables, _ = build(
        config_of(constructions=("seq_collab_multi",)), write_logs(world, tmp_path / "export"), tmp_path / "out"
    )
    assert tables["seq_collab_multi"] == {"train": [Sequence("u", ("a", "b"), "c", ("a", "b"))], "test": []}


def test_histories_hold_all_that_users_had_before_the_cut(logs, source, tmp_path):
    """Whatever the sizes of other tables: each item once, the last one as the target."""
    tables, _ = build(config_of(constructions=("histories",)), source, tmp_path)
    found = {row.user_id: [*row.item_ids, row.target_id] for row in tables["histories"]["train"]}
    before = {user: [item for time, item in events if time <= CUT] for user, events in histories(logs, 1).items()}
    assert found == {user: items for user, items in before.items() if len(items) > 1}
    assert not tables["histories"]["test"]


def test_what_is_missing_is_skipped_and_said(source, tmp_path):
    tables, summary = build(config_of(), source, tmp_path, embeddings=None)
    assert "seq_content_single" not in tables and "--embeddings" in summary["skipped"]["seq_content_single"]
    config = config_of()
    config = dataclasses.replace(
        config, logs=dataclasses.replace(config.logs, catalogue=dataclasses.replace(config.logs.catalogue, labels=""))
    )
    (tmp_path / "no labels").mkdir()
    tables, summary = build(config, source, tmp_path / "no labels", embeddings=None)
    assert set(tables) == {"eval_vanilla"}
    assert "config.logs.catalogue.labels" in summary["skipped"]["eval_filtered"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"constructions": ("seq_content_single",)}, "seq_content_single needs content embeddings: give --embeddings"),
        ({"constructions": ()}, "constructions is empty"),
        ({"single_positives": 6}, "names 5: lower config.sequences.single_positives"),
        ({"min_items": 7}, "min_items is 7, more than config.sequences.length, 6"),
    ],
)
def test_settings_that_cannot_be(source, tmp_path, changes, message):
    with pytest.raises(SailError, match=message):
        build_sequences(config_of(**changes), source, tmp_path)


def test_bad_columns(logs, source, tmp_path):
    events = pq.read_table(source / "logs" / "events.parquet")
    bad = write_logs(logs, tmp_path / "export")
    pq.write_table(events.drop_columns("like"), bad / "logs" / "events.parquet")
    with pytest.raises(SailError, match="no column 'like'"):
        build_sequences(config_of(), bad, tmp_path / "out")
    with pytest.raises(SailError, match="no column 'vector'"):
        build_sequences(config_of(), source, tmp_path / "out", embeddings=source / "logs" / "items.parquet")
    assert list((tmp_path / "out").iterdir()) == []  # and no folder of intermediate files


def test_the_verb(built, source, tmp_path, capsys):
    config = tmp_path / "config.json"
    config_lib.save(config_of(), config)
    words = ["sequences", "--config", str(config), "--source", str(source), "--output", str(tmp_path / "tables")]
    assert cli.main([*words, "--config.sequences.min_items=3"]) == 0
    out = capsys.readouterr().out
    assert "seq_content_single was not built" in out and str(tmp_path / "tables" / "sequences.json") in out
    assert len(SequenceTable.open(tmp_path / "tables" / "seq_content_multi.parquet")) > 0
    assert cli.main([*words[:-1], str(tmp_path / "none"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("-- seq_content_multi\n") and "-- eval_filtered\n" in printed
    assert not (tmp_path / "none").exists()
    assert cli.main([*words[:-1], str(tmp_path), "--workdir", str(tmp_path / "nothing")]) == 2
