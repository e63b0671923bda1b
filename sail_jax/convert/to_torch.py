"""Converts our parameters to the tensors of the exported PyTorch model, and writes them to files."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.progress import track
from safetensors.numpy import save_file

from sail_jax.config.model import ModelConfig
from sail_jax.convert import hf_configs
from sail_jax.convert.architectures import ARCHITECTURES
from sail_jax.convert.weight_map import OWN_PARTS, Layout, Row
from sail_jax.sharding.parameters import path_name

# Part of our model -> its name in the exported one.
MODULES = {"llm": "llm", "vit": "vision", "audio": "audio", **{part: part for part in OWN_PARTS}}
_SHARD_BYTES = 4 << 30


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor to write, computed on demand."""

    name: str
    bytes: int
    make: Callable[[], np.ndarray]


def part_layout(part: str, config: ModelConfig) -> Layout:
    """The layout in which a part of the model is exported."""
    if part in OWN_PARTS:
        return Layout("sail_jax", lambda _: OWN_PARTS[part]())
    configs = {"llm": hf_configs.llm_config, "vit": hf_configs.vision_config, "audio": hf_configs.audio_config}
    return ARCHITECTURES[configs[part](getattr(config, part))["model_type"]].layouts[0]


def model_tensors(params: Any, config: ModelConfig) -> Iterator[_Tensor]:
    """Yields the tensors of the exported model, float32, in the order of the tables.

    Args:
        params: the model's parameters.
        config: its config.
    """
    for part, module in MODULES.items():
        layout, settings = part_layout(part, config), getattr(config, part, None)
        leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params[part])[0]}
        yield from _tensors(layout.rows(settings), leaves, f"{module}.")
        for name, value in layout.constants(settings):
            yield _Tensor(f"{module}.{name}", value.nbytes, lambda value=value: value)


def _tensors(rows: list[Row], leaves: Mapping[str, jax.Array], prefix: str) -> Iterator[_Tensor]:
    shared: dict[str, list[Row]] = {}
    for row in rows:
        shared.setdefault(row.theirs, []).append(row)
    for theirs, group in shared.items():
        layers = range(leaves[group[0].ours].shape[0]) if group[0].stacked else (None,)
        size = sum(leaves[row.ours].nbytes for row in group) // len(layers)
        for layer in layers:
            yield _Tensor(prefix + theirs.format(layer), size, lambda g=group, n=layer: _join(g, leaves, n))


def _join(group: list[Row], leaves: Mapping[str, jax.Array], layer: int | None) -> np.ndarray:
    """Joins the parameters that share a tensor of the exported model."""
    ours = [leaves[row.ours] if layer is None else leaves[row.ours][layer] for row in group]
    parts = [row.form.to_theirs(np.asarray(array)) for row, array in zip(group, ours, strict=True)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=group[0].axis)


def write_weights(tensors: Iterator[_Tensor], directory: Path, dtype: str, shard_bytes: int = _SHARD_BYTES) -> None:
    """Writes safetensors, in several files with an index if they are large.

    The tensors of one file are in memory at a time.
    """
    shards: list[list[_Tensor]] = [[]]
    room = shard_bytes
    for tensor in tensors:
        if shards[-1] and tensor.bytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= tensor.bytes
    index: dict[str, str] = {}
    written = 0
    for number, shard in enumerate(track(shards, description="write weights"), start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        values = {tensor.name: _cast(tensor.make(), dtype) for tensor in shard}
        save_file(values, directory / file, metadata={"format": "pt"})
        (directory / file).chmod(0o644)  # safetensors creates files that only the owner can read
        index |= dict.fromkeys(values, file)
        written += sum(value.nbytes for value in values.values())
    if len(shards) > 1:
        content = {"metadata": {"total_size": written}, "weight_map": index}
        (directory / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n")


def _cast(value: np.ndarray, dtype: str) -> np.ndarray:
    floating = np.issubdtype(value.dtype, np.floating)
    return np.asarray(value, np.dtype(dtype) if floating else value.dtype, order="C")
