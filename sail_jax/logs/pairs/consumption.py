"""Pairs of items that users consumed together: co-consumption of items and co-watch of live streams.

An item counts once per user, at the first event that passes the threshold. Two items of a user are a pair if the second
follows within the time window and among the next `neighbours` items, and both belong to the same split.

The strength of a pair is its normalised pointwise mutual information (Bouma 2009, "Normalized (pointwise) mutual
information in collocation extraction"), ln(p(a, b) / (p(a) p(b))) / -ln p(a, b), with probabilities over the users of
its split: popular items that meet by chance score low.
"""

from typing import Any

import ibis
import ibis.expr.types as ir

from sail_jax.logs.pairs.item_pairs import PairRules, item_pairs
from sail_jax.logs.pairs.rules import Made, following
from sail_jax.logs.rules import Logs, at_least


def copair(logs: Logs) -> Made:
    """Returns the pairs of co-consumed items."""
    rules, events = logs.config.builders.copair, logs.tables["events"]
    enough = events.mutate(enough=events.positives >= rules.positives)
    of_pairs = {"new_test_pairs": rules.new_test_pairs, "repeat": rules.repeat, "held_out": rules.held_out}
    return _together(logs, "copair", enough, **of_pairs)


def live(logs: Logs) -> Made:
    """Returns the pairs of co-watched live streams."""
    rules, visits = logs.config.builders.live, logs.tables["live"]
    enough = visits.mutate(enough=at_least(visits.seconds, rules.min_seconds))
    return _together(logs, "live", enough)


def _together(logs: Logs, name: str, events: ir.Table, **of_pairs: Any) -> Made:
    rules, events = getattr(logs.config.builders, name), logs.known(events)
    usable = events.filter(events.enough & events.known)
    first = usable.group_by("user", "item").agg(time=usable.time.min())
    first = logs.keep(logs.split(first), f"{name}.first")
    candidates = following(first, ["user", "test"], ["time", "item"], rules.neighbours, rules.window_seconds)
    kept = events.enough & events.known
    passed = {"passed_rows_below_threshold": events.enough, "passed_rows_not_in_store": kept}
    if logs.leaves_out:
        passed["passed_rows_of_no_side"] = kept & ibis.or_(*logs.sides(events))
    counts = events.aggregate(usable=events.count(), **{rule: rows.sum() for rule, rows in passed.items()})
    thresholds = PairRules(
        min_support=rules.min_users,
        per_item=rules.per_item,
        min_strength=rules.min_npmi,
        strength=lambda pairs: with_npmi(pairs, first),
        **of_pairs,
    )
    return item_pairs(logs, name, candidates, thresholds, (counts,))


def with_npmi(pairs: ir.Table, first: ir.Table) -> ir.Table:
    """Adds the normalised pointwise mutual information of pairs as the column `strength` (Float32).

    Args:
        pairs: a, b, test, n (users who consumed both).
        first: user, item, test: a row for each item of a user.
    """
    popular = first.group_by("item", "test").agg(users=first.count())
    of_a = popular.select(a="item", test="test", users_a="users")
    of_b = popular.select(b="item", test="test", users_b="users")
    total = first.group_by("test").agg(total=first.user.nunique())
    known = pairs.join(of_a, ["a", "test"]).join(of_b, ["b", "test"]).join(total, "test")
    both = known.n / known.total
    information = (both * known.total / known.users_a * known.total / known.users_b).ln()
    # A pair that all users share has probability 1: its information is 0, and the limit of its NPMI is 1.
    npmi = ibis.ifelse(both >= 1, 1.0, information / -both.ln())
    return known.select("a", "b", "test", "n", strength=npmi.cast("float32"))
