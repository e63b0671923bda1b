"""The full-size model: Qwen2.5-1.5B, ViT-L/14-448, Visual Perceiver 1024/16/6, CLAP 512 (arXiv 2510.12709, sec. 3.2).

The sizes are the defaults of `sail_jax.config`; here stand what fits them onto a pod and the weights that they start
from. `configs/sail_1b5.py` adds the report's data sets and stages.
"""

import ml_collections

from sail_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """The preset."""
    config = default_config()
    config.model.remat = "full"
    config.model.media_chunk = 4
    config.model.audio.normalize = True
    config.model.perceiver.attention_block = 1024
    config.init_from = {
        "llm": "hf://Qwen/Qwen2.5-1.5B",
        "vit": "hf://apple/aimv2-large-patch14-448",
        "audio": "hf://laion/clap-htsat-unfused",
    }
    # With --config.model.kind=dual_tower, the CLIP-like baseline, the text tower is BERT base: name it and its
    # tokenizer instead, init_from = {"bert": "hf://google-bert/bert-base-uncased", "vit": ..., "audio": ...},
    # prompt.tokenizer the same, and a prompt.template in its special tokens, "[CLS] {instruction} {audio}{vision}{text}
    # [SEP]".
    config.prompt.tokenizer = "hf://Qwen/Qwen2.5-1.5B"
    config.prompt.max_tokens = 320
    config.data.batch_size = 4096
    # Averages over the items of a chunk, of which there are few: a little more than those of the data.
    config.data.frame_budget = 5.0
    config.data.clip_budget = 2.0
    config.data.text_budget = 96.0
    config.data.field_dropout = 0.1
    config.data.workers = 8
    config.optimizer.temperature_rate = 100.0
    config.mesh.update(data=-1, fsdp=8, tensor=1)
    return config
