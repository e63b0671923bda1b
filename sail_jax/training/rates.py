"""Factors on the learning rate of parameters: by part of the model, and by layer within a tower.

Paths are relative to the model, and an adapter has that of its matrix; those of the objective begin with "objective/".
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sail_jax.config.training import OptimizerConfig
from sail_jax.errors import SailError
from sail_jax.sharding.parameters import WEIGHT_DECAY, first_match, matching, path_name

# The towers that begin from published weights; their layers are stacked on the first axis, or are numbered blocks.
_TOWER = re.compile(r"^(llm|vit|bert|audio)/")
_STACKED = re.compile(r"^\w+/layers/")
_BLOCK = re.compile(r"^\w+/stages_(\d+)/(?:blocks_(\d+)/)?")
_BELOW = re.compile(r"embed|token|patch|input_norm")
# The matrices that muon orthogonalises.
HIDDEN_MATRIX = re.compile(r"/(layers|stages_\d+/blocks_\d+)/.*kernel$")


class Rates(NamedTuple):
    """The numbers of the factors: `optimizer.temperature_rate`, `rates` and `layer_decay`."""

    temperature: ArrayLike
    parts: tuple[ArrayLike, ...]
    layer_decay: ArrayLike

    @classmethod
    def of(cls, config: OptimizerConfig) -> "Rates":
        """Returns the numbers of a config."""
        parts = tuple(np.float32(factor) for factor in config.rates.values())
        return cls(np.float32(config.temperature_rate), parts, np.float32(config.layer_decay))


def factors(config: OptimizerConfig, rates: Rates, params: Any) -> Any:
    """Returns the factor of each trained parameter.

    With `layer_decay` d, the layers of a tower have d, d^2, ... from the top down, and what is below them, such as an
    embedding table, has one factor d more than the lowest (BEiT, arXiv 2106.08254, appendix H).

    Args:
        config: the patterns, and whether there is a layer-wise decay.
        rates: the numbers.
        params: the trained parameters, or any tree like them.

    Returns:
        A tree like `params` with scalars and, for stacked layers, arrays [layers, 1, ...].
    """
    rules = [
        (r"^objective/log_temperature$", rates.temperature),
        *zip(config.rates, rates.parts, strict=True),
        (r".*", 1.0),
    ]
    named = {relative(path_name(path)): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    layers = _layers(named)

    def factor(path: tuple[Any, ...], leaf: Any) -> ArrayLike:
        name = relative(path_name(path))
        of_part = first_match(rules, name)
        return of_part if config.layer_decay == 1 else of_part * _of_layer(name, leaf, layers, rates.layer_decay)

    return jax.tree_util.tree_map_with_path(factor, params)


def weight_decay_mask(config: OptimizerConfig, params: Any) -> Any:
    """Returns whether each parameter decays: the first match of the config, else of `WEIGHT_DECAY`."""

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        name = path_name(path)
        rules = [*config.weight_decay_mask.items(), (r".*", first_match(WEIGHT_DECAY, name))]
        return first_match(rules, relative(name))

    return jax.tree_util.tree_map_with_path(decays, params)


def check_rates(config: OptimizerConfig, params: Any) -> None:
    """Checks the patterns and factors of the config against all parameters, trained or not.

    Raises:
        SailError: a pattern is found in no path, or a factor is negative.
    """
    names = [relative(path_name(path)) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    matching(list(config.rates), names, "config.optimizer.rates")
    matching(list(config.weight_decay_mask), names, "config.optimizer.weight_decay_mask")
    for pattern, factor in config.rates.items():
        if not (factor >= 0 and math.isfinite(factor)):
            raise SailError(
                f"config.optimizer.rates[{pattern!r}] is {factor}; a factor is at least 0. "
                "To keep parameters fixed, name them in config.optimizer.freeze."
            )


def relative(name: str) -> str:
    """Returns a path as patterns see it: "model/vit/x" -> "vit/x", "lora/vit/x_a" -> "vit/x"."""
    return re.sub(r"^lora/(.*)_[ab]$", r"\1", name).removeprefix("model/")


def _layers(named: dict[str, Any]) -> dict[str, int | Sequence[tuple[int, int]]]:
    """Returns tower -> number of its stacked layers, or its numbered blocks in order."""
    stacked = {_tower(name): leaf.shape[0] for name, leaf in named.items() if _STACKED.match(name)}
    blocks: dict[str, set[tuple[int, int]]] = {}
    for name in named:
        if (found := _BLOCK.match(name)) and found[2]:
            blocks.setdefault(_tower(name), set()).add((int(found[1]), int(found[2])))
    return stacked | {tower: sorted(of_tower) for tower, of_tower in blocks.items()}


def _tower(name: str) -> str:
    return name.partition("/")[0]


def _of_layer(name: str, leaf: Any, layers: dict[str, Any], decay: ArrayLike) -> ArrayLike:
    if not _TOWER.match(name):
        return 1.0
    of_tower = layers.get(_tower(name), 0)
    if _STACKED.match(name):
        powers = jnp.power(decay, jnp.arange(of_tower, 0, -1, dtype=jnp.float32))
        return powers.reshape(-1, *[1] * (leaf.ndim - 1))
    if found := _BLOCK.match(name):  # what merges the patches of a stage belongs to its last block
        stage, block = int(found[1]), int(found[2] or 10**6)
        return jnp.power(decay, 1 + sum(other > (stage, block) for other in of_tower))
    count = of_tower if isinstance(of_tower, int) else len(of_tower)
    return jnp.power(decay, count + 1) if _BELOW.search(name) else 1.0
