"""Which attention kernel each tower of a config runs on a device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sail_jax.config.model import ModelConfig
from sail_jax.models.fused_attention import kernel_name


class _Sizes(NamedTuple):
    """The sizes that decide on a kernel.

    Attributes:
        queries: tokens of a row that attend.
        keys: tokens of a row that are attended to.
        width: width of a head.
        causal: whether a token sees only itself and earlier ones.
    """

    queries: int
    keys: int
    width: int
    causal: bool = False


def tower_kernels(config: ModelConfig, tokens: int, platform: str) -> dict[str, str]:
    """Returns the name of the attention kernel of each tower that has one from `fused_attention`.

    Args:
        config: the model.
        tokens: `prompt.max_tokens`.
        platform: platform of the devices as JAX calls it: "cpu", "gpu" or "tpu".
    """

    def name(sizes: _Sizes) -> str:
        query, key = (
            jax.ShapeDtypeStruct((1, length, 1, sizes.width), jnp.dtype(config.dtype))
            for length in (sizes.queries, sizes.keys)
        )
        return kernel_name(query, key, causal=sizes.causal, platform="cuda" if platform == "gpu" else platform)

    return {tower: name(sizes) for tower, sizes in _sizes(config, tokens).items()}


def _sizes(config: ModelConfig, tokens: int) -> dict[str, _Sizes]:
    vit, perceiver, sequence = config.vit, config.perceiver, config.sequence
    patches = vit.patches + (vit.kind == "internvit")
    towers = {"vit": _Sizes(patches, patches, vit.width // vit.heads)}
    if config.kind == "dual_tower":
        return towers | {"bert": _Sizes(tokens, tokens, config.bert.width // config.bert.heads)}
    keys = perceiver.latents + perceiver.max_frames * vit.patches
    queries = keys if perceiver.attention == "joint" else perceiver.latents
    towers["perceiver"] = _Sizes(queries, keys, perceiver.width // perceiver.heads)
    towers["llm"] = _Sizes(tokens, tokens, config.llm.head_dim, config.llm.causal)
    if sequence.pooling == "transformer":
        items = sequence.max_items + 1
        towers["sequence"] = _Sizes(items, items, config.llm.width // sequence.heads)
    return towers
