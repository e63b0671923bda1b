"""Declares the settings of the pair builders: rules and thresholds of each data set made from logs."""

import dataclasses

from sail_jax.config.schema import section, setting

_PER_ITEM = (
    "maximum number of pairs of an item in each split; a pair is kept only if it is among the best of both its items"
)
_NPMI = (
    "minimum normalised pointwise mutual information of a pair, from -1 to 1; 0 is the value of two independent items"
)
_NEIGHBOURS = "maximum number of the next items in time that an item is paired with"


@dataclasses.dataclass(frozen=True)
class CopairConfig:
    """Settings of co-consumption pairs: two items that enough users liked within a window."""

    positives: int = setting(1, "minimum number of true flags of a positive event", low=1)
    window_seconds: int = setting(3600, "maximum time between the two events in seconds", low=0)
    neighbours: int = setting(5, _NEIGHBOURS, low=1)
    min_users: int = setting(2, "minimum number of users who consumed both", low=1)
    min_npmi: float = setting(0.1, _NPMI, low=-1, high=1)
    per_item: int = setting(50, _PER_ITEM, low=1)
    new_test_pairs: bool = setting(
        True,
        "leave out test pairs that are a candidate of train too; False keeps them, for users who are split, to whom "
        "they are new",
    )
    repeat: bool = setting(
        False, "write a pair once for each user who has it, so that it is drawn and counted as often; False, once"
    )
    held_out: float = setting(
        0.0,
        "share of the train pairs, drawn by a seeded hash, that are test pairs where no other is left, as of a dense "
        "or a small log; 0 leaves the test empty",
        low=0,
        below=1,
    )


@dataclasses.dataclass(frozen=True)
class LivePairsConfig:
    """Settings of co-watch pairs: two live streams that enough users watched within a window."""

    min_seconds: float = setting(30.0, "minimum length of a visit in seconds", low=0)
    window_seconds: int = setting(86_400, "maximum time between the two visits in seconds", low=0)
    neighbours: int = setting(5, _NEIGHBOURS, low=1)
    min_users: int = setting(2, "minimum number of users who watched both", low=1)
    min_npmi: float = setting(0.1, _NPMI, low=-1, high=1)
    per_item: int = setting(50, _PER_ITEM, low=1)


@dataclasses.dataclass(frozen=True)
class SearchPairsConfig:
    """Settings of search pairs: two items clicked for the same query."""

    min_clicks: int = setting(2, "minimum number of clicks of each item for the query", low=1)
    per_query: int = setting(10, "number of items of a query that are paired, those with the most clicks", low=2)
    min_queries: int = setting(1, "minimum number of queries that two items share", low=1)
    per_item: int = setting(50, _PER_ITEM, low=1)


@dataclasses.dataclass(frozen=True)
class SummaryPairsConfig:
    """Settings of summary pairs: two items whose summaries share word n-grams."""

    words: int = setting(3, "words of an n-gram; a Chinese or Japanese character counts as a word", low=1)
    min_shared: int = setting(2, "minimum number of n-grams that two items share", low=1)
    max_documents: int = setting(
        20, "maximum number of items of a split in which an n-gram may occur; more frequent ones are ignored", low=2
    )
    per_item: int = setting(50, _PER_ITEM, low=1)


@dataclasses.dataclass(frozen=True)
class HashtagPairsConfig:
    """Settings of hashtag pairs: two items with the same submitted hashtag."""

    max_items: int = setting(100_000, "number of items of a split from which a hashtag is too general", low=2)
    per_hashtag: int = setting(200, "number of items of a hashtag that are paired, drawn by a seeded hash", low=2)
    neighbours: int = setting(
        5, "number of the next items in the order of that hash that an item is paired with", low=1
    )
    per_item: int = setting(50, _PER_ITEM, low=1)


@dataclasses.dataclass(frozen=True)
class RsdfPairsConfig:
    """Settings of dense-feature pairs: two items whose dense features are close."""

    min_cosine: float = setting(0.9, "minimum cosine of the dense features", low=-1, high=1)
    neighbours: int = setting(10, "number of nearest items searched for each item", low=1)
    exact_items: int = setting(
        50_000, "number of items up to which the search is exact; with more, inverted lists are searched", low=0
    )
    probes: int = setting(16, "number of inverted lists searched for each item, of 4 sqrt(items)", low=1)
    per_item: int = setting(50, _PER_ITEM, low=1)


@dataclasses.dataclass(frozen=True)
class IdPairsConfig:
    """Settings of ID-embedding pairs: two items in the same cluster of an ID embedding."""

    cluster_items: int = setting(200, "average number of items per k-means cluster", low=2)
    max_clusters: int = setting(65_536, "maximum number of clusters", low=1)
    max_items: int = setting(
        4096, "maximum number of items compared at a time; a larger cluster is split by a seeded hash", low=2
    )
    neighbours: int = setting(5, "number of nearest items of its cluster that an item is paired with", low=1)
    per_item: int = setting(50, _PER_ITEM, low=1)


@dataclasses.dataclass(frozen=True)
class QuerySearchConfig:
    """Settings of query-item pairs: a query and an item clicked for it."""

    min_clicks: int = setting(2, "minimum number of clicks of the item for the query", low=1)
    min_ctr: float = setting(0.0, "minimum click-through rate of the item for the query", low=0, high=1)
    per_query: int = setting(20, "maximum number of items of a query, those with the most clicks", low=1)


@dataclasses.dataclass(frozen=True)
class QueryScoreConfig:
    """Settings of scored query-item pairs: the score is the smoothed click-through rate in steps."""

    min_shown: int = setting(3, "minimum number of times that the item was shown for the query", low=1)
    prior: float = setting(
        5.0, "number of impressions at the average rate added to those of each query and item", low=0
    )
    top_rate: float = setting(0.5, "smoothed rate from which the score is 1", above=0, high=1)
    levels: int = setting(10, "number of steps of the score between 0 and 1", low=1)
    per_query: int = setting(50, "maximum number of items of a query, those shown most often", low=1)


@dataclasses.dataclass(frozen=True)
class LabelPairsConfig:
    """Settings of label pairs: a label, as the query, and an item that has it."""

    min_items: int = setting(2, "minimum number of items with the label, in both splits together", low=1)
    per_label: int = setting(100_000, "maximum number of items of a label in each split, drawn by a seeded hash", low=1)


@dataclasses.dataclass(frozen=True)
class BuildersConfig:
    """Settings of the pair tables built from logs (arXiv 2510.12709, sec. 3.1.1, table 1)."""

    weight: str = setting(
        "",
        "what the tables have in a column `weight`, by which a data set may draw its rows (by_weight): 'multiplicity', "
        "how many users, queries, n-grams, clicks or impressions have the pair; 'strength', its mutual information, "
        "cosine, click rate or score, or else its multiplicity; empty for no such column",
        choices=("", "multiplicity", "strength"),
    )
    sheet_pairs: int = setting(8, "number of pairs of each table shown on the contact sheet", low=0)
    copair: CopairConfig = section(CopairConfig, "i2i: co-consumption")
    search: SearchPairsConfig = section(SearchPairsConfig, "i2i: clicked for the same query")
    live: LivePairsConfig = section(LivePairsConfig, "i2i: co-watch of live streams")
    summary: SummaryPairsConfig = section(SummaryPairsConfig, "i2i: shared n-grams of summaries")
    hashtag: HashtagPairsConfig = section(HashtagPairsConfig, "i2i: same hashtag")
    rsdf: RsdfPairsConfig = section(RsdfPairsConfig, "i2i: close dense features")
    id: IdPairsConfig = section(IdPairsConfig, "i2i: same cluster of ID embeddings")
    q2i_search: QuerySearchConfig = section(QuerySearchConfig, "q2i: query and clicked item")
    q2i_score: QueryScoreConfig = section(QueryScoreConfig, "q2i: query, item and graded score")
    cls: LabelPairsConfig = section(LabelPairsConfig, "CLS: label and item")
