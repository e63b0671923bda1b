"""LoRA: low-rank adapters beside frozen matrices (arXiv 2106.09685).

A dense layer with an adapter computes x W + (alpha / rank) (x A) B instead of x W, and an embedding table returns rows
of W + (alpha / rank) A B. Matches PEFT's `LoraConfig` without dropout. Training never computes A B or a gradient of W.

The adapters are a tree that mirrors the parameters. For a parameter W at "llm/layers/mlp/up/kernel", the tree has A and
B at the same path with "_a" and "_b" appended. The modules read it as the variable collection "lora".

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
from jaxtyping import Array, Float32, Int32

from sail_jax.config.training import LoraConfig
from sail_jax.errors import SailError
from sail_jax.sharding.parameters import matching

# The parameters whose modules read an adapter.
ADAPTABLE = r"(^|/)kernel$|^llm/embedding$"


class Adapter(NamedTuple):
    """The adapter of one matrix; `b` is already scaled by alpha / rank."""

    a: Float32[Array, "I R"]
    b: Float32[Array, "R O"]


def adapter(module: nn.Module, name: str) -> Adapter | None:
    """Returns the adapter of parameter `name` of a module, or None if it has none."""
    if not module.has_variable("lora", f"{name}_a"):
        return None
    return Adapter(module.get_variable("lora", f"{name}_a"), module.get_variable("lora", f"{name}_b"))


def init_lora(params: Any, config: LoraConfig, seed: int | Int32[Array, ""]) -> Any:
    """Returns initial adapters in float32, each drawn from the seed and its path; they add zero.

    As in PEFT, a dense layer has a uniform A and a zero B; an embedding table has a zero A and a normal B. The input of
    a table is one-hot, so B would hardly grow from the small entries of one row of A.

    Args:
        params: the model's parameters; only their shapes are read.
        config: rank and targets.
        seed: seed of the draws.

    Returns:
        The tree of adapters.

    Raises:
        SailError: if a target cannot have an adapter; see `targets`.
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
    """Returns the paths of the parameters that get adapters.

    Args:
        names: paths of the model's parameters.
        config: its `targets`; and its `trained`, which must not overlap with them.

    Raises:
        SailError: if there are no targets, a pattern matches no path, or a pattern matches a parameter that cannot have
            an adapter: vectors, position tables, latents, and parameters that are trained themselves.
    """
    chosen = matching(config.targets, names, "config.lora.targets")
    if not chosen:
        raise SailError("config.lora.targets is empty; name matrices that get adapters, or set config.lora.rank to 0.")
    wrong = [name for name in chosen if not re.search(ADAPTABLE, name)]
    if wrong:
        raise SailError(
            f"config.lora.targets also hits parameters that take no adapter: {_some(wrong)}. Only kernels of dense "
            "layers and llm/embedding do; narrow the pattern, for example by kernel$."
        )
    trained = set(matching(config.trained, names, "config.lora.trained"))
    twice = [name for name in chosen if name in trained]
    if twice:
        raise SailError(
            f"config.lora.targets also hits parameters that config.lora.trained trains themselves: {_some(twice)}. "
            "Leave them out of one of the two."
        )
    return chosen


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def scaled(lora: Any, config: LoraConfig) -> Any:
    """Returns the collection that the modules read: every B multiplied by alpha / rank."""
    flat = flatten_dict(lora, sep="/")
    return unflatten_dict(
        {name: leaf * (config.alpha / config.rank) if name.endswith("_b") else leaf for name, leaf in flat.items()},
        sep="/",
    )


def merge(params: Any, lora: Any, config: LoraConfig) -> Any:
    """Merges adapters into the parameters: W + (alpha / rank) A B, in full float32 precision.

    Args:
        params: the model's parameters.
        lora: the adapters.
        config: rank and alpha.

    Returns:
        A tree like `params`, which computes the same without adapters.
    """
    adapters = flatten_dict(scaled(lora, config), sep="/")

    def merged(name: str, leaf: jax.Array) -> jax.Array:
        if f"{name}_a" not in adapters:
            return leaf
        return leaf + jnp.matmul(adapters[f"{name}_a"], adapters[f"{name}_b"], precision=jax.lax.Precision.HIGHEST)

    return unflatten_dict({name: merged(name, leaf) for name, leaf in flatten_dict(params, sep="/").items()}, sep="/")
