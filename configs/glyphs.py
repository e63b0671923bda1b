"""Glyphs of Noto Color Emoji with names, keywords and synthesised speech: a small real data set.

Expects `items.csv`, `pairs.csv` and `queries.csv` beside media folders; see docs/extending.md for the commands. A
query is a keyword. The keywords of an item are its tags, which are ingested, but never shown to the model.
"""

import ml_collections

from sail_jax.config import preset

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
    config = preset("tiny")
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

    config.model.llm.update(width=128, head_dim=32, mlp_width=344)
    config.model.vit.update(image_size=70, width=96, heads=3, mlp_width=256)
    config.model.perceiver.update(width=96, heads=3, mlp_width=192, max_frames=1)
    config.model.audio.update(hop=256, width=32, projection=128)
    config.model.bert.update(width=128, mlp_width=344, max_positions=48)
    config.prompt.max_tokens = 48
    config.objective.matryoshka = (128, 64, 16)
    config.optimizer.update(floor=1e-4, warmup_steps=50, weight_decay=5e-2)

    related = {**_shown(), "query_instruction": FIND_RELATED, "target_instruction": FIND_RELATED}
    search = {**_shown(), "query_instruction": FIND_ITEM, "target_instruction": FIND_RELATED}
    config.data.datasets = {
        "i2i": {"table": "tables/i2i.parquet", "weight": 1.0, **related},
        "q2i": {"table": "tables/q2i.parquet", "weight": 1.0, "patterns": ("T->O",), **search},
        "image_text": {"weight": 0.5, "patterns": ("V->T",), **_same()},
        "audio_text": {"weight": 0.5, "patterns": ("A->T",), **_same()},
    }
    config.train.update(steps=1200, log_every=20, checkpoint_every=300)

    held_out = {"corpus": "targets"}
    config.eval.tasks = {
        "i2i": {"table": "tables/i2i.parquet", "both_ways": True, **related},
        "q2i": {"table": "tables/q2i.parquet", "query": "T", **search},
        "text_to_image": {"query": "T", "target": "V", **_same(), **held_out},
        "audio_to_text": {"query": "A", "target": "T", **_same(), **held_out},
        "image_to_text": {"query": "V", "target": "T", **_same(), **held_out},
    }
    return config
