"""Splits by users, alone and with the cut: each side is that of a log without the other side's users."""

import dataclasses
import hashlib

import polars as pl
import pytest
import small_logs as logs
import small_sequences
from small_logs import build, config, with_logs

from sail_jax.cli import main
from sail_jax.config.logs import EventLogConfig
from sail_jax.errors import SailError

SHARE, SEED = 0.4, 3
# No rule of these settings chooses among equals, and none drops what is a candidate of the other side.
OPEN = {
    "copair": {"min_users": 1, "min_npmi": -1.0, "per_item": 10_000, "window_seconds": 300, "new_test_pairs": False},
    "live": {"min_users": 1, "min_npmi": -1.0, "per_item": 10_000, "window_seconds": 5_000},
    "search": {"min_clicks": 1, "per_query": 1000, "per_item": 10_000},
    "q2i_search": {"min_clicks": 1, "per_query": 1000},
    "q2i_score": {"min_shown": 1, "per_query": 1000},
}


def is_held(user):
    return hashlib.md5(f"{SEED}\tuser\t{user}".encode()).hexdigest() < f"{int(SHARE * 2**32):08x}"


def settings(split):
    base = with_logs(config(**OPEN), split=split, test_users=SHARE)
    return dataclasses.replace(base, seed=SEED)


def export(folder, keep=lambda user: True):
    """The drawn export with some users alone; two users of no positive event, one of each side, hold the time span."""
    logs.drawn_export(folder)
    named = [
        next(f"{name}{n}" for n in range(99) if is_held(f"{name}{n}") == held) for name, held in [("a", 0), ("b", 1)]
    ]
    ends = logs.events([(user, "v1", time, 0) for user in named for time in (0, 1000)])
    rows = pl.read_parquet(folder / "logs/events/0.parquet")
    rows = pl.concat([rows, pl.DataFrame(ends, schema=rows.schema)])
    searches = pl.read_parquet(folder / "logs/searches/0.parquet")
    users = pl.Series([f"u{number % 50}" for number in range(len(searches))])
    for name, frame in (("events", rows), ("searches", searches.with_columns(user_id=users)), ("live", None)):
        frame = pl.read_parquet(folder / f"logs/{name}/0.parquet") if frame is None else frame
        frame.filter(pl.col("user_id").map_elements(keep, pl.Boolean)).write_parquet(folder / f"logs/{name}/0.parquet")
    return folder


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """The whole export, that of the train users and that of the test users."""
    folder = tmp_path_factory.mktemp("exports")
    keeps = {"whole": lambda user: True, "train": lambda user: not is_held(user), "test": is_held}
    return {name: export(folder / name, keep) for name, keep in keeps.items()}


@pytest.mark.slow
@pytest.mark.parametrize("split", ["user", "both"])
def test_each_side_of_pairs_is_that_of_its_users_alone(exports, tmp_path, split):
    alone = "user" if split == "user" else "time"
    whole, counts = build(exports["whole"], settings(split), *OPEN, output=tmp_path / "whole")
    train, _ = build(exports["train"], settings(alone), *OPEN, output=tmp_path / "train")
    test, _ = build(exports["test"], settings(alone), *OPEN, output=tmp_path / "test")
    for name in OPEN:
        assert whole[name]["train"] == train[name]["train"] and whole[name]["train"], name

        def seen(rows, name=name):
            """What of these rows a test row must not repeat if they are of train: the query, or the pair."""
            return {row[0] if name.startswith("q2i") else row[:2] for row in rows}

        expected = [
            row for row in test[name]["test"] if name == "copair" or not seen([row]) & seen(train[name]["train"])
        ]
        if name == "copair" or (split == "user" and name != "q2i_score"):  # whose average rate is that of train
            assert whole[name]["test"] == expected, name
        # What only the test users themselves had before the cut is no reason to drop a row.
        others = seen(whole[name]["test"]) - seen(expected)
        assert seen(expected) <= seen(whole[name]["test"]) and others <= seen(test[name]["train"]), name
        assert name not in ("copair", "live") or whole[name]["test"], name
        dropped = {key: of for key, of in counts[name].items() if key.startswith("dropped_")}
        assert ("dropped_rows_of_no_side" in dropped) == (split == "both")
        assert counts[name]["candidates"] + sum(of for key, of in dropped.items() if "_rows_" in key) > 0


def test_rows_of_neither_side_are_counted(exports, tmp_path):
    _, counts = build(exports["whole"], settings("both"), "copair", "q2i_search", output=tmp_path)
    rows = pl.read_parquet(exports["whole"] / "logs/events/0.parquet")
    positive = rows.filter(pl.any_horizontal(logs.FLAGS))
    neither = [is_held(user) != (time > 900) for user, time in positive.select("user_id", "timestamp").iter_rows()]
    assert counts["copair"]["dropped_rows_of_no_side"] == sum(neither) > 0
    rows = pl.read_parquet(exports["whole"] / "logs/searches/0.parquet")
    neither = [is_held(user) != (time > 900) for user, time in rows.select("user_id", "timestamp").iter_rows()]
    assert counts["q2i_search"]["dropped_rows_of_no_side"] == sum(neither) > 0


# ------------------------------------------------------------------------------------------------------- sequences


def sequence_settings(split):
    base = small_sequences.config_of(
        constructions=("seq_collab_single", "seq_collab_multi", "histories", "eval_vanilla")
    )
    return dataclasses.replace(with_logs(base, split=split, test_users=SHARE), seed=SEED)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["user", "both"])
def test_sequences_of_users_are_of_one_side_and_train_knows_nothing_of_test_users(tmp_path, split):
    world = small_sequences.make_world(0)
    ends = [(user, "item 0", time, 0) for user in ("ends", "none") for time in (0, 100)]
    assert {is_held("ends"), is_held("none")} == {False, True}
    world = dataclasses.replace(world, events=[*world.events, *ends])

    def built(name, by, keep=lambda user: True):
        events = [event for event in world.events if keep(event[0])]
        source = small_sequences.write_logs(dataclasses.replace(world, events=events), tmp_path / name)
        return small_sequences.build(sequence_settings(by), source, tmp_path / f"{name}-tables")[0]

    alone = "user" if split == "user" else "time"
    whole = built("whole", split)
    train, test = built("train", alone, lambda user: not is_held(user)), built("test", alone, is_held)
    for name, found in whole.items():
        assert found["train"] == train[name]["train"]
        assert bool(found["train"]) == (name != "eval_vanilla")
        if name != "seq_collab_single":  # whose consumers are those of train
            assert found["test"] == test[name]["test"]
        assert bool(found["test"]) == (name in ("seq_collab_multi", "eval_vanilla")) or name == "seq_collab_single"
        assert all(is_held(row.user_id) == (side == "test") for side, rows in found.items() for row in rows)


def test_a_test_sequence_may_begin_before_the_cut(tmp_path):
    """Its items are what the user had, on both sides, as those of a split in time are."""
    user = next(f"u{n}" for n in range(99) if is_held(f"u{n}"))
    rows = [(user, item, time, 5) for item, time in (("a", 10), ("b", 20), ("c", 30), ("d", 99))]
    world = small_sequences.World([*rows, ("ends", "x", 0, 0), ("ends", "x", 100, 0)], {"a": ["food"]}, {})
    source = small_sequences.write_logs(world, tmp_path)
    found, summary = small_sequences.build(sequence_settings("both"), source, tmp_path / "tables", embeddings=None)
    (row,) = found["eval_vanilla"]["test"]
    assert (row.user_id, list(row.item_ids), row.target_id) == (user, ["a", "b", "c"], "d")
    assert summary["split"] == {"by": "both", "test_users": SHARE} and not found["histories"]["train"]


# ------------------------------------------------------------------------------------------------------- for the user


def test_a_column_and_users_cannot_both_split(tmp_path):
    logs.write(tmp_path / "logs/events", logs.events([("u", "a", 0, 1)]))
    split = with_logs(config(), split="user", events=EventLogConfig(split="like"))
    with pytest.raises(SailError, match="config.logs.split is 'user'.*Set config.logs.split='time'"):
        build(tmp_path, split, "copair")


def test_the_command_says_how_rows_are_split(tmp_path, capsys):
    logs.drawn_export(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    words = ["--config", str(tmp_path / "config.json"), "--source", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main(["pairs", *words, "--only", "copair", "--config.logs.split=both", "--config.logs.test_users=0.5"]) == 0
    assert "a share of 0.5 of the users after the cut" in capsys.readouterr().out
