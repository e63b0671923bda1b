"""The full-size model: Qwen2.5-1.5B, ViT-L/14-448, Visual Perceiver 1024/16/6, CLAP 512 (arXiv 2510.12709, sec. 3.2).

The model is the default of `sail_jax.config`; this file names the data sets of table 1 of the report. To use it, point
`config.data.dir` at an ingested folder and name its tables.
"""

import ml_collections

from sail_jax.config import default_config

RELATED = "Summarise the video so that related videos can be found."
SEARCH = "Represent the search query so that fitting videos can be found."
CLASS = "Summarise the video so that its topic tags can be told."

# Name -> (table, sampling weight): here in proportion to the sizes in the report, in billions of pairs.
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
    config = default_config()
    config.model.remat = "full"
    config.model.perceiver.attention_block = 1024
    config.init_from = {
        "llm": "Qwen/Qwen2.5-1.5B",
        "vit": "apple/aimv2-large-patch14-448",
        "audio": "laion/clap-htsat-unfused",
    }
    config.prompt.tokenizer = "Qwen/Qwen2.5-1.5B"
    config.prompt.max_tokens = 320
    item = {"query_instruction": RELATED, "target_instruction": RELATED}
    query = {"query": "T", "query_instruction": SEARCH, "target_instruction": RELATED}
    datasets = {name: {"table": f"tables/{name}", "weight": weight, **item} for name, weight in ITEM_TO_ITEM.items()}
    datasets |= {name: {"table": f"tables/{name}", "weight": weight, **query} for name, weight in QUERY_TO_ITEM.items()}
    datasets["cls"] = {
        "table": "tables/cls",
        "weight": 3.1,
        "target": "T",
        "query_fields": ("title", "asr", "ocr", "nickname"),
        "target_fields": ("tags",),
        "query_instruction": CLASS,
        "target_instruction": CLASS,
    }
    config.data.datasets = datasets
    config.data.batch_size = 4096
    config.data.frame_budget = 4.0
    config.data.clip_budget = 2.0
    config.data.field_dropout = 0.1
    config.data.workers = 8
    config.mesh.update(data=-1, fsdp=8, tensor=1)
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
