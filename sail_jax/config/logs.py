"""Declares the settings of a recommender's logs: their files and columns."""

import dataclasses

from sail_jax.config.schema import section, setting

_PATH = (
    "Parquet, CSV, TSV or JSONL file, or folder of its parts, relative to the source folder; empty if there is no such "
    "log"
)
_TIME = "column of the time, a number (see logs.time_unit) or a timestamp"
_ORDER = (
    "; in a log without times, the number by which a user's items are ordered, and '-COLUMN' puts the largest first"
)


@dataclasses.dataclass(frozen=True)
class EventLogConfig:
    """Columns of the event log: a row per impression or play of an item."""

    path: str = setting("logs/events", _PATH, bucket=True)
    user: str = setting("user_id", "column of the user's id")
    item: str = setting("item_id", "column of the item's id")
    time: str = setting("timestamp", _TIME + _ORDER)
    split: str = setting(
        "",
        "column that says 'train' or 'test' of each row, such as a split of the users; other rows are left out; empty "
        "splits by time (logs.test_share)",
    )
    flags: tuple[str, ...] = setting(
        ("like", "finish", "share", "comment", "follow"),
        "positive behaviours: columns that are true or false (or 0 and 1), and conditions on a column such as "
        "'rating>=4'; empty if every row is positive",
    )
    watch_share: str = setting("watch_share", "column of the share of the item that was watched; empty for none")


@dataclasses.dataclass(frozen=True)
class SearchLogConfig:
    """Columns of the search log: a row per result shown, or only the clicks."""

    path: str = setting("logs/searches", _PATH, bucket=True)
    user: str = setting("user_id", "column of the user's id")
    query: str = setting("query", "column of the text of the search")
    item: str = setting("item_id", "column of the result's id")
    time: str = setting("timestamp", _TIME)
    clicked: str = setting("clicked", "column that is true if the result was clicked; empty if all rows are clicks")


@dataclasses.dataclass(frozen=True)
class LiveLogConfig:
    """Columns of the live log: a row per visit of a user to a live stream."""

    path: str = setting("logs/live", _PATH, bucket=True)
    user: str = setting("user_id", "column of the user's id")
    item: str = setting("item_id", "column of the id of the stream, which is an item")
    time: str = setting("timestamp", _TIME)
    seconds: str = setting("seconds", "column of the seconds watched")


@dataclasses.dataclass(frozen=True)
class HashtagLogConfig:
    """Columns of the hashtag log: a row per item and hashtag that its author submitted."""

    path: str = setting("logs/hashtags", _PATH, bucket=True)
    item: str = setting("item_id", "column of the item's id")
    hashtag: str = setting("hashtag", "column of the hashtag")
    time: str = setting("timestamp", _TIME)


@dataclasses.dataclass(frozen=True)
class ItemLogConfig:
    """Columns of the catalogue: a row per item."""

    path: str = setting("logs/items", _PATH, bucket=True)
    item: str = setting("item_id", "column of the item's id")
    time: str = setting("timestamp", "column of the time of publication; empty if it is not known")
    labels: str = setting("labels", "column of the list of its labels, from coarse to fine; empty for none")
    summary: str = setting("summary", "column of a summary of its content in words; empty for none")


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Settings of the engines that build pairs and sequences; they change no table."""

    threads: int = setting(0, "threads of DuckDB; 0 for one per core", low=0)
    memory_limit: str = setting(
        "4GB", "memory of DuckDB, beyond which it spills to the scratch folder; empty for 80 % of the machine's"
    )
    spark_master: str = setting("local[*]", "where Spark runs: local[*], yarn, k8s://..., spark://...")
    spark_options: dict[str, str] = setting({}, "name -> value of further settings of the Spark session", bucket=True)
    scratch: str = setting(
        "",
        "address of a folder that all machines of Spark see, such as s3a://bucket/scratch, for what lies between logs "
        "and tables; empty for a folder in that of the tables",
        bucket=True,
    )


@dataclasses.dataclass(frozen=True)
class LogsConfig:
    """Settings of the logs and item tables of a recommender (arXiv 2510.12709, sec. 3.2.2 and 3.3.5)."""

    events: EventLogConfig = section(EventLogConfig, "impressions and plays")
    searches: SearchLogConfig = section(SearchLogConfig, "searches with clicks")
    live: LiveLogConfig = section(LiveLogConfig, "live watches")
    hashtags: HashtagLogConfig = section(HashtagLogConfig, "submitted hashtags")
    catalogue: ItemLogConfig = section(ItemLogConfig, "items, with labels and summaries")
    dense_features: str = setting(
        "vectors/dense",
        "Parquet of `item_id` and `vector`, the recommender's dense features, or a folder of its parts; empty for none",
        bucket=True,
    )
    id_embeddings: dict[str, str] = setting(
        {},
        "name -> Parquet of `item_id` and `vector`, a recommender's ID embedding, or a folder of its parts",
        bucket=True,
    )
    time_unit: str = setting("s", "unit of the times that are numbers", choices=("s", "ms", "us"))
    engine: EngineConfig = section(EngineConfig, "the engine of `pairs` and `sequences`", may_change=True)
    split: str = setting(
        "time",
        "what tells test from train in logs with users: 'time', the cut of test_share; 'user', a share of the users, "
        "test_users; 'both', test users after the cut against other users up to it, and the rest is in neither. Logs "
        "without users are cut in time",
        choices=("time", "user", "both"),
    )
    test_share: float = setting(
        0.1,
        "share of the time span, at its end, whose events form the test split; no pair or training sequence spans both",
        low=0,
        below=1,
    )
    test_users: float = setting(
        0.1,
        "share of the users, drawn by a hash of seed and id, who are test users (only with logs.split)",
        low=0,
        below=1,
    )
