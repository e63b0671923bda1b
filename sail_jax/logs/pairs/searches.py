"""Builds pairs from searches: items clicked for one query, queries with items, graded scores.

Query texts are compared and written in lower case, NFKC, with single spaces. Clicks and impressions are added up for
each query, item and split.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from sail_jax.data.tables import write_pair_columns
from sail_jax.logs.pairs.catalogue import number_texts
from sail_jax.logs.pairs.context import BuildContext, count, ranges, sink
from sail_jax.logs.pairs.hashing import hash_two
from sail_jax.logs.pairs.item_pairs import PairRules, write_item_pairs
from sail_jax.logs.pairs.neighbours import neighbour_pairs
from sail_jax.logs.reader import count_rows, scan_results


@dataclasses.dataclass(frozen=True)
class Clicks:
    """The clicks and impressions of the search log, aggregated.

    Attributes:
        path: Parquet of query, item (UInt32), test, clicks and shown (UInt32), unordered.
        texts: text, code: the queries.
        rows: number of rows of the Parquet file.
        counts: rows_read, dropped_rows_*.
    """

    path: Path
    texts: pl.DataFrame
    rows: int
    counts: dict[str, int]


def plain_text(text: pl.Expr) -> pl.Expr:
    """Normalises a text: lower case, NFKC, single spaces, stripped; null if nothing is left."""
    plain = text.str.normalize("NFKC").str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()
    return pl.when(plain != "").then(plain)


def count_clicks(build: BuildContext) -> Clicks:
    """Adds up clicks and impressions; the result is cached for the other builders of the same build."""
    folder = build.scratch / "clicks"
    rows = count_rows(build.config, build.source, "searches")
    shown = (
        scan_results(build.config, build.source)
        .with_columns(text=plain_text(pl.col("query")))
        .drop_nulls("text")
        .select("text", "item", "clicked", test=pl.col("time") > build.cut)
    )
    if not (folder / "clicks.parquet").exists():
        build.show(f"searches: reading {build.config.logs.searches.path}")
        build.folder("clicks")
        number_texts(shown, "text").write_parquet(folder / "texts.parquet")
        codes = pl.scan_parquet(folder / "texts.parquet").select("text", query="code")
        sink(build.catalogue.encode(shown.join(codes, on="text").drop("text")), folder / "rows.parquet")
        encoded = pl.scan_parquet(folder / "rows.parquet")
        totals = {"clicks": pl.col("clicked").sum().cast(pl.UInt32), "shown": pl.len().cast(pl.UInt32)}
        sink(encoded.drop_nulls("item").group_by("query", "item", "test").agg(**totals), folder / "clicks.parquet")
    encoded = pl.scan_parquet(folder / "rows.parquet")
    usable, known = count(encoded), count(encoded.filter(pl.col("item").is_not_null()))
    counts = {"rows_read": rows, "dropped_rows_unusable": rows - usable, "dropped_rows_not_in_store": usable - known}
    path = folder / "clicks.parquet"
    return Clicks(path, pl.read_parquet(folder / "texts.parquet"), count(pl.scan_parquet(path)), counts)


def build_search(build: BuildContext, output: Path) -> dict[str, int]:
    """Writes the pairs of items clicked for one query; returns counts."""
    rules, clicks = build.config.builders.search, count_clicks(build)
    candidates = build.folder("search.candidates")
    for part, rows in enumerate(_by_query(build, clicks)):
        best = _best_of_query(
            rows.filter(pl.col("clicks") >= rules.min_clicks), "clicks", rules.per_query, build.config.seed
        )
        pairs = neighbour_pairs(best, ["query"], rules.per_query - 1)
        pairs.write_parquet(candidates / f"{part}.parquet", compression="lz4")
    thresholds = PairRules(min_support=rules.min_queries, per_item=rules.per_item)
    return clicks.counts | write_item_pairs(build, "search", candidates, thresholds, output)


def build_q2i_search(build: BuildContext, output: Path) -> dict[str, int]:
    """Writes pairs of a query and a clicked item; returns counts."""
    rules, clicks = build.config.builders.q2i_search, count_clicks(build)

    def choose(rows: pl.DataFrame) -> pl.DataFrame:
        enough = rows.filter(
            (pl.col("clicks") >= rules.min_clicks) & (pl.col("clicks") / pl.col("shown") >= rules.min_ctr)
        )
        return enough.with_columns(rank=pl.col("clicks"))

    return _write_queries(build, clicks, output, choose, rules.per_query, seen=pl.col("clicks") > 0)


def build_q2i_score(build: BuildContext, output: Path) -> dict[str, int]:
    """Writes pairs of a query and an item with graded scores; returns counts."""
    rules, clicks = build.config.builders.q2i_score, count_clicks(build)
    only_clicks = not build.config.logs.searches.clicked
    rate = _average_rate(clicks, only_clicks)

    def choose(rows: pl.DataFrame) -> pl.DataFrame:
        if only_clicks:
            # Without impressions, the query's clicks on all items take their place.
            rows = rows.with_columns(shown=pl.col("clicks").sum().over("query", "test"))
        smoothed = (pl.col("clicks") + rules.prior * rate) / (pl.col("shown") + rules.prior)
        steps = (smoothed / rules.top_rate).clip(0, 1) * rules.levels
        # Halves are rounded up, so that equal rates give equal scores.
        score = ((steps + 0.5).floor() / rules.levels).cast(pl.Float32)
        return rows.filter(pl.col("shown") >= rules.min_shown).with_columns(score=score, rank=pl.col("shown"))

    return _write_queries(build, clicks, output, choose, rules.per_query, seen=pl.lit(True)) | {"average_rate": rate}


def _average_rate(clicks: Clicks, only_clicks: bool) -> float:
    """Click rate of the train split; without impressions, the mean share of an item in its query's clicks."""
    rows = pl.scan_parquet(clicks.path).filter(~pl.col("test"))
    totals = rows.select(
        pl.col("clicks").sum(), pl.col("shown").sum(), pl.len(), pl.col("query").n_unique().alias("queries")
    )
    clicked, shown, pairs, queries = totals.collect(engine="streaming").row(0)
    if only_clicks:
        return queries / pairs if pairs else 0.0
    return clicked / shown if shown else 0.0


def _by_query(build: BuildContext, clicks: Clicks) -> Iterator[pl.DataFrame]:
    """Yields the clicks in consecutive ranges of queries."""
    scan = pl.scan_parquet(clicks.path)
    for low, high in ranges(len(clicks.texts), build.parts(clicks.rows)):
        yield scan.filter(pl.col("query").is_between(low, high - 1)).collect(engine="streaming")


def _best_of_query(rows: pl.DataFrame, column: str, per_query: int, seed: int) -> pl.DataFrame:
    """The rows with the highest values per query and split, sorted by both; a seeded hash breaks ties."""
    drawn = rows.with_columns(draw=hash_two(pl.col("query"), pl.col("item"), seed))
    ranked = drawn.sort("query", "test", column, "draw", descending=[False, False, True, False])
    return ranked.filter(pl.int_range(pl.len()).over("query", "test") < per_query)


def _write_queries(
    build: BuildContext,
    clicks: Clicks,
    output: Path,
    choose: Callable[[pl.DataFrame], pl.DataFrame],
    per_query: int,
    seen: pl.Expr,
) -> dict[str, int]:
    """Writes a table of free-text queries; drops test rows whose query occurs in the train split."""
    counts = dict.fromkeys(
        ("candidates", "dropped_threshold", "dropped_over_per_query", "dropped_test_query_in_train"), 0
    )
    used = np.zeros(len(build.catalogue), bool)
    queries = 0  # each query is in one part only
    kept = build.folder(f"{output.stem}.kept")
    for part, rows in enumerate(_by_query(build, clicks)):
        rows = rows.filter(seen)
        chosen = choose(rows)
        best = _best_of_query(chosen, "rank", per_query, build.config.seed)
        trained = rows.filter(~pl.col("test")).select("query").unique()
        repeated = best.filter("test").join(trained, on="query", how="semi")
        best = best.filter(~pl.col("test") | ~pl.col("query").is_in(trained["query"].implode()))
        counts["candidates"] += len(rows)
        counts["dropped_threshold"] += len(rows) - len(chosen)
        counts["dropped_over_per_query"] += len(chosen) - len(best) - len(repeated)
        counts["dropped_test_query_in_train"] += len(repeated)
        best.drop("draw", "rank").write_parquet(kept / f"{part}.parquet", compression="lz4")
        used[best["item"].to_numpy()] = True
        queries += best["query"].n_unique()
    written = write_pair_columns(
        output, {split: _query_rows(build, clicks, kept, split == "test") for split in ("test", "train")}
    )
    sizes = {split: written.get(split, 0) for split in ("train", "test")}
    return clicks.counts | counts | sizes | {"distinct_items": int(used.sum()), "distinct_queries": queries}


def _query_rows(build: BuildContext, clicks: Clicks, kept: Path, test: bool) -> Iterator[pa.Table]:
    ids, texts = build.catalogue.ids(), clicks.texts["text"].to_arrow()
    for file in sorted(kept.glob("*.parquet"), key=lambda path: int(path.stem)):
        rows = pl.read_parquet(file).filter(pl.col("test") == test)
        columns = {
            "query_text": texts.take(rows["query"].to_arrow()),
            "target_id": ids.take(rows["item"].to_arrow()),
        }
        if "score" in rows.columns:
            columns["score"] = rows["score"].to_arrow()
        yield pa.table(columns)
