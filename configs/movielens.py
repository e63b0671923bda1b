"""MovieLens (20M, 25M, 32M, latest): films with titles, genres and ratings, and optional posters.

Reads `movies.csv` and `ratings.csv` as published. MovieLens has no pictures: put your posters into `posters/ID.jpg`.
For the commands see docs/public_data.md.
"""

import ml_collections

from sail_jax.config import preset
from sail_jax.config.evaluation import BASELINES
from sail_jax.config.log_sequences import CONSTRUCTIONS, HISTORIES

FIND_RELATED = "Summarise the film so that related films can be found."


def get_config() -> ml_collections.ConfigDict:
    """The experiment."""
    config = preset("quickstart")
    source = config.ingest.source
    source.path, source.id, source.labels = "movies.csv", "movieId", "genres"
    source.frames, source.audio = "", ""
    source.frames_pattern = "posters/{item_id}.jpg"
    source.text = {"title": "title", "tags": "genres"}
    config.ingest.tables = {}

    config.logs.events.update(
        path="ratings.csv", user="userId", item="movieId", time="timestamp", flags=("rating>=4",), watch_share=""
    )
    config.logs.catalogue.update(path="movies.csv", item="movieId", time="", labels="genres", summary="")
    for log in (config.logs.searches, config.logs.live, config.logs.hashtags):
        log.path = ""
    config.logs.dense_features = ""
    # An event is one positive behaviour at most.
    config.sequences.update(constructions=(*CONSTRUCTIONS, HISTORIES), single_positives=1)

    related = {"query_instruction": FIND_RELATED, "target_instruction": FIND_RELATED}
    config.data.datasets = {"copair": {"table": "tables/copair.parquet", "correct_popularity": 1.0, **related}}
    config.eval.tasks = {"i2i": {"table": "tables/copair.parquet", "both_ways": True, "views": ("T", "V"), **related}}
    config.eval.baselines = BASELINES
    config.eval.histories = "tables/histories.parquet"
    return config
