"""First-match tables of patterns that decide how each parameter is sharded, decayed and frozen.

Patterns are regular expressions of a parameter's path, whose parts are joined by "/", for example
"model/llm/layers/attention/query/kernel". Tables are read from the top; the first pattern that is found in the path
(`re.search`) decides.
"""

import difflib
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sail_jax.config import Config
from sail_jax.errors import SailError

Value = TypeVar("Value")

# Axes of the last dimensions of a parameter; leading dimensions (scanned layers) are never split. Column-parallel
# layers split their output over `tensor`, row-parallel layers their input; the other side is split over `fsdp`.
SHARDING: Sequence[tuple[str, tuple[str | None, ...]]] = (
    # Adafactor's sums over rows and over columns: an axis is missing, and they are small.
    (r"(^|/)(v_row|v_col)/", ()),
    (r"(llm/embedding|word_embedding)$", ("tensor", "fsdp")),
    (r"(query|key|value|gate|up)/kernel$", ("fsdp", "tensor")),
    (r"(query|key|value|gate|up)/bias$", ("tensor",)),
    (r"(output|down)/kernel$", ("tensor", "fsdp")),
    (r"kernel$", (None, "fsdp")),
    (r".*", ()),
)

# Only matrices decay: no norms, biases, position tables, latents, temperatures or stored statistics.
WEIGHT_DECAY: Sequence[tuple[str, bool]] = (
    (r"^objective/", False),
    (r"^lora/", True),
    (r"kernel$", True),
    (r"(llm/embedding|word_embedding)$", True),
    (r".*", False),
)

# What is always or never frozen; `frozen_rules` appends the rules of the config. Statistics of the audio tower's input
# normalisation are constants of its pre-training; the targets of a distillation are made by constants.
FROZEN: Sequence[tuple[str, bool]] = (
    (r"^objective/distill/.*/(mean|whitener|ceiling)$", True),
    (r"^(objective|lora)/", False),
    (r"^audio/input_norm/(mean|var)$", True),
)


def path_name(path: tuple[Any, ...]) -> str:
    """Returns the path of a leaf, as `jax.tree_util` gives it, joined by "/"."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def first_match(rules: Sequence[tuple[str, Value]], name: str) -> Value:
    """Returns the value of the first rule whose pattern is found in `name`.

    Raises:
        ValueError: when no rule matches.
    """
    for pattern, value in rules:
        if re.search(pattern, name):
            return value
    raise ValueError(f"no rule matches the parameter {name}")


def match(rules: Sequence[tuple[str, Value]], tree: Any) -> Any:
    """Returns a tree of the same structure with the first match of each leaf."""
    return jax.tree_util.tree_map_with_path(lambda path, _: first_match(rules, path_name(path)), tree)


def frozen_rules(config: Config, names: Sequence[str]) -> Sequence[tuple[str, bool]]:
    """Returns the table of frozen parameters; paths of the model are relative to the model.

    Args:
        config: `optimizer.freeze` comes first; with adapters, everything but `lora.trained` is frozen too.
        names: paths of the model's parameters.

    Raises:
        SailError: when a pattern of these settings is found in none of `names`.
    """
    matching(config.optimizer.freeze, names, "config.optimizer.freeze")
    rules = [*FROZEN, *((pattern, True) for pattern in config.optimizer.freeze)]
    if config.lora.rank:
        matching(config.lora.trained, names, "config.lora.trained")
        # No published checkpoint has a sequence encoder; frozen, it would keep its random initialisation.
        rules += [*((pattern, False) for pattern in config.lora.trained), (r"^sequence/", False)]
    return [*rules, (r".*", config.lora.rank > 0)]


def split(config: Config, params: Any) -> tuple[Any, Any]:
    """Splits the parameters by the rules table into (trained, frozen); `join` is the inverse.

    Raises:
        SailError: a pattern of the config is found in no path, or all parameters of the model are frozen.
    """
    flat = flatten_dict(params, sep="/")
    rules = frozen_rules(config, list(flatten_dict(params["model"], sep="/")))
    frozen = {name: leaf for name, leaf in flat.items() if first_match(rules, name.removeprefix("model/"))}
    trained = {name: leaf for name, leaf in flat.items() if name not in frozen}
    if not any(name.startswith(("model/", "lora/")) for name in trained):
        raise SailError("config.optimizer.freeze leaves no parameter of the model to be trained; narrow it.")
    return unflatten_dict(trained, sep="/"), unflatten_dict(frozen, sep="/")


def join(some: Any, others: Any) -> Any:
    """Returns the parameters of two trees in one, as before `split`; of those in both, `others` counts."""
    return unflatten_dict(flatten_dict(some) | flatten_dict(others))


def partition_spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns the sharding of a parameter: the first match of `SHARDING`.

    Axes that do not divide their dimension are left out.
    """
    axes = first_match(SHARDING, name)
    if len(axes) > len(shape):
        return PartitionSpec(*[None] * len(shape))
    padded = (None,) * (len(shape) - len(axes)) + axes
    fitting = [
        axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(padded, shape, strict=True)
    ]
    return PartitionSpec(*fitting)


def split_over_data(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Splits the largest dimension that divides evenly over `data` too, if there is one."""
    data = mesh.shape["data"]
    fitting = [
        at for at, axis in enumerate(spec) if shape[at] and shape[at] % (data * (mesh.shape[axis] if axis else 1)) == 0
    ]
    if not fitting:
        return spec
    chosen = max(fitting, key=lambda at: shape[at])
    both = (spec[chosen], "data") if spec[chosen] else "data"
    return PartitionSpec(*(both if at == chosen else axis for at, axis in enumerate(spec)))


def abstract_on_mesh(shapes: Any, mesh: Mesh, *, over_data: bool = False) -> Any:
    """Returns a tree of abstract arrays with their shardings by the rules table.

    The path of an optimiser moment ends in the path of its parameter, so it is split in the same way.

    Args:
        shapes: the tree.
        mesh: the mesh.
        over_data: whether the leaves are split over `data` as well, as moments are under ZeRO-2.
    """

    def with_sharding(path: tuple[Any, ...], leaf: Any) -> jax.ShapeDtypeStruct:
        spec = partition_spec(path_name(path), leaf.shape, mesh)
        spec = split_over_data(spec, leaf.shape, mesh) if over_data else spec
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(with_sharding, shapes)


def shardings_of(tree: Any) -> Any:
    """Returns the sharding of every leaf of a tree of arrays, possibly abstract."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def matching(patterns: Sequence[str], names: Sequence[str], path: str) -> list[str]:
    """Returns the names in which one of the patterns is found (`re.search`).

    Args:
        patterns: regular expressions, the value of a setting.
        names: for example paths of parameters.
        path: the setting.

    Raises:
        SailError: when a pattern is found in no name, or is no regular expression; the message names the setting.
    """
    found: set[str] = set()
    for pattern in patterns:
        try:
            hits = [name for name in names if re.search(pattern, name)]
        except re.error as error:
            raise SailError(f"{path}: {pattern!r} is no regular expression ({error}). Correct it.") from error
        if not hits:
            near = ", ".join(difflib.get_close_matches(pattern, names, n=3, cutoff=0))
            raise SailError(f"{path}: {pattern!r} is found in no path of a parameter. Near ones are {near}.")
        found.update(hits)
    return [name for name in names if name in found]
