"""The generated world at its full size, with all its tables as training sets and tasks.

    python -m sail_jax world --config configs/full_world.py --output exports/world
    python -m sail_jax ingest --config configs/full_world.py --source exports/world --workdir data/world
    python -m sail_jax train --config configs/full_world.py --config.data.dir=data/world --workdir runs/full_world

Training sets beyond pairs and searches have the weight 0: an experiment raises the weights of those that it is about.
"""

import ml_collections

from sail_jax.config import preset
from sail_jax.config.data import SyntheticConfig
from sail_jax.config.schema import to_dict

# What makes items related -> the instruction under which they are shown; they differ in one word.
FIND = {
    "pairs": "Summarise the item so that like topics can be found.",
    "themes": "Summarise the item so that like themes can be found.",
    "looks": "Summarise the item so that like looks can be found.",
    "sounds": "Summarise the item so that like sounds can be found.",
}
FIND_ITEM = "Represent the search so that fitting items can be found."
TESTS_OF_TOPIC = ("near_duplicates", "two_looks", "missing_fields")
TRAINING_ALONE = ("broad", "clean", "off_text", "off_vision", "off_sound")
# Kind of search -> what answers it.
SEARCHES = {"topic": "O", "theme": "T", "look": "V", "sound": "A"}


def get_config() -> ml_collections.ConfigDict:
    """The experiment."""
    config = preset("quickstart")
    config.synthetic.update(to_dict(SyntheticConfig()))
    config.prompt.max_tokens = config.model.bert.max_positions = 96  # so that nothing is cut
    config.ingest.tables, config.data.datasets, config.eval.tasks = {}, {}, {}
    for name in (*FIND, *TESTS_OF_TOPIC, *TRAINING_ALONE):
        instruction = FIND.get(name, FIND["pairs"])
        shown = {"query_instruction": instruction, "target_instruction": instruction}
        table = f"tables/{name}.parquet"
        config.ingest.tables[name] = {
            "path": f"{name}.parquet",
            "query_id": "query_id",
            "target_id": "target_id",
            "split": "split",
        }
        if name not in TESTS_OF_TOPIC:
            weight = 2.0 if name == "pairs" else 0.0
            config.data.datasets[name] = {"table": table, "weight": weight, **shown}
        if name not in TRAINING_ALONE:
            config.eval.tasks[name] = {"table": table, "corpus": "targets", "views": ("T", "V", "A"), **shown}
    _add_searches(config)
    return config


def _add_searches(config: ml_collections.ConfigDict) -> None:
    """Adds the searches of each kind, and the graded ones."""
    columns = {"query_text": "query", "split": "split"}
    shown = {"query_instruction": FIND_ITEM, "target_instruction": FIND["pairs"]}
    for kind, answer in SEARCHES.items():
        name, table = f"{kind}_search", f"tables/{kind}_search.parquet"
        config.ingest.tables[name] = {"path": f"searches/{kind}.jsonl", "target_id": "item_ids", **columns}
        config.data.datasets[name] = {"table": table, "weight": 0.25, "patterns": (f"T->{answer}",), **shown}
        config.eval.tasks[name] = {"table": table, "corpus": "targets", "query": "T", **shown}
    config.ingest.tables["score"] = {"path": "scores.jsonl", "target_id": "item_id", "score": "score", **columns}
    config.data.datasets["score"] = {
        "table": "tables/score.parquet",
        "weight": 0.0,
        "patterns": ("T->O",),
        "min_score": 1.0,
        "loss_weights": {"cosent": 1.0},
        **shown,
    }
    graded = {"query": "T", "min_score": 1.0, "metrics": ("auc", "graded"), **shown}
    config.eval.tasks["score"] = {"table": "tables/score.parquet", **graded}
