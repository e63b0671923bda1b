"""The full-size model: Qwen2.5-1.5B, ViT-L/14-448, Visual Perceiver 1024/16/6, CLAP 512 (arXiv 2510.12709, sec. 3.2).

The model is the preset `report`; this file names the data sets of table 1 of the report. To use it, point
`config.data.dir` at an ingested folder and name its tables.
"""

from collections.abc import Mapping

import ml_collections

from sail_jax.config import preset

RELATED = "Summarise the video so that related videos can be found."
SEARCH = "Represent the search query so that fitting videos can be found."
CLASS = "Summarise the video so that its topic tags can be told."

# Name -> sampling weight: here in proportion to the sizes in the report, in billions of pairs. A table is a Parquet
# file or a folder of them; those that `ingest` writes are called tables/NAME.parquet.
ITEM_TO_ITEM = {
    "copair": 2.9,
    "search_i2i": 0.6,
    "live": 1.4,
    "summary": 1.1,
    "hashtag": 0.05,
    "rsdf": 0.3,
    "id": 0.08,
}
QUERY_TO_ITEM = {"search_q2i": 1.8, "score": 0.6}


def get_config() -> ml_collections.ConfigDict:
    """The experiment."""
    config = preset("report")
    config.data.datasets = _datasets()
    config.objective.weights.update(micl=0.1, late_fusion=0.1)
    config.stages = _stages({name: dataset["weight"] for name, dataset in config.data.datasets.items()})
    config.eval.tasks = {
        "copair": {"table": "tables/copair", "query_instruction": RELATED, "target_instruction": RELATED},
        "search_q2i": {
            "table": "tables/search_q2i",
            "query": "T",
            "query_instruction": SEARCH,
            "target_instruction": RELATED,
        },
    }
    return config


def _datasets() -> dict[str, dict]:
    """Returns the training sets."""
    item = {
        "patterns": ("O->O", "V->V", "T->T", "V->T"),
        "query_instruction": RELATED,
        "target_instruction": RELATED,
    }
    query = {
        "patterns": ("T->O", "T->V", "T->T"),
        "query_instruction": SEARCH,
        "target_instruction": RELATED,
    }
    datasets = {name: {"table": f"tables/{name}", "weight": weight, **item} for name, weight in ITEM_TO_ITEM.items()}
    datasets |= {name: {"table": f"tables/{name}", "weight": weight, **query} for name, weight in QUERY_TO_ITEM.items()}
    # Pairs with a low score are not positives of the contrastive losses; COSENT ranks all of them.
    datasets["score"] |= {"min_score": 0.5, "loss_weights": {"cosent": 1.0}}
    datasets["cls"] = {
        "table": "tables/cls",
        "weight": 3.1,
        "patterns": ("O->T", "V->T"),
        "query_fields": ("title", "asr", "ocr", "nickname"),
        "target_fields": ("tags",),
        "query_instruction": CLASS,
        "target_instruction": CLASS,
    }
    return datasets


def _stages(weights: Mapping[str, float]) -> dict[str, dict]:
    """Returns the stages, for the weights of the training sets."""
    # Everything; then what is close to the target tasks; then clean sets, with hard negatives from the
    # model so far.
    close = ("copair", "search_i2i", "search_q2i", "score", "cls")
    clean = ("hashtag", "id", "score")
    return {
        "1_broad": {"steps": 12_000},
        "2_target": {
            "steps": 6_000,
            "weights": {name: weights[name] for name in close},
            "warmup_steps": 200,
        },
        "3_hard": {
            "steps": 2_000,
            "weights": {name: weights[name] for name in clean},
            "mine": ("hashtag", "id"),
            "peak": 6e-6,
            "floor": 3e-6,
            "warmup_steps": 100,
        },
    }
