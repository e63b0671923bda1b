"""The settings of the pair builders: the rule and the thresholds of each data set made from logs (see `config`)."""

import dataclasses

from sail_jax.config.schema import section, setting

_PER_ITEM = (
    "pairs of an item on one side of the cut, at most; a pair stays where it is among the best of both its items"
)
_NPMI = "least normalised pointwise mutual information of a pair, from -1 to 1; 0 is what chance would make of two popular items"
_NEIGHBOURS = "items that follow an item in the order of time and are paired with it, at most"


@dataclasses.dataclass(frozen=True)
class CopairConfig:
    """Co-consumption: two items that a user liked within a window, and enough other users too."""

    positives: int = setting(1, "least number of true flags that makes an event positive", low=1)
    window_seconds: int = setting(3600, "longest time between the two events", low=0)
    neighbours: int = setting(5, _NEIGHBOURS, low=1)
    min_users: int = setting(2, "least number of users who consumed both", low=1)
    min_npmi: float = setting(0.1, _NPMI, low=-1, high=1)
    per_item: int = setting(50, _PER_ITEM, low=1)


@dataclasses.dataclass(frozen=True)
class LivePairsConfig:
    """Co-watch: two live streams that a user stayed in, and enough other users too."""

    min_seconds: float = setting(30.0, "least length of a visit", low=0)
    window_seconds: int = setting(86_400, "longest time between the two visits", low=0)
    neighbours: int = setting(5, _NEIGHBOURS, low=1)
    min_users: int = setting(2, "least number of users who watched both", low=1)
    min_npmi: float = setting(0.1, _NPMI, low=-1, high=1)
    per_item: int = setting(50, _PER_ITEM, low=1)


@dataclasses.dataclass(frozen=True)
class SearchPairsConfig:
    """Items clicked for the same query."""

    min_clicks: int = setting(2, "least clicks of each item for the query", low=1)
    per_query: int = setting(10, "items of a query that are paired, those with the most clicks", low=2)
    min_queries: int = setting(1, "least number of queries that two items share", low=1)
    per_item: int = setting(50, _PER_ITEM, low=1)


@dataclasses.dataclass(frozen=True)
class SummaryPairsConfig:
    """Items whose summaries share word n-grams."""

    words: int = setting(3, "words of an n-gram; a Chinese or Japanese character counts as a word", low=1)
    min_shared: int = setting(2, "least number of n-grams that two items share", low=1)
    max_documents: int = setting(
        20, "items on one side of the cut in which an n-gram may occur; others are too common", low=2
    )
    per_item: int = setting(50, _PER_ITEM, low=1)


@dataclasses.dataclass(frozen=True)
class HashtagPairsConfig:
    """Items with the same submitted hashtag."""

    max_items: int = setting(100_000, "items on one side of the cut from which a hashtag is too general", low=2)
    per_hashtag: int = setting(200, "items of a hashtag that are paired, drawn by a seeded hash", low=2)
    neighbours: int = setting(5, "items that follow an item in the order of that hash and are paired with it", low=1)
    per_item: int = setting(50, _PER_ITEM, low=1)


@dataclasses.dataclass(frozen=True)
class RsdfPairsConfig:
    """Items whose dense features are close."""

    min_cosine: float = setting(0.9, "least cosine of the dense features", low=-1, high=1)
    neighbours: int = setting(10, "nearest items looked at for each item", low=1)
    exact_items: int = setting(
        50_000, "items up to which the nearest are exact; above, inverted lists are searched", low=0
    )
    probes: int = setting(16, "inverted lists searched for each item, of 4 sqrt(items)", low=1)
    per_item: int = setting(50, _PER_ITEM, low=1)


@dataclasses.dataclass(frozen=True)
class IdPairsConfig:
    """Items in the same cluster of an ID embedding."""

    cluster_items: int = setting(200, "items for each k-means cluster, on average", low=2)
    max_clusters: int = setting(65_536, "clusters, at most", low=1)
    max_items: int = setting(
        4096, "items of a cluster compared at a time; a larger one is split by a seeded hash", low=2
    )
    neighbours: int = setting(5, "nearest items of its cluster that an item is paired with", low=1)
    per_item: int = setting(50, _PER_ITEM, low=1)


@dataclasses.dataclass(frozen=True)
class QuerySearchConfig:
    """A query and an item clicked for it."""

    min_clicks: int = setting(2, "least clicks of the item for the query", low=1)
    min_ctr: float = setting(0.0, "least share of the times it was shown that it was clicked", low=0, high=1)
    per_query: int = setting(20, "items of a query, those with the most clicks", low=1)


@dataclasses.dataclass(frozen=True)
class QueryScoreConfig:
    """A query, an item and a graded score: the smoothed click-through rate in steps."""

    min_shown: int = setting(3, "least times that the item was shown for the query", low=1)
    prior: float = setting(5.0, "impressions at the average rate that are added to those of each query and item", low=0)
    top_rate: float = setting(0.5, "smoothed rate from which the score is 1", above=0, high=1)
    levels: int = setting(10, "steps of the score between 0 and 1", low=1)
    per_query: int = setting(50, "items of a query, those shown most often", low=1)


@dataclasses.dataclass(frozen=True)
class LabelPairsConfig:
    """A label, as the query, and an item that has it."""

    min_items: int = setting(2, "least number of items with the label, on both sides of the cut together", low=1)
    per_label: int = setting(100_000, "items of a label on one side of the cut, drawn by a seeded hash", low=1)


@dataclasses.dataclass(frozen=True)
class BuildersConfig:
    """From a recommender's logs to pair tables (arXiv 2510.12709, sec. 3.1.1, table 1)."""

    partition_rows: int = setting(
        4_000_000, "rows held in memory at a time, about; fewer take less memory and change no result", low=1000
    )
    sheet_pairs: int = setting(8, "pairs of each table shown on the contact sheet", low=0)
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
