"""Declares the settings of prompts, training sets, input pipeline, ingestion and generated world."""

import dataclasses

from sail_jax.config.schema import section, setting
from sail_jax.items import TEXT_FIELDS

# The default system prompt. Embed items for search under the same prompt as in training.
DEFAULT_INSTRUCTION = "Summarise the item for finding related items."

# ------------------------------------------------------------------------------------------------------------ data


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """Settings of the prompts that turn items into token sequences."""

    tokenizer: str = setting(
        "tokenizer",
        "tokenizer directory, absolute or relative to data.dir, or 'hf://OWNER/NAME' of the hub",
    )
    template: str = setting(
        "<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n{audio}{vision}{text}<|im_end|>\n"
        "<|im_start|>assistant\n",
        "chat template; {audio}, {vision} and {text} are replaced by the modalities of the item",
    )
    max_tokens: int = setting(
        256, "length of the token sequence, prompt and media tokens included; longer text is cut", low=1
    )
    unified: str = setting(
        "",
        "one instruction for all data sets, tasks and sides, instead of their own (an ablation); empty for their own",
    )


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """Settings of a training set: its table, and how items are shown on each side."""

    kind: str = setting(
        "pairs",
        "'pairs': a pair table; 'sequences': a table of histories, each matched with the item that came next; 'items': "
        "only the queries of a pair table, trained to match ID embeddings",
        choices=("pairs", "sequences", "items"),
    )
    table: str = setting("", "table (a Parquet file or a folder of them) relative to data.dir", bucket=True)
    split: str = setting("train", "split of the table to use; empty for all rows")
    weight: float = setting(1.0, "sampling weight, relative to the other data sets", low=0)
    by_weight: bool = setting(
        False,
        "draw rows in proportion to the column `weight` of the table, with replacement, instead of each once an epoch "
        "(only 'pairs' and 'items')",
    )
    shuffle_groups: int = setting(
        0,
        "row groups of the table that are read and shuffled together, for tables much larger than the row groups that "
        "are kept in memory; 0 shuffles all rows alike",
        low=0,
    )
    patterns: tuple[str, ...] = setting(
        ("O->O",),
        "modalities of the query and the target that are matched, such as 'VTA->VTA', 'V->T', 'A->VT'; a pair that "
        "lacks one of the modalities is left out of the pattern; 'O' stands for all modalities that an item has",
    )
    loss_weights: dict[str, float] = setting({}, "loss -> weight for this data set, instead of objective.weights")
    min_score: float = setting(
        0.0,
        "minimum score of a positive pair of the contrastive losses; COSENT ranks pairs of all scores",
    )
    correct_popularity: float = setting(
        0.0,
        "strength of the sampling-bias correction: the contrastive losses subtract this share of the log frequency of "
        "every candidate from its logit, so that popular items do not sink; for sets in which popularity is wanted, "
        "such as co-consumption; 0 corrects nothing",
        low=0,
        high=1,
    )
    negatives: str = setting(
        "", "table of hard negatives relative to data.dir, as `mine` writes it; empty for none", bucket=True
    )
    hard_negatives: int = setting(0, "hard negatives per pair, drawn from that table", low=0)
    random_negatives: int = setting(
        0, "further negatives per pair, drawn from all items alike and used as hard negatives are (only 'pairs')", low=0
    )
    materialized: str = setting(
        "",
        "folder of this set's records relative to data.dir, as `materialize` writes it; empty reads table and store",
        may_change=True,
        bucket=True,
    )
    history: int = setting(10, "number of latest items of a history that form the query (only 'sequences')", low=1)
    distinct_items: int = setting(
        0,
        "distinct items per sequence, targets included, for which a batch has room: an item of several sequences of a "
        "device is encoded once; if the room runs out, the oldest items are left out; 0 for history + 1, which is "
        "always enough (only 'sequences')",
        low=0,
    )
    seen: int = setting(
        100,
        "number of items last seen by the user, besides the history, that are excluded from the negatives; those of "
        "the history always are (only 'sequences')",
        low=0,
    )
    query_fields: tuple[str, ...] = setting(TEXT_FIELDS, "text fields shown on the query side")
    target_fields: tuple[str, ...] = setting(TEXT_FIELDS, "text fields shown on the target side")
    query_instruction: str = setting(DEFAULT_INSTRUCTION, "system prompt of the query side")
    target_instruction: str = setting(DEFAULT_INSTRUCTION, "system prompt of the target side")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Settings of the input pipeline."""

    dir: str = setting(
        "",
        "folder that `ingest` wrote: the item store, the tables and the tokenizer; it may lie in a bucket",
        may_change=True,
        bucket=True,
    )
    datasets: dict[str, DatasetConfig] = setting({}, "the training sets by name")
    weights: str = setting(
        "",
        "JSON file of sampling weights by data set, as `balance` writes it, relative to data.dir; it replaces each "
        "`weight`",
        bucket=True,
    )
    batch_size: int = setting(64, "pairs per global batch", low=1)
    sampling: str = setting(
        "specialized",
        "'specialized': each batch from one data set; 'mixed': data sets mixed inside the batch",
        choices=("specialized", "mixed"),
    )
    frame_budget: float = setting(
        0.0,
        "frames per item, on average, for which a batch has room; pairs that are encoded together (of a device, a "
        "micro-batch, a model.media_chunk) share the room; 0 for perceiver.max_frames",
        low=0,
    )
    clip_budget: float = setting(0.0, "capacity in audio clips per item, likewise; 0 for the maximum", low=0)
    encode_once: bool = setting(
        False,
        "frames and clips of an item that comes several times among pairs encoded together take room once, and the "
        "towers encode them once; lets budgets be lower, and saves nothing without them",
    )
    encoding_cache_gb: float = setting(
        0.0,
        "gigabytes of disk for the outputs of vision and audio towers of which nothing is trained, for all frames and "
        "sounds of the item store: they are computed before the first step, and read in every step after; 0 computes "
        "them in each",
        low=0,
        may_change=True,
    )
    encoding_cache: str = setting(
        "",
        "folder of these outputs, which runs with the same towers may share; empty for WORKDIR/encodings",
        may_change=True,
    )
    text_budget: float = setting(
        0.0,
        "capacity of the fusion in text tokens per item, averaged over the pairs of a device; rows are then packed "
        "without padding, and the longest texts are cut if they do not fit; 0 pads every row to prompt.max_tokens, as "
        "a dual tower always does",
        low=0,
    )
    field_dropout: float = setting(0.0, "probability of dropping each text field in training", low=0, high=1)
    workers: int = setting(
        0, "worker processes that prepare batches; 0 prepares them in the training process", low=0, may_change=True
    )
    prefetch: int = setting(2, "batches prepared ahead per worker", low=0, may_change=True)
    max_bad_records: int = setting(
        100,
        "maximum number of records per process that fail to load and are skipped; with more, training stops",
        low=0,
        may_change=True,
    )


# ---------------------------------------------------------------------------------------------------------- ingest


@dataclasses.dataclass(frozen=True)
class ItemSourceConfig:
    """Settings of the source of the items: its table and columns."""

    path: str = setting("", "table of items (CSV, TSV, JSONL or Parquet), relative to the source folder")
    header: tuple[str, ...] = setting(
        (), "names of the columns of a CSV or TSV table without a header line; empty if it has one"
    )
    tfds: str = setting("", "TFDS data set with its split instead of a table, for example 'my_set/config:1.0.0[train]'")
    id: str = setting("item_id", "column of the item id")
    text: dict[str, str] = setting({}, f"text field -> column; fields: {', '.join(TEXT_FIELDS)}")
    frames: str = setting("", "column of the image file, or of a list of them in temporal order")
    video: str = setting("", "column of a video file: key frames, and the sound unless `audio` names a column")
    audio: str = setting("", "column of the sound file")
    frames_pattern: str = setting(
        "",
        "image file of each item if no column names it, such as 'covers/{item_id}.jpg', relative to the source folder; "
        "an item without such a file has no image",
    )
    video_pattern: str = setting(
        "", "likewise, its video file, such as 'videos/{item_id}.mp4', for items that lack an image or a sound file"
    )
    audio_pattern: str = setting("", "likewise, its sound file, such as 'audio/{item_id}.wav'")
    audio_rate: int = setting(
        0, "samples per second of sound stored as numbers in a column, as in some TFDS data sets", low=0
    )
    audio_embedding: str = setting("", "column of a precomputed CLAP vector")
    labels: str = setting("", "column of the label, or of a list of them")
    id_embeddings: dict[str, str] = setting({}, "name -> column of a recommender's ID embedding")
    separator: str = setting("|", "separator of lists in columns that hold text")


@dataclasses.dataclass(frozen=True)
class TableSourceConfig:
    """Settings of the source of a table of references: its file and columns."""

    path: str = setting(
        "", "table (CSV, TSV, JSONL or Parquet), relative to the source folder; empty pairs every item with itself"
    )
    query_id: str = setting("", "column of the query item's id")
    query_text: str = setting("", "column of the query's text, for free-text queries")
    target_id: str = setting("", "column of the target item's id, or of a list of them")
    score: str = setting("", "column of a graded similarity score")
    split: str = setting("", "column of the split; empty puts all rows in 'train'")
    separator: str = setting("|", "separator of lists in columns that hold text")


@dataclasses.dataclass(frozen=True)
class IngestConfig:
    """Settings of ingestion: from a raw export to an item store and tables."""

    source: ItemSourceConfig = section(ItemSourceConfig, "the items")
    vectors: dict[str, str] = setting(
        {},
        "name -> Parquet file of `item_id` and `vector`, or folder of its parts, relative to the source folder: ID "
        "embeddings that are joined to the items by their ids",
    )
    tables: dict[str, TableSourceConfig] = setting({}, "the tables by name; each becomes tables/NAME.parquet")
    items_per_shard: int = setting(4096, "items per ArrayRecord shard; a finished shard is never redone", low=1)
    holdout: float = setting(
        0.0, "share of the items held out: training rows that touch them move to the split 'holdout'", low=0, high=1
    )
    max_bad_records: int = setting(
        100, "maximum number of bad records that are skipped and reported; with more, ingestion stops", low=0
    )
    max_pixels: int = setting(
        50_000_000, "maximum number of pixels of an image; larger ones are refused without decoding", low=1
    )
    max_audio_seconds: float = setting(
        3600.0, "maximum length of a sound; longer ones are refused without decoding", above=0
    )
    max_decode_seconds: float = setting(
        600.0, "maximum time that decoding the media of one record may take; longer ones are refused", above=0
    )
    frames_per_video: int = setting(8, "key frames taken from a video, evenly spaced", low=1)
    outside_paths: bool = setting(
        False, "whether paths in tables may lead out of the source folder: absolute ones, by '..', or by links"
    )
    tokenizer_vocab: int = setting(
        0, "train a byte-level BPE tokenizer of this size on the ingested text; 0 trains none", low=0
    )


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """Settings of the generated world; by default it has its full size, and the quickstart a part of it."""

    num_items: int = setting(
        2880, "number of items of the catalogue; test queries and off-domain items come on top", low=1
    )
    items_per_topic: int = setting(12, "items of each topic", low=1)
    test_queries: int = setting(
        1250, "items that are queries of a test task, for each of these tasks; in no training set", low=0
    )
    near_duplicates: float = setting(
        0.25,
        "share of the catalogue that repeats another item but for one facet; with 0 there is no test of it",
        low=0,
        high=1,
    )
    two_looks: float = setting(
        0.25,
        "share of the catalogue whose frames show two looks, of which the text says which counts; with 0 there is no "
        "test of it",
        low=0,
        high=1,
    )
    missing_fields: tuple[str, ...] = setting(
        ("title",), "text fields that the queries of one test task lack; without any there is no such task"
    )
    pairs_per_item: int = setting(4, "training pairs of each item in each table of related items", low=1)
    wrong_pairs: float = setting(0.5, "share of wrong pairs in the broad set", low=0, high=1)
    clean_pairs: int = setting(1000, "pairs of the clean set, all of them right", low=1)
    searches: int = setting(4000, "training searches of each kind", low=1)
    test_searches: int = setting(1000, "test searches of each kind", low=0)
    off_domain_items: int = setting(240, "items of each of the three off-domain sets; 0 for no such sets", low=0)
    num_users: int = setting(1000, "number of users whose log gives the pairs of items", low=1)
    events_per_user: int = setting(40, "log entries per user", low=1)
    zipf: float = setting(0.8, "exponent of Zipf's law of the items' popularity; 0 for equal popularity", low=0)
    communities: int = setting(
        0,
        "number of hidden tastes of the users of a recommender, whose logs and vectors are then written too, in the "
        "layout of config.logs; 0 for no such logs",
        low=0,
    )
    styles: int = setting(4, "number of styles of items, which the tastes distinguish and the content does not", low=1)
    log_users: int = setting(3000, "number of users of the recommender", low=1)
    log_events_per_user: int = setting(100, "average number of items shown to each user", low=1)
