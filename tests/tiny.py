"""The smallest experiment that has every part: what most tests run."""

from pathlib import Path

import ml_collections

from sail_jax import config as config_lib
from sail_jax.config.schema import to_dict

REPO = Path(__file__).parents[1]


def experiment(data_dir: Path) -> ml_collections.ConfigDict:
    values = config_lib.default_config()
    values.update(to_dict(config_lib.load(REPO / "configs" / "quickstart.py")))
    values.data.dir = str(data_dir)
    del values.data.datasets["heard"]  # another program to compile
    values.synthetic.update(num_items=128, items_per_topic=8, test_queries=32, num_users=40, events_per_user=20)
    values.synthetic.update(searches=40, test_searches=12, pairs_per_item=2, clean_pairs=40)
    values.ingest.items_per_shard = 64
    values.ingest.tokenizer_vocab = 512
    values.model.llm.update(vocab_size=512, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48)
    values.model.bert.update(vocab_size=512, width=32, layers=2, heads=4, mlp_width=48, max_positions=96)
    values.model.vit.update(image_size=28, width=16, layers=1, heads=2, mlp_width=24)
    values.model.perceiver.update(latents=2, width=16, layers=1, heads=2, mlp_width=24, max_frames=2)
    values.model.audio.update(
        clip_seconds=1.0,
        hop=500,
        mel_bins=16,
        spec_size=32,
        patch_size=4,
        width=8,
        depths=(1,),
        heads=(2,),
        projection=16,
    )
    values.objective.matryoshka = (32, 16, 4)
    values.prompt.max_tokens = 96
    values.data.batch_size = 16
    values.data.workers = 0
    values.train.update(steps=6, log_every=2, checkpoint_every=2)
    values.optimizer.warmup_steps = 2
    return values
