"""Pairs from searches: items clicked for one query, queries with items, graded scores.

Query texts are compared and written in lower case, NFKC, with single spaces. Clicks and impressions are added up for
each query, item and split.
"""

import ibis
import ibis.expr.types as ir

from sail_jax.logs.pairs.item_pairs import PairRules, item_pairs
from sail_jax.logs.pairs.rules import Made, sharing
from sail_jax.logs.rules import Logs, draw, place


def search(logs: Logs) -> Made:
    """Returns the pairs of items clicked for one query."""
    rules, clicks = logs.config.builders.search, _clicks(logs)
    enough = clicks.filter(clicks.clicks >= rules.min_clicks)
    best = logs.keep(_best_of_query(enough.mutate(rank="clicks"), rules.per_query, logs.config.seed), "search.top")
    thresholds = PairRules(min_support=rules.min_queries, per_item=rules.per_item)
    return item_pairs(logs, "search", sharing(best, ["query", "test"]), thresholds, (_row_counts(logs),))


def q2i_search(logs: Logs) -> Made:
    """Returns the pairs of a query and a clicked item."""
    rules, clicks = logs.config.builders.q2i_search, _clicks(logs)
    clicked = clicks.filter(clicks.clicks > 0)
    enough = (clicked.clicks >= rules.min_clicks) & (clicked.clicks / clicked.shown >= rules.min_ctr)
    chosen = clicked.filter(enough).mutate(
        rank="clicks", multiplicity="clicks", strength=clicked.clicks / clicked.shown
    )
    return _of_queries(logs, "q2i_search", clicked, chosen, rules.per_query, (_row_counts(logs),))


def q2i_score(logs: Logs) -> Made:
    """Returns the pairs of a query and an item with graded scores."""
    rules, clicks = logs.config.builders.q2i_score, _clicks(logs)
    only_clicks = not logs.config.logs.searches.clicked
    average, rows = _average_rate(clicks, only_clicks), clicks
    if only_clicks:
        # Without impressions, the query's clicks on all items take their place.
        rows = rows.mutate(shown=rows.clicks.sum().over(ibis.window(group_by=["query", "test"])))
    rows = rows.cross_join(average)
    smoothed = (rows.clicks + rules.prior * rows.average_rate) / (rows.shown + rules.prior)
    steps = (smoothed / rules.top_rate).clip(0, 1) * rules.levels
    # Halves are rounded up, so that equal rates give equal scores.
    score = ((steps + 0.5).floor() / rules.levels).cast("float32")
    chosen = rows.mutate(score=score, rank=rows.shown, multiplicity=rows.shown, strength=score).filter(
        rows.shown >= rules.min_shown
    )
    return _of_queries(logs, "q2i_score", clicks, chosen, rules.per_query, (_row_counts(logs), average))


def _clicks(logs: Logs) -> ir.Table:
    """Clicks and impressions: query, item, test, clicks, shown."""
    rows = logs.known(logs.tables["searches"])
    rows = logs.split(rows.filter(rows.known))
    totals = rows.group_by("query", "item", "test").agg(clicks=rows.clicked.sum(), shown=rows.count())
    return logs.keep(totals, "searches.clicks")


def _row_counts(logs: Logs) -> ir.Table:
    rows = logs.known(logs.tables["searches"])
    passed = {"passed_rows_not_in_store": rows.known}
    if logs.leaves_out:
        passed["passed_rows_of_no_side"] = rows.known & ibis.or_(*logs.sides(rows))
    return rows.aggregate(usable=rows.count(), **{rule: kept.sum() for rule, kept in passed.items()})


def _average_rate(clicks: ir.Table, only_clicks: bool) -> ir.Table:
    """Click rate of the train split; without impressions, the mean share of an item in its query's clicks."""
    train = clicks.filter(~clicks.test)
    rate = train.query.nunique() / train.count() if only_clicks else train.clicks.sum() / train.shown.sum()
    totals = train.aggregate(rows=train.count(), rate=rate)
    # Zero rows have no rate, which engines call null or not a number.
    return totals.select(average_rate=ibis.ifelse(totals.rows > 0, totals.rate, 0.0))


def _best_of_query(rows: ir.Table, per_query: int, seed: int) -> ir.Table:
    """The rows of the highest rank of each query and split; a seeded hash breaks ties."""
    drawn = rows.mutate(draw=draw(seed, rows.query, rows.item))
    ranked = drawn.mutate(place=place(["query", "test"], [drawn["rank"].desc(), drawn.draw]))
    return ranked.filter(ranked.place < per_query)


def _of_queries(
    logs: Logs, name: str, seen: ir.Table, chosen: ir.Table, per_query: int, counts: tuple[ir.Table, ...]
) -> Made:
    """Returns pairs of free-text queries; drops test rows whose query occurs in the train split."""
    best = logs.keep(_best_of_query(chosen, per_query, logs.config.seed), f"{name}.top")
    trained = seen.filter(~seen.test).select("query", test=True).distinct()
    rows = logs.keep(best.anti_join(trained, ["query", "test"]), f"{name}.rows")
    counts += (
        seen.aggregate(candidates=seen.count()),
        chosen.aggregate(passed_threshold=chosen.count()),
        best.aggregate(passed_over_per_query=best.count()),
        rows.aggregate(
            test=rows.test.sum(),
            train=(~rows.test).sum(),
            distinct_items=rows.item.nunique(),
            distinct_queries=rows.query.nunique(),
        ),
    )
    named = rows.rename(query_text="query", target_id="item")
    weights = {"multiplicity": "multiplicity", "strength": "strength"}
    return Made(named, ("query_text", "place"), counts, "test_query_in_train", weights)
