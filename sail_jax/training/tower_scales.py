"""Whether the towers of a model are in balance: scales at the LLM's input, and gradient norms by part.

What enters the LLM at a hundredth of the scale of the rest is hardly learned, and Adam hides it: its steps are as large
for a small gradient.

Axis letters: B pairs.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float32

from sail_jax.patterns import MODALITIES

_NAMES = {"V": "vision", "T": "text", "A": "sound"}


def input_scales(power: Float32[Array, "B 3 2"] | None) -> dict[str, Float32[Array, ""]]:
    """Returns the root mean square of the LLM's inputs by modality.

    They are named "scale/vision", "scale/text" and "scale/sound"; NaN for a modality that no item of the batch has.

    Args:
        power: see `batch.Outputs`; None for a model without a fusion, which gives nothing.
    """
    if power is None:
        return {}
    squares, positions = jnp.moveaxis(power.sum(0), -1, 0)
    scales = jnp.where(positions > 0, jnp.sqrt(squares / jnp.maximum(positions, 1)), jnp.nan)
    return {f"scale/{_NAMES[letter]}": scale for letter, scale in zip(MODALITIES, scales, strict=True)}


def gradient_norms(gradient: Any) -> dict[str, Float32[Array, ""]]:
    """Returns the global norm of a gradient, "gradient_norm", and those of parts, "gradient_norm/PART".

    A part is a tower or an adapter between towers, with its LoRA; "embedding" the LLM's token table, apart from its
    layers; "objective" what the losses learn.

    Args:
        gradient: of the trained parameters, {"model": ..., "lora": ..., "objective": ...}.
    """
    squares: dict[str, jax.Array] = {}
    for path, leaf in flatten_dict(gradient, sep="/").items():
        part = _part(path)
        squares[part] = squares.get(part, jnp.zeros(())) + jnp.square(leaf.astype(jnp.float32)).sum()
    whole = jnp.sqrt(sum(squares.values(), jnp.zeros(())))
    return {"gradient_norm": whole} | {f"gradient_norm/{part}": jnp.sqrt(total) for part, total in squares.items()}


def _part(path: str) -> str:
    root, _, inside = path.partition("/")
    if root == "objective":
        return root
    return "embedding" if inside.startswith("llm/embedding") else inside.partition("/")[0]
