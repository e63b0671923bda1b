"""A tiny omni-modal model on a generated world: the config of `python -m sail_jax quickstart`."""

import ml_collections

from sail_jax.config import preset

FIND_RELATED = "Summarise the item so that related items can be found."
FIND_ITEM = "Represent the search so that fitting items can be found."


def get_config() -> ml_collections.ConfigDict:
    """The experiment."""
    config = preset("tiny")
    # A part of the world: two blocks of topics, without near-duplicates, unclear frames and off-domain items.
    config.synthetic.update(num_items=960, items_per_topic=10, test_queries=240, searches=400, test_searches=30)
    config.synthetic.update(near_duplicates=0.0, two_looks=0.0, missing_fields=(), off_domain_items=0, num_users=400)
    config.ingest.source.update(
        path="items.jsonl",
        text={"title": "title", "asr": "asr", "ocr": "ocr", "nickname": "nickname", "tags": "tags"},
        frames="frames",
        audio="audio",
        labels="label",
    )
    config.ingest.tables = {
        "copair": {"path": "pairs.parquet", "query_id": "query_id", "target_id": "target_id", "split": "split"},
        "search": {"path": "searches", "query_text": "query", "target_id": "item_ids", "split": "split"},
        "look_search": {
            "path": "searches/look.jsonl",
            "query_text": "query",
            "target_id": "item_ids",
            "split": "split",
        },
        "score": {
            "path": "scores.jsonl",
            "query_text": "query",
            "target_id": "item_id",
            "score": "score",
            "split": "split",
        },
        "theme": {"path": "themes.parquet", "query_id": "query_id", "target_id": "target_id", "split": "split"},
    }
    config.data.datasets = {
        "copair": {
            "table": "tables/copair.parquet",
            "weight": 2.0,
            "query_instruction": FIND_RELATED,
            "target_instruction": FIND_RELATED,
        },
        # Frames and text alone lower the loss of pairs, so that sound is learned only where nothing else is shown.
        "heard": {
            "table": "tables/copair.parquet",
            "weight": 0.75,
            "patterns": ("A->A",),
            "query_instruction": FIND_RELATED,
            "target_instruction": FIND_RELATED,
        },
        "search": {
            "table": "tables/search.parquet",
            "weight": 1.0,
            "patterns": ("T->O",),
            "query_instruction": FIND_ITEM,
            "target_instruction": FIND_RELATED,
        },
    }

    config.eval.tasks = {
        "i2i": {
            "table": "tables/copair.parquet",
            "corpus": "targets",
            "query_instruction": FIND_RELATED,
            "target_instruction": FIND_RELATED,
            "views": ("T", "V", "A"),
        },
        "q2i": {
            "table": "tables/search.parquet",
            "corpus": "targets",
            "query": "T",
            "query_instruction": FIND_ITEM,
            "target_instruction": FIND_RELATED,
        },
    }
    return config
