"""The quickstart's world with a recommender: users whose interests cannot be read off content, their logs, and ID embeddings.

    python -m sail_jax world --config configs/recommender.py --output exports/recommender
    python -m sail_jax ingest --config configs/recommender.py --source exports/recommender --workdir data/recommender
    python -m sail_jax pairs --config configs/recommender.py --source exports/recommender --output data/recommender/tables --workdir data/recommender
    python -m sail_jax sequences --config configs/recommender.py --source exports/recommender --output data/recommender/tables --workdir data/recommender
    python -m sail_jax train --config configs/recommender.py --config.data.dir=data/recommender --workdir runs/recommender

The items get their ID embeddings out of `vectors/`, pairs and sequences come from `logs/`. Training goes in three stages: content, then
sequences of users, then the ID embeddings. `seq_content_single` needs content embeddings of an earlier run (`sequences --embeddings`) and is left out
here; `experiments/enhancement.py` has it, and says what each stage is worth.
"""

from pathlib import Path

import ml_collections

from sail_jax import config as config_lib
from sail_jax.config.schema import to_dict

FIND_RELATED = "Summarise the item so that related items can be found."
SEQUENCES = ("seq_content_single", "seq_content_multi", "seq_collab_single", "seq_collab_multi")
ID_EMBEDDINGS = {"id_finish": "vectors/id_finish", "id_like": "vectors/id_like"}


def get_config() -> ml_collections.ConfigDict:
    """The experiment."""
    config = config_lib.default_config()
    config.update(to_dict(config_lib.load(Path(__file__).with_name("quickstart.py"))))
    config.synthetic.update(num_items=3000, communities=24, styles=4, log_users=3000, log_events_per_user=100)
    # The last ten days: enough for test pairs of every kind.
    config.logs.test_share = 0.25
    config.ingest.vectors = ID_EMBEDDINGS
    config.logs.id_embeddings = ID_EMBEDDINGS
    # Visits of live streams are few here.
    config.builders.live.update(window_seconds=7 * 86_400, min_users=1, min_npmi=0.0)
    # The tables of pairs come from the logs, but for those that need no user.
    config.ingest.tables = {"theme": config.ingest.tables.theme, "items": {}}
    search = config.data.datasets.search
    search.table = "tables/q2i_search.parquet"
    config.eval.tasks.q2i.table = search.table
    _name_data(config)
    config.objective.teachers = {"id_finish": 32, "id_like": 24}
    config.data.batch_size = 32
    config.stages = {
        "1_content": {"steps": 150, "weights": {"copair": 2.0, "search": 1.0, "hashtag": 1.0}},
        # Pairs of items beside the sequences, and beside the ID embeddings, keep what content says.
        "2_sequences": {
            "steps": 150,
            "weights": {"copair": 1.0, **dict.fromkeys(SEQUENCES[1:], 1.0)},
            "warmup_steps": 5,
        },
        "3_ids": {"steps": 150, "weights": {"copair": 1.0, "ids": 2.0}, "warmup_steps": 5},
    }
    return config


def _name_data(config: ml_collections.ConfigDict) -> None:
    """The training sets and tasks that are made of logs."""
    related = {"query_instruction": FIND_RELATED, "target_instruction": FIND_RELATED}
    items = {"table": "tables/items.parquet", "loss_weights": {"distill": 1.0}, "weight": 0.0}
    config.data.datasets.update(
        hashtag={"table": "tables/hashtag.parquet", "weight": 0.0, **related},
        ids={"kind": "items", **items, **related},
    )
    for name in SEQUENCES:
        # Sequences of a batch share items; for 6 of the 11 of each there is room.
        config.data.datasets[name] = {
            "kind": "sequences",
            "table": f"tables/{name}.parquet",
            "distinct_items": 6,
            "weight": 0.0,
            **related,
        }
    pairs = {"corpus": "items", "both_ways": True, **related}
    config.eval.tasks = {
        "copair": {"table": "tables/copair.parquet", **pairs},
        # Neighbours by an ID embedding; it has none of items that are new in the test time.
        "gid": {"table": "tables/id.parquet", "split": "train", **pairs},
        "q2i": config.eval.tasks.q2i,
        "vanilla": {"kind": "sequence", "table": "tables/eval_vanilla.parquet", **related},
        "filtered": {"kind": "sequence", "table": "tables/eval_filtered.parquet", **related},
    }
