"""What all rules of pairs give, the rows of a pair table with counts; and how they pair rows.

A rule is a function of `Logs` that returns `Made`, in expressions that every engine of Ibis runs.
"""

from collections.abc import Mapping
from typing import NamedTuple

import ibis
import ibis.expr.types as ir


class Made(NamedTuple):
    """The result of a rule.

    Attributes:
        rows: columns of a pair table, test (Boolean) and those of `order`.
        order: the columns by which the rows of a split are sorted.
        counts: tables of one row with counts, in the order of the rules: usable (rows of the log), candidates,
            train and test (of the rows), passed_RULE (what a rule left), and others.
        last_rule: the rule that left the rows.
        weights: "multiplicity" and "strength" -> the column of the rows that has it; a rule may have neither.
    """

    rows: ir.Table
    order: tuple[str, ...]
    counts: tuple[ir.Table, ...]
    last_rule: str
    weights: Mapping[str, str] = {}


def following(rows: ir.Table, group: list[str], order: list[str], steps: int, window: int | None = None) -> ir.Table:
    """Pairs each row with the next few rows of its group, in time linear in the group's size.

    Args:
        rows: item, test, the columns of the group and of the order; an item occurs once in a group.
        group: the columns of the group, one of which is `test`.
        order: the columns by which rows follow each other.
        steps: how many following rows are paired.
        window: largest difference of `time`; None for no limit.

    Returns:
        a < b, test, n: how many groups have the pair.
    """
    window_of = ibis.window(group_by=group, order_by=order)
    others = {}
    for step in range(1, steps + 1):
        other = rows.item.lead(step).over(window_of)
        if window is not None:
            near = rows.time.lead(step).over(window_of) - rows.time <= window
            other = ibis.ifelse(near, other, ibis.null("string"))
        others[f"next_{step}"] = other
    placed = rows.mutate(**others)
    pairs = placed.select("item", "test", other=ibis.array([placed[name] for name in others]).unnest())
    return count_pairs(pairs.filter(pairs.other.notnull()))


def sharing(rows: ir.Table, group: list[str]) -> ir.Table:
    """Pairs all rows of a group with each other; arguments and result as of `following`."""
    other = rows.view()
    same = [rows[name] == other[name] for name in group]
    joined = rows.join(other, [*same, rows.item < other.item]).select(rows.item, rows.test, other=other.item)
    return count_pairs(joined)


def count_pairs(pairs: ir.Table) -> ir.Table:
    """Counts pairs of `item` and `other` whichever way round: a < b, test, n."""
    ends = pairs.select(a=ibis.least(pairs.item, pairs.other), b=ibis.greatest(pairs.item, pairs.other), test="test")
    return ends.group_by("a", "b", "test").agg(n=ends.count())
