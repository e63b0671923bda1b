"""A small config with all of the report's training: patterns, COSENT, mICL, late fusion, stages.

The stages have mined hard negatives. The data are those of the quickstart's generated world; the `quickstart` verb
leaves an ingested folder:

    python -m sail_jax train --config configs/world.py --config.data.dir=runs/quickstart/data --workdir runs/world
"""

import ml_collections

from sail_jax.config import preset

FIND_RELATED = "Summarise the item so that related items can be found."
FIND_ITEM = "Represent the search so that fitting items can be found."
FIND_THEME = "Summarise the item so that items of its theme can be found."


def get_config() -> ml_collections.ConfigDict:
    """The experiment."""
    config = preset("quickstart")
    related = {"query_instruction": FIND_RELATED, "target_instruction": FIND_RELATED}
    search = {"query_instruction": FIND_ITEM, "target_instruction": FIND_RELATED}
    config.data.datasets = {
        "copair": {"table": "tables/copair.parquet", "weight": 2.0, "patterns": ("O->O", "V->V"), **related},
        "search": {"table": "tables/search.parquet", "weight": 1.0, "patterns": ("T->O",), **search},
        # Searches that name what is seen, and nothing that is not.
        "look_search": {"table": "tables/look_search.parquet", "weight": 1.0, "patterns": ("T->O", "T->V"), **search},
        # Graded from 0 to 1 in five steps: only a full fit is a positive; COSENT ranks all pairs.
        "score": {
            "table": "tables/score.parquet",
            "weight": 1.0,
            "patterns": ("T->O",),
            "min_score": 1.0,
            "loss_weights": {"cosent": 1.0},
            **search,
        },
        "theme": {
            "table": "tables/theme.parquet",
            "weight": 1.0,
            "patterns": ("O->O",),
            "query_instruction": FIND_THEME,
            "target_instruction": FIND_THEME,
        },
    }
    config.data.field_dropout = 0.1
    config.objective.weights.update(micl=0.1, late_fusion=0.1)
    config.stages = {
        "1_broad": {"steps": 120},
        "2_target": {"steps": 80, "weights": {"copair": 2.0, "search": 1.0, "score": 1.0}, "warmup_steps": 5},
        "3_hard": {
            "steps": 40,
            "weights": {"copair": 2.0, "search": 1.0},
            "mine": ("copair", "search"),
            "peak": 1e-3,
            "warmup_steps": 5,
        },
    }
    config.eval.tasks["i2i"]["views"] = ()
    graded = {"query": "T", "min_score": 1.0, "metrics": ("graded",)}
    config.eval.tasks["score"] = {"table": "tables/score.parquet", "corpus": "targets", **graded, **search}
    return config
