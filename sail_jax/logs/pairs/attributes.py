"""Builds pairs from attributes of items: submitted hashtags, words of summaries, and labels.

A hashtag belongs to the split in which it was first submitted for an item; a summary or label belongs to the split in
which the item was published.
"""

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
from sail_jax.logs.pairs.searches import plain_text
from sail_jax.logs.reader import count_rows, scan_hashtags, scan_items

# One character of a script without spaces, or a run of letters and digits.
_WORD = r"\p{Han}|\p{Hiragana}|\p{Katakana}|[\p{L}\p{M}\p{N}&&[^\p{Han}\p{Hiragana}\p{Katakana}]]+"
_WORDS_OF_SUMMARY = 32  # assumed words of a summary, which sets the size of a part


def build_hashtag(build: BuildContext, output: Path) -> dict[str, int]:
    """Writes the pairs of items that share a hashtag; returns counts."""
    rules, log = build.config.builders.hashtag, build.config.logs.hashtags.path
    build.show(f"hashtag: reading {log}")
    tag = plain_text(pl.col("hashtag").str.strip_chars().str.strip_chars_start("#＃"))
    rows = scan_hashtags(build.config, build.source).with_columns(text=tag).drop_nulls("text")
    texts = number_texts(rows, "text")
    coded = rows.join(texts.lazy(), on="text").select("item", "time", tag="code")
    folder = build.folder("hashtag")
    scan = pl.scan_parquet(sink(build.catalogue.encode(coded), folder / "rows.parquet"))
    usable, known = count(scan), scan.filter(pl.col("item").is_not_null())
    read, stored = count_rows(build.config, build.source, "hashtags"), count(known)
    candidates, general = build.folder("hashtag.candidates"), 0
    for part, (low, high) in enumerate(ranges(len(texts), build.parts(stored))):
        items = (
            known.filter(pl.col("tag").is_between(low, high - 1))
            .group_by("tag", "item")
            .agg(pl.col("time").min())
            .with_columns(test=pl.col("time") > build.cut, size=pl.len().over("tag", pl.col("time") > build.cut))
            .with_columns(draw=hash_two(pl.col("tag"), pl.col("item"), build.config.seed))
            .collect(engine="streaming")
        )
        wide = items.filter(pl.col("size") > rules.max_items)
        general += wide.select("tag", "test").n_unique() if len(wide) else 0
        drawn = items.filter(pl.col("size") <= rules.max_items).sort("tag", "test", "draw")
        drawn = drawn.filter(pl.int_range(pl.len()).over("tag", "test") < rules.per_hashtag)
        pairs = neighbour_pairs(drawn, ["tag"], rules.neighbours)
        pairs.write_parquet(candidates / f"{part}.parquet", compression="lz4")
    counts = {"rows_read": read, "dropped_rows_unusable": read - usable, "dropped_rows_not_in_store": usable - stored}
    thresholds = PairRules(min_support=1, per_item=rules.per_item)
    found = write_item_pairs(build, "hashtag", candidates, thresholds, output)
    return counts | {"dropped_hashtags_too_general": general} | found


def build_summary(build: BuildContext, output: Path) -> dict[str, int]:
    """Writes the pairs of items whose summaries share n-grams; returns counts."""
    rules = build.config.builders.summary
    build.show(f"summary: reading {build.config.logs.catalogue.path}")
    scan, counts = _items(build, "summary", "summary")
    grams = build.folder("summary.grams")
    parts = build.parts(count(scan) * _WORDS_OF_SUMMARY)
    for part, (low, high) in enumerate(ranges(max(len(build.catalogue), 1), parts)):
        mine = scan.filter(pl.col("item").is_between(low, high - 1)).drop_nulls("summary")
        # An item with several rows gets the n-grams of all of them.
        texts = mine.collect(engine="streaming").unique().sort("item", "summary")
        word_grams(texts, rules.words).write_parquet(grams / f"{part}.parquet", compression="lz4")
    is_test = build.catalogue.frame.select(item="code", test="test")
    candidates, common = build.folder("summary.candidates"), 0
    index = pl.scan_parquet(sorted(grams.glob("*.parquet")), glob=False)
    parts = build.parts(count(index))
    for part in range(parts):
        build.show(f"summary: n-grams, part {part + 1} of {parts}")
        postings = (
            (index if parts == 1 else index.filter(pl.col("gram") % parts == part))
            .unique()
            .collect(engine="streaming")
            .join(is_test, on="item")
            .with_columns(documents=pl.len().over("gram", "test"))
        )
        too_common = postings.filter(pl.col("documents") > rules.max_documents)
        common += too_common.select("gram", "test").n_unique() if len(too_common) else 0
        rare = postings.filter(pl.col("documents").is_between(2, rules.max_documents)).sort("gram", "test", "item")
        pairs = neighbour_pairs(rare, ["gram"], rules.max_documents - 1)
        pairs.write_parquet(candidates / f"{part}.parquet", compression="lz4")
    thresholds = PairRules(min_support=rules.min_shared, per_item=rules.per_item)
    found = write_item_pairs(build, "summary", candidates, thresholds, output)
    return counts | {"dropped_ngrams_too_common": common} | found


def word_grams(texts: pl.DataFrame, words: int) -> pl.DataFrame:
    """Returns the word n-grams of texts, as hashes.

    Args:
        texts: item (UInt32), summary (String).
        words: n.

    Returns:
        item, gram (UInt64), in the order of the texts. Two n-grams collide with probability 2^-64. A text of fewer than
        n words has none.
    """
    tokens = (
        texts.select("item", word=pl.col("summary").str.normalize("NFKC").str.to_lowercase().str.extract_all(_WORD))
        .with_row_index("text")
        .explode("word")
        .drop_nulls("word")
        .with_columns(gram=pl.col("word").hash())
    )
    gram, whole = pl.col("gram"), pl.lit(True)
    for step in range(1, words):
        # A polynomial with an odd base, so that the hash depends on the order of the words.
        gram = gram * pl.lit(0x9E3779B97F4A7C15, pl.UInt64) + pl.col("gram").shift(-step)
        whole = pl.col("text") == pl.col("text").shift(-step)
    return tokens.select("item", gram=gram, whole=whole).filter("whole").drop("whole")


def build_cls(build: BuildContext, output: Path) -> dict[str, int]:
    """Writes pairs of a label, as the query text, and an item with that label; returns counts."""
    rules = build.config.builders.cls
    build.show(f"cls: reading {build.config.logs.catalogue.path}")
    scan, counts = _items(build, "cls", "labels")
    labels = scan.explode("labels").with_columns(text=pl.col("labels").str.strip_chars()).filter(pl.col("text") != "")
    texts = number_texts(labels, "text")
    coded = labels.join(texts.lazy(), on="text").select("item", label="code")
    rows = pl.scan_parquet(sink(coded, build.scratch / "cls" / "coded.parquet"))
    is_test = build.catalogue.frame.select(item="code", test="test").lazy()
    kept, used = build.folder("cls.kept"), np.zeros(len(build.catalogue), bool)
    counts |= dict.fromkeys(("candidates", "dropped_support", "dropped_over_per_label"), 0)
    parts = list(ranges(len(texts), build.parts(count(rows))))
    for part, (low, high) in enumerate(parts):
        members = (
            rows.filter(pl.col("label").is_between(low, high - 1))
            .unique()
            .join(is_test, on="item")
            .with_columns(draw=hash_two(pl.col("label"), pl.col("item"), build.config.seed))
            .collect(engine="streaming")
        )
        enough = members.filter(pl.len().over("label") >= rules.min_items).sort("label", "test", "draw")
        drawn = enough.filter(pl.int_range(pl.len()).over("label", "test") < rules.per_label)
        counts["candidates"] += len(members)
        counts["dropped_support"] += len(members) - len(enough)
        counts["dropped_over_per_label"] += len(enough) - len(drawn)
        used[drawn["item"].to_numpy()] = True
        drawn.sort("label", "test", "item").write_parquet(kept / f"{part}.parquet", compression="lz4")
    files = [kept / f"{part}.parquet" for part in range(len(parts))]
    ids, names = build.catalogue.ids(), texts["text"].to_arrow()

    def pairs_of(test: bool):
        for file in files:
            members = pl.read_parquet(file).filter(pl.col("test") == test)
            label, item = members["label"].to_arrow(), members["item"].to_arrow()
            yield pa.table({"query_text": names.take(label), "target_id": ids.take(item)})

    written = write_pair_columns(output, {"train": pairs_of(False), "test": pairs_of(True)})
    sizes = {split: written.get(split, 0) for split in ("train", "test")}
    return counts | sizes | {"distinct_items": int(used.sum())}


def _items(build: BuildContext, name: str, column: str) -> tuple[pl.LazyFrame, dict[str, int]]:
    """Writes item (UInt32) and one column of the catalogue to a scratch file; returns its scan and row counts."""
    rows = scan_items(build.config, build.source).select("item", column)
    scan = pl.scan_parquet(sink(build.catalogue.encode(rows), build.folder(name) / "rows.parquet"))
    read, usable, known = (
        count_rows(build.config, build.source, "catalogue"),
        count(scan),
        scan.filter(pl.col("item").is_not_null()),
    )
    counts = {"rows_read": read, "dropped_rows_unusable": read - usable}
    return known, counts | {"dropped_rows_not_in_store": usable - count(known)}
