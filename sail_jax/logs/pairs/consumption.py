"""Builds i2i pairs from what users consumed: co-consumption of items and co-watch of live streams.

An item counts once per user, at the first event that passes the threshold. Two items of a user are a pair if the second
follows within the time window and among the next `neighbours` items, and both belong to the same split. Users are
partitioned by a hash, so that one partition is in memory at a time.

The strength of a pair is its normalised pointwise mutual information (Bouma 2009, "Normalized (pointwise) mutual
information in collocation extraction"), ln(p(a, b) / (p(a) p(b))) / -ln p(a, b), with probabilities over the users of
its
split: popular items that meet by chance score low.
"""

from pathlib import Path

import polars as pl

from sail_jax.logs.pairs.context import BuildContext, count, sink
from sail_jax.logs.pairs.item_pairs import PairRules, write_item_pairs
from sail_jax.logs.pairs.neighbours import neighbour_pairs
from sail_jax.logs.reader import count_rows, scan_events, scan_live


def build_copair(build: BuildContext, output: Path) -> dict[str, int]:
    """Writes the pairs of co-consumed items; returns counts."""
    rules = build.config.builders.copair
    events, enough = scan_events(build.config, build.source), pl.col("positives") >= rules.positives
    return _co_occurrence(build, "copair", "events", events, enough, output, rules.new_test_pairs, rules.repeat)


def build_live(build: BuildContext, output: Path) -> dict[str, int]:
    """Writes the pairs of co-watched live streams; returns counts."""
    rules = build.config.builders.live
    visits, enough = scan_live(build.config, build.source), pl.col("seconds") >= rules.min_seconds
    return _co_occurrence(build, "live", "live", visits, enough, output)


def _co_occurrence(
    build: BuildContext,
    name: str,
    log: str,
    events: pl.LazyFrame,
    enough: pl.Expr,
    output: Path,
    new_test_pairs: bool = True,
    repeat: bool = False,
) -> dict[str, int]:
    rules = getattr(build.config.builders, name)
    build.show(f"{name}: reading {getattr(build.config.logs, log).path}")
    encoded = build.catalogue.encode(events.filter(enough).select(pl.col("user").hash(), "item", "time"))
    folder = build.folder(name)
    scan = pl.scan_parquet(sink(encoded, folder / "events.parquet"))
    rows, complete = count_rows(build.config, build.source, log), count(events)
    known = scan.filter(pl.col("item").is_not_null())
    passed, usable = count(scan), count(known)
    candidates, popularity = build.folder(f"{name}.candidates"), []
    parts, users = build.parts(usable), {True: 0, False: 0}
    for part in range(parts):
        build.show(f"{name}: users, part {part + 1} of {parts}")
        mine = known if parts == 1 else known.filter(pl.col("user") % parts == part)
        first = (
            mine.group_by("user", "item")
            .agg(pl.col("time").min())
            .with_columns(test=pl.col("time") > build.cut)
            .collect(engine="streaming")
            .sort("user", "time", "item")
        )
        pairs = neighbour_pairs(first, ["user"], rules.neighbours, rules.window_seconds)
        pairs.write_parquet(candidates / f"{part}.parquet", compression="lz4")
        popularity.append(first.group_by("item", "test").agg(users=pl.len()))
        for test in users:
            users[test] += first.filter(pl.col("test") == test)["user"].n_unique()
    popular = pl.concat(popularity).group_by("item", "test").agg(pl.col("users").sum())
    thresholds = PairRules(
        min_support=rules.min_users,
        per_item=rules.per_item,
        min_strength=rules.min_npmi,
        strength=lambda pairs: with_npmi(pairs, popular, users),
        new_test_pairs=new_test_pairs,
        repeat=repeat,
    )
    found = write_item_pairs(build, name, candidates, thresholds, output)
    dropped = {"dropped_rows_unusable": rows - complete, "dropped_rows_below_threshold": complete - passed}
    dropped |= {"dropped_rows_not_in_store": passed - usable}
    return {"rows_read": rows, **dropped} | found


def with_npmi(pairs: pl.DataFrame, popular: pl.DataFrame, users: dict[bool, int]) -> pl.DataFrame:
    """Adds the normalised pointwise mutual information of pairs as the column `strength` (Float32).

    Args:
        pairs: a, b (UInt32), test (Boolean), n (UInt32, users who consumed both).
        popular: item, test, users (users who consumed the item).
        users: whether the split is test -> number of its users.
    """
    both = pl.col("n") / pl.col("total")
    information = (both * pl.col("total") / pl.col("users") * pl.col("total") / pl.col("users_b")).log()
    return (
        pairs.join(popular, left_on=["a", "test"], right_on=["item", "test"], how="left")
        .join(popular, left_on=["b", "test"], right_on=["item", "test"], how="left", suffix="_b")
        .with_columns(total=pl.when("test").then(users[True]).otherwise(users[False]))
        # A pair that all users share has probability 1: its information is 0, and the limit of its NPMI is 1.
        .with_columns(strength=pl.when(both >= 1).then(1.0).otherwise(information / -both.log()).cast(pl.Float32))
        .select("a", "b", "test", "n", "strength")
    )
