"""The quickstart's world with a recommender: users' hidden tastes, their logs, and ID embeddings.

    DATA=data/recommender LOGS=exports/recommender CONFIG=configs/recommender.py
    python -m sail_jax world --config $CONFIG --output $LOGS
    python -m sail_jax ingest --config $CONFIG --source $LOGS --workdir $DATA
    python -m sail_jax pairs --config $CONFIG --source $LOGS --output $DATA/tables --workdir $DATA
    python -m sail_jax sequences --config $CONFIG --source $LOGS --output $DATA/tables --workdir $DATA
    python -m sail_jax train --config $CONFIG --config.data.dir=$DATA --workdir runs/recommender

The items get their ID embeddings from `vectors/`, pairs and sequences are built from `logs/`. Training has three
stages: content, then sequences of users, then the ID embeddings. `seq_content_single` needs content embeddings of an
earlier run (`sequences --embeddings`) and is left out here; `experiments/enhancement.py` includes it, and measures each
stage.
"""

import ml_collections

from sail_jax.config import preset

FIND_RELATED = "Summarise the item so that related items can be found."
SEQUENCES = ("seq_content_single", "seq_content_multi", "seq_collab_single", "seq_collab_multi")
ID_EMBEDDINGS = {"id_finish": "vectors/id_finish", "id_like": "vectors/id_like"}


def get_config() -> ml_collections.ConfigDict:
    """The experiment."""
    config = preset("quickstart")
    config.synthetic.update(num_items=3000, items_per_topic=12, test_queries=0)
    config.synthetic.update(communities=24, styles=4, log_users=3000, log_events_per_user=100)
    # The last ten days, which give enough test pairs of every kind.
    config.logs.test_share = 0.25
    config.ingest.vectors = ID_EMBEDDINGS
    config.logs.id_embeddings = ID_EMBEDDINGS
    # There are few visits of live streams.
    config.builders.live.update(window_seconds=7 * 86_400, min_users=1, min_npmi=0.0)
    # The pair tables come from the logs, except those that need no user.
    config.ingest.tables = {"theme": config.ingest.tables.theme, "items": {}}
    del config.data.datasets["heard"]
    search = config.data.datasets.search
    search.table = "tables/q2i_search.parquet"
    config.eval.tasks.q2i.table = search.table
    _name_data(config)
    config.objective.teachers = {"id_finish": 32, "id_like": 24}
    config.data.batch_size = 32
    config.stages = {
        "1_content": {"steps": 150, "weights": {"copair": 2.0, "search": 1.0, "hashtag": 1.0}},
        # Pairs of items in these stages keep the model from forgetting the content.
        "2_sequences": {
            "steps": 150,
            "weights": {"copair": 1.0, **dict.fromkeys(SEQUENCES[1:], 1.0)},
            "warmup_steps": 5,
        },
        # A low rate: the ID embeddings add to what was learned, and a high one would wreck it.
        "3_ids": {"steps": 150, "weights": {"copair": 1.0, "ids": 2.0}, "warmup_steps": 5, "peak": 3e-4, "floor": 1e-4},
    }
    return config


def _name_data(config: ml_collections.ConfigDict) -> None:
    """Adds the training sets and tasks that are built from logs."""
    related = {"query_instruction": FIND_RELATED, "target_instruction": FIND_RELATED}
    items = {"table": "tables/items.parquet", "loss_weights": {"distill": 1.0}, "weight": 0.0}
    config.data.datasets.update(
        hashtag={"table": "tables/hashtag.parquet", "weight": 0.0, **related},
        ids={"kind": "items", **items, **related},
    )
    for name in SEQUENCES:
        # Sequences of a batch share items, so that 6 places for the 11 items of each are enough.
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
        # Neighbours by an ID embedding, which lacks items that are new in the test period.
        "gid": {"table": "tables/id.parquet", "split": "train", **pairs},
        "q2i": config.eval.tasks.q2i,
        "vanilla": {"kind": "sequence", "table": "tables/eval_vanilla.parquet", **related},
        "filtered": {"kind": "sequence", "table": "tables/eval_filtered.parquet", **related},
    }
