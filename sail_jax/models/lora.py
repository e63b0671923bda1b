"""LoRA: low-rank adapters beside frozen matrices (arXiv 2106.09685).

A dense layer with an adapter computes x W + (alpha / rank) (x A) B instead of x W, an embedding table gives the rows of
W + (alpha / rank) A B; matches PEFT's `LoraConfig` without dropout. Neither A B nor a gradient of W is ever made.

The adapters are a tree that mirrors the parameters: where these hold W at "llm/layers/mlp/up/kernel", it holds A and B at
the same path with "_a" and "_b" appended. The modules read it as the variable collection "lora".

Axis letters: I inputs of a matrix (rows of an embedding table), O outputs, R rank. Scanned layers add a leading axis.
"""

import re
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float32

from sail_jax.config.training import LoraConfig
from sail_jax.errors import SailError
from sail_jax.sharding.parameters import matching

# The parameters whose modules look for an adapter.
ADAPTABLE = r"(^|/)kernel$|^llm/embedding$"


class Adapter(NamedTuple):
    """The adapter of one matrix; `b` is scaled by alpha / rank already."""

    a: Float32[Array, "I R"]
    b: Float32[Array, "R O"]


def adapter(module: nn.Module, name: str) -> Adapter | None:
    """The adapter of parameter `name` of a module, or None where it has none."""
    if not module.has_variable("lora", f"{name}_a"):
        return None
    return Adapter(module.get_variable("lora", f"{name}_a"), module.get_variable("lora", f"{name}_b"))


def init_lora(params: Any, config: LoraConfig, seed: int) -> Any:
    """Fresh adapters, float32, which change nothing yet; each drawn from the seed and its path.

    As in PEFT, A of a dense layer is uniform and B zero. The other way round at an embedding table, whose input is one-hot:
    A is zero and B normal, as B would hardly grow from the small entries of one row of A.

    Args:
        params: the model's parameters; only their shapes are read.
        config: rank and targets.
        seed: seed of the draws.

    Returns:
        The tree of adapters.

    Raises:
        SailError: when the targets are not what adapters can be put beside; see `targets`.
    """
    shapes = {name: leaf.shape for name, leaf in flatten_dict(params, sep="/").items()}
    flat = {}
    for name in targets(list(shapes), config):
        *layers, inputs, outputs = shapes[name]
        shape_a, shape_b = (*layers, inputs, config.rank), (*layers, config.rank, outputs)
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
        if name.endswith("embedding"):
            a, b = jnp.zeros(shape_a), jax.random.normal(key, shape_b)
        else:
            a, b = jax.random.uniform(key, shape_a, minval=-1, maxval=1) * inputs**-0.5, jnp.zeros(shape_b)
        flat |= {f"{name}_a": a, f"{name}_b": b}
    return unflatten_dict(flat, sep="/")


def targets(names: Sequence[str], config: LoraConfig) -> list[str]:
    """The parameters that get adapters.

    Args:
        names: paths of the model's parameters.
        config: its `targets`, and `trained`, which these must not touch.

    Raises:
        SailError: when there are none, when a pattern is found nowhere, or when one hits what has no adapter: vectors,
            tables of positions, latents, and what is trained itself.
    """
    chosen = matching(config.targets, names, "config.lora.targets")
    if not chosen:
        raise SailError("config.lora.targets is empty; name matrices that get adapters, or set config.lora.rank to 0.")
    wrong = [name for name in chosen if not re.search(ADAPTABLE, name)]
    if wrong:
        raise SailError(
            f"config.lora.targets also hits parameters that take no adapter: {_some(wrong)}. Only kernels of dense layers "
            "and llm/embedding do; narrow the pattern, for example by kernel$."
        )
    trained = set(matching(config.trained, names, "config.lora.trained"))
    twice = [name for name in chosen if name in trained]
    if twice:
        raise SailError(
            f"config.lora.targets also hits parameters that config.lora.trained trains themselves: {_some(twice)}. Leave "
            "them out of one of the two."
        )
    return chosen


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def scaled(lora: Any, config: LoraConfig) -> Any:
    """The collection that the modules read: every B times alpha / rank."""
    flat = flatten_dict(lora, sep="/")
    return unflatten_dict(
        {name: leaf * (config.alpha / config.rank) if name.endswith("_b") else leaf for name, leaf in flat.items()},
        sep="/",
    )


def merge(params: Any, lora: Any, config: LoraConfig) -> Any:
    """Parameters that compute alone what `params` compute with adapters: W + (alpha / rank) A B, in full float32.

    Args:
        params: the model's parameters.
        lora: the adapters.
        config: rank and alpha.

    Returns:
        A tree like `params`.
    """
    adapters = flatten_dict(scaled(lora, config), sep="/")

    def merged(name: str, leaf: jax.Array) -> jax.Array:
        if f"{name}_a" not in adapters:
            return leaf
        return leaf + jnp.matmul(adapters[f"{name}_a"], adapters[f"{name}_b"], precision=jax.lax.Precision.HIGHEST)

    return unflatten_dict({name: merged(name, leaf) for name, leaf in flatten_dict(params, sep="/").items()}, sep="/")
