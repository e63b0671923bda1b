"""What all rules read and give: logs as tables, and the rows of a pair table with counts.

A rule is a function of `Logs` that returns `Made`, in expressions that every engine of Ibis runs.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import ibis
import ibis.expr.types as ir
import numpy as np

from sail_jax.config import Config


class Made(NamedTuple):
    """The result of a rule.

    Attributes:
        rows: columns of a pair table, test (Boolean) and those of `order`.
        order: the columns by which the rows of a split are sorted.
        counts: tables of one row with counts, in the order of the rules: usable (rows of the log), candidates,
            train and test (of the rows), passed_RULE (what a rule left), and others.
        last_rule: the rule that left the rows.
    """

    rows: ir.Table
    order: tuple[str, ...]
    counts: tuple[ir.Table, ...]
    last_rule: str


@dataclasses.dataclass(frozen=True)
class Logs:
    """The logs of a build.

    Attributes:
        config: the experiment.
        cut: the last second of the train split.
        tables: log -> its table, with the columns of `canonical.SCHEMAS`; "store", if the items are restricted.
        keep: writes a table under a name and returns it as it was written, for what is read more than once.
    """

    config: Config
    cut: int
    tables: Mapping[str, ir.Table]
    keep: Callable[[ir.Table, str], ir.Table]

    def known(self, rows: ir.Table) -> ir.Table:
        """Adds `known`: whether the row's item may occur in pairs."""
        if "store" not in self.tables:
            return rows.mutate(known=True)
        store = self.tables["store"].select(stored="item")
        return rows.left_join(store, rows.item == store.stored).mutate(known=ibis._.stored.notnull()).drop("stored")

    def published(self, rows: ir.Table) -> ir.Table:
        """Adds `test`: whether the row's item was published after the cut; false where that is not known."""
        if "catalogue" not in self.tables:
            return rows.mutate(test=False)
        first = self.tables["catalogue"].group_by("item").agg(time=ibis._.time.min())
        late = first.filter(first.time > self.cut).select(late="item")
        return rows.left_join(late, rows.item == late.late).mutate(test=ibis._.late.notnull()).drop("late")


@ibis.udf.scalar.builtin
def md5(text: str) -> str:  # type: ignore[empty-body]
    """The hash of a text by which rows are drawn; only its order counts."""


def draw(seed: int, *columns: ir.StringColumn) -> ir.StringColumn:
    """Returns a hash of a seed and some texts, the same for all engines, versions and orders of rows."""
    text = ibis.literal(str(seed))
    for column in columns:
        text = text + "\t" + column
    return md5(text)


def at_least(column: ir.NumericValue, limit: float) -> ir.BooleanValue:
    """Returns whether a Float32 column reaches a limit, which is rounded to Float32 too.

    Some engines compare as Float32 and some as Float64, and would differ where the two are equal.
    """
    return column.cast("float64") >= ibis.literal(float(np.float32(limit)), "float64")


def place(group: list[str], order: list) -> ir.IntegerValue:
    """Returns the place of a row in its group, from 0."""
    return ibis.row_number().over(ibis.window(group_by=group, order_by=order))


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
    pairs = placed.select("item", "test", other=ibis.array([placed[name] for name in others])).unnest("other")
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
