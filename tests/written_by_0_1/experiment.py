"""A run small enough to be kept: one that every part of an earlier version has written."""

from sail_jax import config as config_lib

FIND = "Find related items."


def get_config():
    config = config_lib.default_config()
    config.model.dtype = "float32"
    config.model.llm.update(
        vocab_size=384, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=24, rope_theta=10_000.0
    )
    config.model.vit.update(image_size=28, patch_size=14, width=16, layers=1, heads=2, mlp_width=24)
    config.model.perceiver.update(latents=2, width=16, layers=1, heads=2, mlp_width=24, max_frames=2)
    config.model.audio.update(
        sample_rate=16_000,
        clip_seconds=1.0,
        n_fft=512,
        hop=500,
        mel_bins=16,
        f_max=7_600.0,
        spec_size=32,
        patch_size=4,
        width=8,
        depths=(1, 1),
        heads=(2, 2),
        window=4,
        projection=16,
        max_clips=1,
    )
    config.objective.matryoshka = (16, 8)
    config.prompt.max_tokens = 64
    config.optimizer.update(peak=2e-3, floor=2e-4, warmup_steps=1)
    config.synthetic.update(num_items=48, num_users=20, events_per_user=10)
    config.ingest.source.update(
        path="items.jsonl", text={"title": "title", "tags": "tags"}, frames="frames", audio="audio", labels="label"
    )
    config.ingest.tables = {
        "copair": {"path": "pairs.parquet", "query_id": "query_id", "target_id": "target_id", "split": "split"},
        "search": {"path": "searches.jsonl", "query_text": "query", "target_id": "item_ids", "split": "split"},
    }
    config.ingest.items_per_shard = 24
    config.ingest.tokenizer_vocab = 384
    config.data.dir = "data"
    config.data.datasets = {
        "copair": {"table": "tables/copair.parquet", "query_instruction": FIND, "target_instruction": FIND},
        "search": {"table": "tables/search.parquet", "patterns": ("T->O",)},
    }
    config.data.batch_size = 8
    config.lora.update(rank=2, targets=(r"^llm/layers/.*kernel$",))
    config.train.update(steps=2, log_every=1, checkpoint_every=1, keep_checkpoints=1)
    config.eval.tasks = {
        "i2i": {"table": "tables/copair.parquet", "both_ways": True, "split": ""},
        "q2i": {"table": "tables/search.parquet", "query": "T", "split": ""},
    }
    config.eval.clusters = 4
    config.mining.per_query = 4
    config.balancing.update(samples=20, centroids=3)
    config.eval.batch_size = 8
    return config
