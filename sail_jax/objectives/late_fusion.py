"""Late fusion: a learned gate mixes the visual embedding into the fused one.

Axis letters: B pairs, D width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from sail_jax.sharding.activations import split_rows

Params = dict[str, Array]


def init_gate(width: int) -> Params:
    """Returns the gate as zeros, "kernel" [2 D, D] and "bias" [D]: training starts at the plain mean."""
    return {"kernel": jnp.zeros((2 * width, width), jnp.float32), "bias": jnp.zeros(width, jnp.float32)}


def late_fusion(
    params: Params, visual: Float32[Array, "B *sides D"], fused: Float32[Array, "B *sides D"]
) -> Float32[Array, "B *sides D"]:
    """Computes n_hat = g * v + (1 - g) * n_m with g = sigmoid(W [v, n_m] + b).

    Source: arXiv 2510.12709, sec. 3.2, from NoteLLM-2 (arXiv 2405.16789). The loss L_lf is InfoNCE on n_hat; its
    gradient reaches the vision tower without passing through the LLM. The model still outputs the fused embedding.

    Args:
        params: see `init_gate`.
        visual: v, the mean of the vision tokens that enter the LLM; zeros for items without vision tokens.
        fused: n_m.

    Returns:
        n_hat; for items without vision tokens, the fused embedding.
    """
    # Split by pairs: split by width, as the matrix is, the result would be exchanged for every loss.
    gate = split_rows(jnp.concatenate([visual, fused], axis=-1) @ params["kernel"])
    gate = jax.nn.sigmoid(gate + params["bias"])
    mixed = gate * visual + (1 - gate) * fused
    return jnp.where((visual != 0).any(axis=-1, keepdims=True), mixed, fused)
