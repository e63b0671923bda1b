"""The quickstart's world with a recommender: users whose interests cannot be read off content, their logs, and ID embeddings.

    python -m sail_jax world --config configs/recommender.py --output exports/recommender
    python -m sail_jax ingest --config configs/recommender.py --source exports/recommender --workdir data/recommender

The items get their ID embeddings out of `vectors/`; pair tables come from `logs/` (`pairs`), into data/recommender/tables.
"""

from pathlib import Path

import ml_collections

from sail_jax import config as config_lib
from sail_jax.schema import to_dict

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
    # The tables of pairs come from the logs, but for those that need no user.
    config.ingest.tables = {"theme": config.ingest.tables.theme}
    search = config.data.datasets.search
    search.table = "tables/q2i_search.parquet"
    config.eval.tasks.q2i.table = search.table
    return config
