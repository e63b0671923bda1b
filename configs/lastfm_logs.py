"""Last.fm listening after its content: a model of configs/lastfm.py learns from histories, then from ID embeddings.

Reads the same data, to which the ID embeddings were joined that `python -m experiments.id_embeddings` makes of the
listening of train users. For the commands see docs/public_data.md.
"""

import ml_collections

from sail_jax.config import preset

SEQUENCES = ("seq_collab_single", "seq_collab_multi")
STEPS = 60


def get_config() -> ml_collections.ConfigDict:
    """The experiment."""
    config = preset("lastfm")
    config.data.dir = "data/lastfm"
    config.init_from = {"model": "exports/lastfm_model"}
    config.objective.teachers = {"svd": 64}

    related = {"query_instruction": "", "target_instruction": "", "weight": 0.0}
    for name in SEQUENCES:
        table = f"tables/{name}.parquet"
        config.data.datasets[name] = {"kind": "sequences", "table": table, "correct_popularity": 1.0, **related}
    config.data.datasets.ids = {
        "kind": "items",
        "table": "tables/items.parquet",
        "loss_weights": {"distill": 1.0},
        **related,
    }
    # A history is eleven items, so that a batch of them is as much work as one of 1,400 pairs.
    config.data.batch_size = 256
    low = {"steps": STEPS, "warmup_steps": 5, "peak": 3e-4, "floor": 1e-4}
    config.stages = {
        "1_sequences": {"weights": {"copair": 1.0, **dict.fromkeys(SEQUENCES, 0.5)}, **low},
        "2_ids": {"weights": {"copair": 1.0, "ids": 1.0}, **low},
    }
    config.train.update(log_every=10, checkpoint_every=STEPS)
    # As many runs are compared: what no training changes is measured with configs/lastfm.py.
    config.eval.update(baselines=(), tfidf=False, untrained=False)
    return config
