"""Late fusion: the visual embedding is mixed into the fused one by a learned gate.

Axis letters: B pairs, D width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from sail_jax.sharding.activations import split_rows

Params = dict[str, Array]


def init_gate(width: int) -> Params:
    """Parameters of the gate, float32: "kernel" [2 D, D] and "bias" [D]; zeros, so that it starts as the plain mean."""
    return {"kernel": jnp.zeros((2 * width, width), jnp.float32), "bias": jnp.zeros(width, jnp.float32)}


def late_fusion(
    params: Params, visual: Float32[Array, "B *sides D"], fused: Float32[Array, "B *sides D"]
) -> Float32[Array, "B *sides D"]:
    """n_hat = g * v + (1 - g) * n_m with g = sigmoid(W [v, n_m] + b) (arXiv 2510.12709, sec. 3.2).

    From NoteLLM-2 (arXiv 2405.16789). The loss L_lf is InfoNCE on n_hat; it teaches the vision tower without the way
    through the LLM. The embedding that leaves the system stays the fused one.

    Args:
        params: see `init_gate`.
        visual: v, the mean of the vision tokens as the LLM receives them; zeros where there are none.
        fused: n_m.

    Returns:
        n_hat; the fused embedding itself where there is nothing visual.
    """
    # Split by pairs: by width, as the matrix is, every loss that follows would exchange it.
    gate = split_rows(jnp.concatenate([visual, fused], axis=-1) @ params["kernel"])
    gate = jax.nn.sigmoid(gate + params["bias"])
    mixed = gate * visual + (1 - gate) * fused
    return jnp.where((visual != 0).any(axis=-1, keepdims=True), mixed, fused)
