"""A tiny omni-modal model on a generated world: the config of `python -m sail_jax quickstart`."""

import ml_collections

from sail_jax.config import default_config

FIND_RELATED = "Summarise the item so that related items can be found."
FIND_ITEM = "Represent the search so that fitting items can be found."


def tiny_model(config: ml_collections.ConfigDict) -> None:
    """Sets the real architecture with small widths, which two CPU cores train in minutes."""
    config.model.dtype = "float32"
    config.model.llm.update(
        vocab_size=2048, width=96, layers=2, heads=4, kv_heads=2, head_dim=24, mlp_width=256, rope_theta=10_000.0
    )
    config.model.bert.update(vocab_size=2048, width=96, layers=2, heads=4, mlp_width=256, max_positions=64)
    config.model.vit.update(image_size=56, patch_size=14, width=64, layers=2, heads=2, mlp_width=176)
    config.model.perceiver.update(latents=4, width=64, layers=1, heads=2, mlp_width=128, max_frames=2)
    config.model.audio.update(
        sample_rate=16_000,
        clip_seconds=2.0,
        n_fft=512,
        hop=512,
        mel_bins=32,
        f_max=7_600.0,
        spec_size=64,
        width=16,
        depths=(1, 1),
        heads=(2, 4),
        patch_size=8,
        window=4,
        projection=64,
        max_clips=1,
        normalize=True,
    )
    config.objective.matryoshka = (96, 48, 8)
    config.prompt.max_tokens = 64
    # With the usual b2 of 0.999, the second moment would remember the first steps until the end of so short a run.
    config.optimizer.update(peak=2e-3, floor=2e-4, warmup_steps=20, weight_decay=1e-2, b2=0.98)


def get_config() -> ml_collections.ConfigDict:
    """The experiment."""
    config = default_config()
    tiny_model(config)
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
    config.ingest.items_per_shard = 512
    config.ingest.tokenizer_vocab = 2048

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
    config.data.batch_size = 64
    config.train.update(steps=240, log_every=10, checkpoint_every=120)

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
    config.eval.tfidf = True
    return config
