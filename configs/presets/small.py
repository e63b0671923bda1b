"""A model for one GPU, fine-tuned from published towers: Qwen2.5-0.5B, SigLIP B/16-224, CLAP.

The weights come from the Hugging Face hub, or from the folders that `init_from` and `prompt.tokenizer` name instead.
"""

import ml_collections

from sail_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """The preset."""
    config = default_config()
    config.model.llm.update(width=896, layers=24, heads=14, kv_heads=2, head_dim=64, mlp_width=4864)
    config.model.vit.update(
        kind="siglip", image_size=224, patch_size=16, width=768, layers=12, heads=12, mlp_width=3072, norm_eps=1e-6
    )
    config.model.vit.update(image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))
    config.model.perceiver.update(width=768, layers=4, heads=12, mlp_width=3072, max_frames=4)
    config.model.audio.update(normalize=True, max_clips=1)
    config.model.remat = "full"
    config.init_from = {
        "llm": "hf://Qwen/Qwen2.5-0.5B",
        "vit": "hf://google/siglip-base-patch16-224",
        "audio": "hf://laion/clap-htsat-unfused",
    }
    config.prompt.tokenizer = "hf://Qwen/Qwen2.5-0.5B"
    config.objective.matryoshka = (896, 256, 64)
    config.data.update(batch_size=128, workers=4)
    config.optimizer.update(warmup_steps=100)
    config.train.update(steps=2_000, log_every=20, checkpoint_every=500)
    config.eval.tfidf = True
    return config
