"""The report's architecture with small widths, trained from scratch: two CPU cores take minutes.

A start for a first look at any data: `config = preset("tiny")`.
"""

import ml_collections

from sail_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """The preset."""
    config = default_config()
    config.model.dtype = "float32"
    config.model.llm.update(
        vocab_size=2048, width=96, layers=2, heads=4, kv_heads=2, head_dim=24, mlp_width=256, rope_theta=10_000.0
    )
    config.model.bert.update(vocab_size=2048, width=96, layers=2, heads=4, mlp_width=256, max_positions=64)
    config.model.vit.update(image_size=56, patch_size=14, width=64, layers=2, heads=2, mlp_width=176)
    config.model.perceiver.update(latents=4, width=64, layers=1, heads=2, mlp_width=128, max_frames=2)
    config.model.audio.update(
        sample_rate=16_000,
        clip_seconds=2.0,
        n_fft=512,
        hop=512,
        mel_bins=32,
        f_max=7_600.0,
        spec_size=64,
        width=16,
        depths=(1, 1),
        heads=(2, 4),
        patch_size=8,
        window=4,
        projection=64,
        max_clips=1,
        normalize=True,
    )
    config.objective.matryoshka = (96, 48, 8)
    config.prompt.max_tokens = 64
    # With the usual b2 of 0.999, the second moment would remember the first steps until the end of so short a run.
    config.optimizer.update(peak=2e-3, floor=2e-4, warmup_steps=20, weight_decay=1e-2, b2=0.98)
    config.ingest.update(items_per_shard=512, tokenizer_vocab=2048)
    config.data.batch_size = 64
    config.train.update(steps=240, log_every=10, checkpoint_every=120)
    config.eval.tfidf = True
    return config
