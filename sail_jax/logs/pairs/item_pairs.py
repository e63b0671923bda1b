"""Turns counted candidates into a table of item pairs: thresholds, splits, pairs per item, ids.

Candidates are a folder of Parquet parts: a < b (UInt32), test (Boolean), n (UInt32, how many users, queries, hashtags
or n-grams of this part support the pair) and, with some builders, strength (Float32). Every step handles one part of
the pairs, or of the items, at a time.

Rules, in this order:
1. the counts of a pair are added up per split; a pair needs at least `min_support`,
2. a pair needs a strength of at least `min_strength`,
3. a test pair that is also a train candidate is dropped, however weak that candidate is, unless the rules keep it,
4. a pair must be among the `per_item` best of both its items in its split, so that no item has more pairs. Pairs are
   ranked by strength, then by support, then by a seeded hash.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from sail_jax.data.tables import write_pair_columns
from sail_jax.logs.pairs.context import BuildContext, count, ranges
from sail_jax.logs.pairs.hashing import hash_one, hash_two

_SPLITS = {"test": True, "train": False}


@dataclasses.dataclass(frozen=True)
class PairRules:
    """The thresholds that a candidate must pass to become a pair.

    Attributes:
        min_support: least n.
        per_item: most pairs of an item in a split.
        min_strength: least strength; None for no limit.
        strength: maps a frame with a, b, test, n to the same with `strength` (Float32). None: the candidates' own
            strength if they have one, else n.
        new_test_pairs: whether test pairs that are train candidates too are dropped.
        repeat: whether a pair is written n times.
    """

    min_support: int
    per_item: int
    min_strength: float | None = None
    strength: Callable[[pl.DataFrame], pl.DataFrame] | None = None
    new_test_pairs: bool = True
    repeat: bool = False


def write_item_pairs(
    build: BuildContext, name: str, candidates: Path, rules: PairRules, output: Path
) -> dict[str, int]:
    """Writes the pair table of a builder.

    Args:
        build: the context of the build.
        name: the name of the builder.
        candidates: the folder of the candidates.
        rules: the thresholds.
        output: the path of the table.

    Returns:
        Counts: candidates, dropped_*, train and test (pairs), rows (more than pairs if they are repeated),
        distinct_items.
    """
    build.show(f"{name}: candidates")
    kept = build.folder(f"{name}.kept")
    counts = _apply_thresholds(build, candidates, rules, kept)
    build.show(f"{name}: limiting pairs per item")
    best = _best_of_items(build, name, kept, counts.pop("kept"), rules.per_item)
    build.show(f"{name}: writing")
    used = np.zeros(len(build.catalogue), bool)
    pairs = dict.fromkeys(_SPLITS, 0)

    def rows(split: str) -> Iterator[pa.Table]:
        for found in _pairs(build, best, _SPLITS[split], used):
            pairs[split] += len(found)
            yield _table(build, found.select(pl.all().repeat_by("n")).explode(pl.all()) if rules.repeat else found)

    written = write_pair_columns(output, {split: rows(split) for split in _SPLITS})
    dropped = sum(value for key, value in counts.items() if key.startswith("dropped"))
    counts["dropped_over_per_item"] = counts["candidates"] - dropped - sum(pairs.values())
    return counts | pairs | {"rows": sum(written.values()), "distinct_items": int(used.sum())}


def _apply_thresholds(build: BuildContext, candidates: Path, rules: PairRules, kept: Path) -> dict[str, int]:
    counts = dict.fromkeys(("candidates", "dropped_support", "dropped_strength", "dropped_test_in_train", "kept"), 0)
    files = sorted(candidates.glob("*.parquet"))
    if not files:
        return counts
    scan = pl.scan_parquet(files, glob=False)
    totals = [pl.col("n").sum()]
    if "strength" in scan.collect_schema():
        totals.append(pl.col("strength").max())
    parts = build.parts(count(scan))
    for part in range(parts):
        mine = scan if parts == 1 else scan.filter(hash_two(pl.col("a"), pl.col("b"), 1) % parts == part)
        pairs = mine.group_by("a", "b", "test").agg(totals).collect(engine="streaming")
        trained = pairs.filter(~pl.col("test")).select("a", "b")
        enough = pairs.filter(pl.col("n") >= rules.min_support)
        strong = rules.strength(enough) if rules.strength else enough
        if "strength" not in strong.columns:
            strong = strong.with_columns(strength=pl.col("n").cast(pl.Float32))
        if rules.min_strength is not None:
            strong = strong.filter(pl.col("strength") >= rules.min_strength)
        repeated = strong.filter("test").join(trained, on=["a", "b"], how="semi")
        repeated = repeated if rules.new_test_pairs else repeated.clear()
        final = strong.join(repeated, on=["a", "b", "test"], how="anti")
        counts["candidates"] += len(pairs)
        counts["dropped_support"] += len(pairs) - len(enough)
        counts["dropped_strength"] += len(enough) - len(strong)
        counts["dropped_test_in_train"] += len(repeated)
        counts["kept"] += len(final)
        final.write_parquet(kept / f"{part}.parquet", compression="lz4")
    return counts


def _best_of_items(build: BuildContext, name: str, kept: Path, pairs: int, per_item: int) -> Path:
    """Writes (a, b, test, n) once for each of the two items that has the pair among its best."""
    best = build.folder(f"{name}.best")
    if not pairs:
        return best
    scan = pl.scan_parquet(sorted(kept.glob("*.parquet")), glob=False)
    parts = build.parts(2 * pairs)
    draw = hash_two(pl.col("a"), pl.col("b"), build.config.seed)
    for part in range(parts):
        sides = []
        for end in ("a", "b"):
            mine = scan if parts == 1 else scan.filter(hash_one(pl.col(end), 2) % parts == part)
            sides.append(mine.with_columns(end=pl.col(end)))
        ranked = (
            pl.concat(sides)
            .with_columns(draw=draw)
            .collect(engine="streaming")
            .sort("end", "test", "strength", "n", "draw", descending=[False, False, True, True, False])
        )
        first = ranked.filter(pl.int_range(pl.len()).over("end", "test") < per_item)
        first.select("a", "b", "test", "n").write_parquet(best / f"{part}.parquet", compression="lz4")
    return best


def _pairs(build: BuildContext, best: Path, test: bool, used: np.ndarray) -> Iterator[pl.DataFrame]:
    """Yields the pairs that are among the best of both items, sorted by the first item; marks their items in `used`.

    Columns: query, target (numbers of items), n.
    """
    files = sorted(best.glob("*.parquet"))
    if not files:
        return
    scan = pl.scan_parquet(files, glob=False).filter(pl.col("test") == test)
    for low, high in ranges(len(build.catalogue), build.parts(count(scan))):
        pairs = (
            scan.filter(pl.col("a").is_between(low, high - 1))
            .group_by("a", "b")
            .agg(ends=pl.len(), n=pl.col("n").first())
            .filter(pl.col("ends") == 2)
            .collect(engine="streaming")
            .sort("a", "b")
            # A hash decides which item is the query: otherwise it would always be the one whose id sorts first.
            .with_columns(turn=hash_two(pl.col("a"), pl.col("b"), build.config.seed + 1) % 2 == 1)
            .select(
                query=pl.when("turn").then("b").otherwise("a"), target=pl.when("turn").then("a").otherwise("b"), n="n"
            )
        )
        used[pairs["query"].to_numpy()] = used[pairs["target"].to_numpy()] = True
        yield pairs


def _table(build: BuildContext, pairs: pl.DataFrame) -> pa.Table:
    ids = build.catalogue.ids()
    return pa.table({f"{side}_id": ids.take(pairs[side].to_arrow()) for side in ("query", "target")})
