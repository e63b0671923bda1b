"""Glyphs of Noto Color Emoji with names, keywords and synthesised speech: a small real data set.

Expects `items.csv`, `pairs.csv` and `queries.csv` beside media folders; see docs/extending.md for the commands. A
query is a keyword. The keywords of an item are its tags, which are ingested, but never shown to the model.
"""

import ml_collections

from sail_jax.config import default_config

SHOWN = ("title",)
FIND_RELATED = "Summarise the picture so that related pictures can be found."
FIND_ITEM = "Represent the keyword so that fitting pictures can be found."
FIND_SAME = "Represent what is shown so that the same thing can be found in another form."


def _same() -> dict:
    """Settings that pair an item in one modality with the same item in another."""
    instructions = {"query_instruction": FIND_SAME, "target_instruction": FIND_SAME}
    return {"table": "tables/same.parquet", **_shown(), **instructions}


def _shown() -> dict:
    return {"query_fields": SHOWN, "target_fields": SHOWN}


def get_config() -> ml_collections.ConfigDict:
    """The experiment."""
    config = default_config()
    config.ingest.source.update(
        path="items.csv",
        id="item_id",
        text={"title": "title", "tags": "tags"},
        labels="group",
        frames="image",
        audio="audio",
    )
    config.ingest.tables = {
        "i2i": {
            "path": "pairs.csv",
            "query_id": "query_id",
            "target_id": "target_id",
            "score": "score",
            "split": "split",
        },
        "q2i": {"path": "queries.csv", "query_text": "query", "target_id": "item_ids", "split": "split"},
        "same": {},
    }
    config.ingest.holdout = 0.1
    config.ingest.items_per_shard = 512
    config.ingest.tokenizer_vocab = 2048

    config.model.dtype = "float32"
    config.model.llm.update(
        vocab_size=2048, width=128, layers=2, heads=4, kv_heads=2, head_dim=32, mlp_width=344, rope_theta=10_000.0
    )
    config.model.vit.update(image_size=70, patch_size=14, width=96, layers=2, heads=3, mlp_width=256)
    config.model.perceiver.update(latents=4, width=96, layers=1, heads=3, mlp_width=192, max_frames=1)
    config.model.audio.update(
        sample_rate=16_000,
        clip_seconds=2.0,
        n_fft=512,
        hop=256,
        mel_bins=32,
        f_max=7_600.0,
        spec_size=64,
        patch_size=8,
        width=32,
        depths=(1, 1),
        heads=(2, 4),
        window=4,
        projection=128,
        max_clips=1,
        normalize=True,
    )
    config.model.bert.update(vocab_size=2048, width=128, layers=2, heads=4, mlp_width=344, max_positions=48)
    config.prompt.max_tokens = 48
    config.objective.matryoshka = (128, 64, 16)
    config.optimizer.update(peak=2e-3, floor=1e-4, warmup_steps=50, weight_decay=5e-2, b2=0.98)

    related = {**_shown(), "query_instruction": FIND_RELATED, "target_instruction": FIND_RELATED}
    search = {**_shown(), "query_instruction": FIND_ITEM, "target_instruction": FIND_RELATED}
    config.data.datasets = {
        "i2i": {"table": "tables/i2i.parquet", "weight": 1.0, **related},
        "q2i": {"table": "tables/q2i.parquet", "weight": 1.0, "patterns": ("T->O",), **search},
        "image_text": {"weight": 0.5, "patterns": ("V->T",), **_same()},
        "audio_text": {"weight": 0.5, "patterns": ("A->T",), **_same()},
    }
    config.data.batch_size = 64
    config.train.update(steps=1200, log_every=20, checkpoint_every=300)

    held_out = {"corpus": "targets"}
    config.eval.tasks = {
        "i2i": {"table": "tables/i2i.parquet", "both_ways": True, **related},
        "q2i": {"table": "tables/q2i.parquet", "query": "T", **search},
        "text_to_image": {"query": "T", "target": "V", **_same(), **held_out},
        "audio_to_text": {"query": "A", "target": "T", **_same(), **held_out},
        "image_to_text": {"query": "V", "target": "T", **_same(), **held_out},
    }
    config.eval.ks = (1, 10, 25, 50, 100)
    config.eval.tfidf = True
    return config
