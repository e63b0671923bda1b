"""MicroLens (arXiv 2309.15379): short videos with covers, titles and users' comments as interactions.

Reads MicroLens-100k as published; covers, audio and videos may be missing. For the commands see docs/public_data.md.
"""

import ml_collections

from sail_jax.config import preset
from sail_jax.config.evaluation import BASELINES
from sail_jax.config.log_sequences import CONSTRUCTIONS, HISTORIES

NAME = "MicroLens-100k"
FIND_RELATED = "Summarise the video so that related videos can be found."


def get_config() -> ml_collections.ConfigDict:
    """The experiment."""
    config = preset("quickstart")
    source = config.ingest.source
    source.path = f"{NAME}_title_en.csv"
    source.header = ("item", "title")
    source.id = "item"
    source.frames, source.audio, source.labels = "", "", ""
    source.frames_pattern = NAME + "_covers/{item_id}.jpg"
    source.video_pattern = NAME + "_videos/{item_id}.mp4"
    source.audio_pattern = NAME + "_audio/{item_id}.wav"
    source.text = {"title": "title"}
    config.ingest.tables = {}
    config.ingest.frames_per_video = 2

    # An interaction is a comment on a video: each is a positive. Times are milliseconds.
    config.logs.time_unit = "ms"
    config.logs.events.update(
        path=f"{NAME}_pairs.csv", user="user", item="item", time="timestamp", flags=(), watch_share=""
    )
    for log in (config.logs.searches, config.logs.live, config.logs.hashtags, config.logs.catalogue):
        log.path = ""
    config.logs.dense_features = ""
    # An event is one positive behaviour at most.
    config.sequences.update(constructions=(*CONSTRUCTIONS, HISTORIES), single_positives=1)

    related = {"query_instruction": FIND_RELATED, "target_instruction": FIND_RELATED}
    config.data.datasets = {"copair": {"table": "tables/copair.parquet", "correct_popularity": 1.0, **related}}
    config.eval.tasks = {
        "i2i": {"table": "tables/copair.parquet", "both_ways": True, "views": ("T", "V", "A"), **related}
    }
    config.eval.baselines = BASELINES
    config.eval.histories = "tables/histories.parquet"
    return config
