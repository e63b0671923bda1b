"""A construction as one query: from histories to windows with the items that are taken, and counts."""

import dataclasses

import ibis
import ibis.expr.types as ir

from sail_jax.config.log_sequences import SequencesConfig
from sail_jax.logs.rules import Logs, md5, place
from sail_jax.logs.sequences.constructions import CONSTRUCTIONS, Candidates
from sail_jax.logs.sequences.histories import candidates, histories, in_order, latest, targets

_ALL = 1 << 40  # more than any history has
_WINDOW = ["user", "at"]


def settings_of(logs: Logs, name: str) -> SequencesConfig:
    """Returns the settings of a construction; those of the whole histories leave no item out."""
    settings = logs.config.sequences
    if CONSTRUCTIONS[name].whole:
        return dataclasses.replace(settings, history=_ALL, length=_ALL, windows=1, min_items=1, seen=0)
    return settings


def entries_of(logs: Logs, name: str) -> ir.Table:
    """Returns the histories that a construction reads; see `histories`."""
    return histories(logs, CONSTRUCTIONS[name].positives(logs.config.sequences))


def candidates_of(logs: Logs, name: str) -> Candidates:
    """Returns the targets of a construction and the candidates before them."""
    settings, entries = settings_of(logs, name), entries_of(logs, name)
    history = settings.vanilla_history if name == "eval_vanilla" else settings.history
    chosen = targets(entries, settings, CONSTRUCTIONS[name].splits, history)
    return Candidates(logs, chosen, candidates(entries, chosen))


def windows_of(logs: Logs, name: str) -> ir.Table:
    """Returns all windows of a construction, those that become no sequence too.

    Returns:
        user, target, at, first and test, as of `histories.targets`; candidates; kept, how many of these the rule keeps;
        items, at most `length` of them, and their number; and short, known and good, whether the history is too short,
        the target has what the rule needs, and the window becomes a sequence.
    """
    settings, c = settings_of(logs, name), candidates_of(logs, name)
    choice = CONSTRUCTIONS[name].choose(c)
    ranked = choice.kept.mutate(rank=place(_WINDOW, list(choice.priority)))
    taken = ranked["rank"] < settings.length
    found = ranked.group_by(*_WINDOW).agg(
        kept=ranked.count(), number=ranked.count(where=taken), items=in_order(ranked["item"], ranked.place, taken)
    )
    windows = c.targets
    if choice.known is not None:
        known = choice.known.select(known_item="item")
        windows = windows.left_join(known, windows.target == known.known_item)
        windows = windows.mutate(known=windows.known_item.notnull()).drop("known_item")
    else:
        windows = windows.mutate(known=True)
    windows = windows.left_join(found, _WINDOW).drop("user_right", "at_right")
    windows = windows.mutate(
        kept=windows.kept.fill_null(0),
        number=windows.number.fill_null(0),
        candidates=windows.at - windows["first"],
        short=windows.at - windows["first"] < settings.min_items,
    )
    good = ~windows.short & windows.known & (windows.number >= settings.min_items)
    return logs.keep(windows.mutate(good=good), f"{name}.windows")


def rows_of(logs: Logs, name: str) -> ir.Table:
    """Returns the rows of a sequence table, ordered by a hash of the user, the latest target first."""
    windows = windows_of(logs, name)
    good = latest(entries_of(logs, name), windows.filter(windows.good), settings_of(logs, name).seen)
    rows = good.order_by(md5(good.user), "user", ibis.desc("at"))
    return rows.select(
        user_id="user",
        item_ids="items",
        target_id="target",
        seen_ids="seen",
        split=ibis.ifelse(rows.test, "test", "train"),
    )


def counts_of(windows: ir.Table) -> ir.Table:
    """Counts the kept and dropped targets of some windows: a row of the figures in sequences.json."""
    usable = ~windows.short & windows.known
    return windows.aggregate(
        users=windows.user.nunique(),
        targets=windows.count(),
        short_history=windows.short.sum(),
        unknown_target=(~windows.short & ~windows.known).sum(),
        few_kept=(usable & ~windows.good).sum(),
        sequences=windows.good.sum(),
        candidates=windows.candidates.sum(),
        kept=windows.kept.sum(),
    )


def lengths_of(windows: ir.Table) -> ir.Table:
    """Counts the sequences of each length: number, sequences; the shortest first."""
    good = windows.filter(windows.good)
    return good.group_by("number").agg(sequences=good.count()).order_by("number")


def event_counts(logs: Logs, positives: int) -> ir.Table:
    """Counts the events with enough positive behaviours: positive, not_in_store, users."""
    events = logs.known(logs.tables["events"])
    enough = events.filter(events.positives >= positives)
    return enough.aggregate(
        positive=enough.count(),
        not_in_store=(~enough.known).sum(),
        users=enough.user.nunique(where=enough.known),
    )
