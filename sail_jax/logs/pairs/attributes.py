"""Pairs from attributes of items: submitted hashtags, words of summaries, and labels.

A hashtag belongs to the split in which it was first submitted for an item; a summary or label belongs to the split in
which the item was published.
"""

import ibis
import ibis.expr.types as ir

from sail_jax.logs.pairs.item_pairs import PairRules, item_pairs
from sail_jax.logs.pairs.rules import Made, following, sharing
from sail_jax.logs.rules import Logs, draw, place


def hashtag(logs: Logs) -> Made:
    """Returns the pairs of items that share a hashtag."""
    rules, rows = logs.config.builders.hashtag, logs.known(logs.tables["hashtags"])
    usable = rows.filter(rows.known)
    first = usable.group_by("hashtag", "item").agg(time=usable.time.min())
    first = first.mutate(test=first.time > logs.cut, draw=draw(logs.config.seed, first.hashtag, first.item))
    tag = ["hashtag", "test"]
    sized = first.mutate(size=first.count().over(ibis.window(group_by=tag)), place=place(tag, [first.draw]))
    sized = logs.keep(sized.filter(sized.place < rules.per_hashtag), "hashtag.sized")
    general = sized.filter(sized.size > rules.max_items).select(*tag).distinct()
    drawn = sized.filter(sized.size <= rules.max_items)
    counts = (_row_counts(rows), general.aggregate(dropped_hashtags_too_general=general.count()))
    thresholds = PairRules(min_support=1, per_item=rules.per_item)
    return item_pairs(logs, "hashtag", following(drawn, tag, ["draw"], rules.neighbours), thresholds, counts)


def summary(logs: Logs) -> Made:
    """Returns the pairs of items whose summaries share n-grams."""
    rules, rows = logs.config.builders.summary, logs.known(logs.tables["catalogue"])
    # An item with several rows has the n-grams of all of them.
    grams = logs.keep(logs.published(word_grams(rows.filter(rows.known), rules.words)), "summary.grams")
    sizes = grams.group_by("gram", "test").agg(documents=grams.count())
    sizes = logs.keep(sizes.filter(sizes.documents > 1), "summary.sizes")
    common = sizes.filter(sizes.documents > rules.max_documents)
    rare = sizes.filter(sizes.documents <= rules.max_documents)
    counts = (_row_counts(rows), common.aggregate(dropped_ngrams_too_common=common.count()))
    thresholds = PairRules(min_support=rules.min_shared, per_item=rules.per_item)
    shared = logs.keep(grams.semi_join(rare, ["gram", "test"]), "summary.shared")
    return item_pairs(logs, "summary", sharing(shared, ["gram", "test"]), thresholds, counts)


def word_grams(items: ir.Table, words: int) -> ir.Table:
    """Returns the distinct word n-grams of items: item, gram.

    Args:
        items: item, words (a list).
        words: n. A text of fewer words has none.
    """
    starts = ibis.range(ibis.greatest(items.words.length() - (words - 1), 0))
    grams = starts.map(lambda start: items.words[start : start + words].join(" "))
    return items.select("item", gram=grams.unnest()).distinct()


def cls(logs: Logs) -> Made:
    """Returns the pairs of a label, as the query text, and an item with that label."""
    rules, rows = logs.config.builders.cls, logs.known(logs.tables["catalogue"])
    labels = rows.filter(rows.known).select("item", label=rows.labels.unnest()).distinct()
    members = logs.keep(logs.published(labels), "cls.members")
    enough = members.mutate(items=members.count().over(ibis.window(group_by="label")))
    enough = enough.filter(enough["items"] >= rules.min_items)
    drawn = place(["label", "test"], [draw(logs.config.seed, enough.label, enough.item)])
    placed = logs.keep(enough.mutate(place=drawn), "cls.placed")
    kept = placed.filter(placed.place < rules.per_label)
    counts = (
        _row_counts(rows),
        members.aggregate(candidates=members.count()),
        placed.aggregate(passed_support=placed.count()),
        kept.aggregate(test=kept.test.sum(), train=(~kept.test).sum(), distinct_items=kept.item.nunique()),
    )
    return Made(
        kept.rename(query_text="label", target_id="item"), ("query_text", "target_id"), counts, "over_per_label"
    )


def _row_counts(rows: ir.Table) -> ir.Table:
    return rows.aggregate(usable=rows.count(), passed_rows_not_in_store=rows.known.sum())
