"""Turns counted candidates into a table of item pairs: thresholds, splits, pairs per item.

Candidates are a < b (ids), test, n (how many users, queries, hashtags or n-grams support the pair) and, with some
builders, strength (Float32). Rules, in this order:
1. a pair needs a support of at least `min_support`,
2. a pair needs a strength of at least `min_strength`,
3. a test pair that is also a train candidate is dropped, however weak that candidate is, unless the rules keep it,
4. a pair must be among the `per_item` best of both its items in its split, so that no item has more pairs. Pairs are
   ranked by strength, then by support, then by a seeded hash,
5. where no test pair is left at all, as of a dense or a small log, a share of the train pairs is taken for the test
   instead, by a seeded hash, if the rules hold one out.
"""

import dataclasses
from collections.abc import Callable

import ibis
import ibis.expr.types as ir

from sail_jax.logs.pairs.rules import Made
from sail_jax.logs.rules import Logs, at_least, draw, hex_share, place


@dataclasses.dataclass(frozen=True)
class PairRules:
    """The thresholds that a candidate must pass to become a pair.

    Attributes:
        min_support: least n.
        per_item: most pairs of an item in a split.
        min_strength: least strength; None for no limit.
        strength: adds `strength` to a table with a, b, test, n. None: the candidates' own strength if they have one,
            else n.
        new_test_pairs: whether test pairs that are train candidates too are dropped.
        repeat: whether a pair is written n times.
        held_out: share of the train pairs that are test pairs where else none is; 0 for none.
    """

    min_support: int
    per_item: int
    min_strength: float | None = None
    strength: Callable[[ir.Table], ir.Table] | None = None
    new_test_pairs: bool = True
    repeat: bool = False
    held_out: float = 0.0


def item_pairs(logs: Logs, name: str, candidates: ir.Table, rules: PairRules, counts: tuple[ir.Table, ...]) -> Made:
    """Applies the rules to the candidates of a builder.

    Returns:
        query_id, target_id, test; and, beside the given counts, candidates, dropped_*, train and test (pairs), and
        distinct_items.
    """
    candidates = logs.keep(candidates, f"{name}.candidates")
    enough = candidates.filter(candidates.n >= rules.min_support)
    scored = logs.keep((rules.strength or _own_strength)(enough), f"{name}.scored")
    strong = scored
    if rules.min_strength is not None:
        strong = scored.filter(at_least(scored.strength, rules.min_strength))
    fresh = strong
    if rules.new_test_pairs:
        late = strong.filter(strong.test)
        trained = candidates.filter(~candidates.test).semi_join(late, ["a", "b"]).select("a", "b", test=True)
        fresh = strong.anti_join(trained, ["a", "b", "test"])
    fresh = logs.keep(fresh, f"{name}.fresh")
    best = logs.keep(_best_of_both(fresh, rules.per_item, logs.config.seed), f"{name}.best")
    if rules.held_out:
        best = logs.keep(_held_out(best, rules.held_out, logs.config.seed), f"{name}.split")
        counts += (best.aggregate(test_drawn=best.drawn.sum()),)
    ends = best.select(item="a").union(best.select(item="b"))
    counts += (
        candidates.aggregate(candidates=candidates.count()),
        scored.aggregate(passed_support=scored.count()),
        strong.aggregate(passed_strength=strong.count()),
        fresh.aggregate(passed_test_in_train=fresh.count()),
        best.aggregate(test=best.test.sum(), train=(~best.test).sum()),
        ends.aggregate(distinct_items=ends.item.nunique()),
    )
    weights = {"multiplicity": "n", "strength": "strength"}
    return Made(_rows(best, logs.config.seed, rules.repeat), ("a", "b"), counts, "over_per_item", weights)


def _own_strength(pairs: ir.Table) -> ir.Table:
    return pairs if "strength" in pairs.columns else pairs.mutate(strength=pairs.n.cast("float32"))


def _best_of_both(pairs: ir.Table, per_item: int, seed: int) -> ir.Table:
    """The pairs that are among the best of both their items: a, b, test, n, strength."""
    drawn = pairs.mutate(draw=draw(seed, pairs.a, pairs.b))
    ends = drawn.mutate(end=drawn.a).union(drawn.mutate(end=drawn.b))
    ranked = ends.mutate(place=place(["end", "test"], [ends.strength.desc(), ends.n.desc(), ends.draw]))
    best = ranked.filter(ranked.place < per_item)
    both = best.group_by("a", "b", "test").agg(n=best.n.max(), strength=best.strength.max(), ends=best.count())
    return both.filter(both.ends == 2).drop("ends")


def _held_out(pairs: ir.Table, share: float, seed: int) -> ir.Table:
    """Adds `drawn`: whether a train pair was made a test pair, as else there is none.

    At least one pair is drawn, and never all.
    """
    hashed = pairs.mutate(hash=draw(seed, ibis.literal("test"), pairs.a, pairs.b))
    ends = hashed.aggregate(first=hashed.hash.min(), last=hashed.hash.max(), tests=hashed.test.sum())
    rows = hashed.cross_join(ends)
    chosen = (rows.hash == rows.first) | (rows.hash < hex_share(share))
    drawn = chosen & (rows.hash != rows.last) & (rows.tests == 0)
    return rows.mutate(drawn=drawn, test=rows.test | drawn).select("a", "b", "test", "n", "strength", "drawn")


def _rows(pairs: ir.Table, seed: int, repeat: bool) -> ir.Table:
    # A hash decides which item is the query: otherwise it would always be the one whose id sorts first.
    turn = draw(seed, pairs.a, pairs.b) < draw(seed, pairs.b, pairs.a)
    query, target = ibis.ifelse(turn, pairs.b, pairs.a), ibis.ifelse(turn, pairs.a, pairs.b)
    rows = pairs.mutate(query_id=query, target_id=target)
    return rows.mutate(copy=ibis.range(rows.n).unnest()) if repeat else rows
