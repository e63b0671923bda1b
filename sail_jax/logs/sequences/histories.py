"""Users' histories of positive items, the targets in them, and the candidates before each target.

A history holds each item once, at its first event with enough positive behaviours, in the order of (time, item id). The
entries before a place therefore contain no information about later ones.
"""

import ibis
import ibis.expr.types as ir

from sail_jax.config.log_sequences import SequencesConfig
from sail_jax.logs.rules import Logs, place

_OF_USER = ibis.window(group_by="user")


def histories(logs: Logs, positives: int) -> ir.Table:
    """Returns the entries of all histories.

    Args:
        logs: the logs.
        positives: the least number of positive behaviours with which an event counts.

    Returns:
        user, item, time, at (the place in the history, from 0), size (of the history), train (how many of its entries,
        which are the first ones, are of the train side), and test (whether the entry is of the test side).
    """
    events = logs.known(logs.tables["events"])
    enough = events.filter(events.known & (events.positives >= positives))
    first = enough.group_by("user", "item").agg(time=enough.time.min())
    early, late = logs.sides(first)
    placed = first.mutate(
        at=place(["user"], ["time", "item"]),
        size=first.count().over(_OF_USER),
        train=early.cast("int64").sum().over(_OF_USER),
        test=late,
    )
    return logs.keep(placed, f"histories.{positives}")


def targets(entries: ir.Table, settings: SequencesConfig, splits: tuple[str, ...], history: int) -> ir.Table:
    """Returns the entries that are targets, each with the range of its history.

    Of the train split, these are a user's last entry of the train side, and each `stride`-th before it that has
    something before it; of the test split, the user's last entry, if it is of the test side.

    Returns:
        user, target (item), at, first (the first place of its history), test.
    """
    late = (entries.at == entries.size - 1) & entries.test
    back = entries.train - 1 - entries.at
    early = (back >= 0) & (back < settings.windows * settings.stride) & (back % settings.stride == 0)
    early &= (entries.at > 0) | (back == 0)
    chosen = {"train": early, "test": late}
    some = entries.filter(ibis.or_(*(chosen[split] for split in splits)))
    first = ibis.greatest(some.at - history, 0)
    return some.select("user", "at", target="item", first=first, test=some.test)


def candidates(entries: ir.Table, chosen: ir.Table) -> ir.Table:
    """Returns the entries of each target's history: user, at, target, item, place (in the history)."""
    before = entries.select("item", owner="user", place="at")
    within = [chosen.user == before.owner, before.place >= chosen["first"], before.place < chosen.at]
    return chosen.join(before, within).select("user", "at", "target", "item", "place")


def latest(entries: ir.Table, chosen: ir.Table, seen: int) -> ir.Table:
    """Adds `seen` to windows with `items`: the latest `seen` items of each history, the oldest first."""
    if not seen:
        return chosen.mutate(seen=chosen["items"][0:0])  # a literal of no items has no type in Spark
    whole = entries.group_by("user").agg(whole=in_order(entries.item, entries.at))
    start = ibis.greatest(chosen["first"], chosen.at - seen)
    joined = chosen.mutate(start=start).join(whole, "user")
    return joined.mutate(seen=joined.whole[joined.start : joined.at]).drop("whole", "start")


def in_order(item: ir.StringColumn, at: ir.IntegerColumn, where: ir.BooleanValue | None = None) -> ir.ArrayScalar:
    """Collects items in the order of their places.

    Places of equal width stand before the ids while they are sorted: not all engines collect in an order, or sort
    structs.
    """
    placed = at.cast("string").lpad(_DIGITS, "0") + item
    return placed.collect(where=where).sort().map(lambda text: text.substr(_DIGITS))


_DIGITS = 10
