"""Last.fm listening of HetRec 2011: artists with names and tags, and how often 1,892 users listened to them.

Reads `items.csv` and `plays.csv`, whose users are split. For the layout and the commands see docs/public_data.md.
"""

import ml_collections

from sail_jax.config import preset
from sail_jax.config.evaluation import BASELINES
from sail_jax.config.log_sequences import HISTORIES


def get_config() -> ml_collections.ConfigDict:
    """The experiment."""
    config = preset("quickstart")
    source = config.ingest.source
    source.path, source.id, source.labels = "items.csv", "artist_id", ""
    source.frames, source.audio = "", ""
    source.text = {"title": "name", "tags": "tags"}
    config.ingest.tables = {"items": {}}
    config.ingest.tokenizer_vocab = 32_000

    # There are no times: a user's artists are ordered by listens, the most first, and each is paired with the next
    # three. All users count, and a pair counts once for each of them. Users are split, so that no pair of test users
    # is one of train users.
    events, catalogue, copair = config.logs.events, config.logs.catalogue, config.builders.copair
    events.update(
        path="plays.csv", user="user_id", item="artist_id", time="-listens", split="split", flags=(), watch_share=""
    )
    catalogue.update(path="items.csv", item="artist_id", time="", labels="tags", summary="")
    for log in (config.logs.searches, config.logs.live, config.logs.hashtags):
        log.path = ""
    config.logs.dense_features = ""
    copair.update(neighbours=3, window_seconds=10**9, min_users=1, min_npmi=-1.0, per_item=10**6)
    copair.update(new_test_pairs=False, repeat=True)
    tables = (HISTORIES, "seq_collab_single", "seq_collab_multi", "eval_vanilla", "eval_filtered")
    config.sequences.update(constructions=tables, single_positives=1)

    config.model.llm.update(vocab_size=32_000, width=64, layers=1, heads=8, kv_heads=8, head_dim=16, mlp_width=192)
    config.model.pool_prompt = False
    config.prompt.template = "{instruction}{audio}{vision}{text}"
    config.prompt.max_tokens = 28
    config.objective.matryoshka = (64,)
    config.optimizer.update(peak=6e-3, floor=1e-5, warmup_steps=50, weight_decay=1e-4, b2=0.98)
    config.optimizer.rates = {r"^llm/embedding": 2.0}

    related = {"query_instruction": "", "target_instruction": ""}
    # Training takes pairs of the next twenty: of the next three there are so few that it learns them by heart.
    pairs = {"table": "tables/wide/copair.parquet", "patterns": ("T->T",)}
    config.data.datasets = {"copair": {**pairs, "correct_popularity": 1.0, **related}}
    config.data.batch_size = 512
    config.train.update(steps=3000, log_every=50, checkpoint_every=1000)

    shown = {"query": "T", "target": "T", **related}
    config.eval.tasks = {
        "i2i": {"table": "tables/copair.parquet", "both_ways": True, **shown},
        "vanilla": {"kind": "sequence", "table": "tables/eval_vanilla.parquet", **shown},
        "filtered": {"kind": "sequence", "table": "tables/eval_filtered.parquet", **shown},
    }
    config.eval.ks = (1, 10, 50, 100)
    config.eval.baselines = BASELINES
    config.eval.histories = "tables/histories.parquet"
    return config
