"""Converts our parameters to the tensors of the exported PyTorch model, and writes them to files."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sail_jax.config.model import ModelConfig
from sail_jax.convert import hf_configs
from sail_jax.convert.architectures import ARCHITECTURES
from sail_jax.convert.weight_map import OWN_PARTS, Layout, Row
from sail_jax.progress import track
from sail_jax.sharding.parameters import path_name

# Part of our model -> its name in the exported one.
MODULES = {"llm": "llm", "vit": "vision", "audio": "audio", **{part: part for part in OWN_PARTS}}
_SHARD_BYTES = 4 << 30


# NumPy's types -> safetensors' names.
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "int64": "I64"}


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor to write, computed on demand."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def bytes(self) -> int:
        """Returns the size in the type of the parameters."""
        return math.prod(self.shape) * self.dtype.itemsize


# (path of a parameter, layer) -> index of the first layer read, and the layers; for None, 0 and the whole parameter.
Read = Callable[[str, int | None], tuple[int, np.ndarray]]


class _HeldLayers:
    """Reads layers of the parameters that share tensors; holds those that were read with them, for the next tensors."""

    def __init__(self, read: Read) -> None:
        self._read, self._held = read, {}

    def __call__(self, names: tuple[str, ...], layer: int | None) -> Sequence[np.ndarray]:
        # Freed before the next ones are read.
        self._held = {name: held for name, held in self._held.items() if name in names}
        return [self._layer(name, layer) for name in names]

    def _layer(self, name: str, layer: int | None) -> np.ndarray:
        if layer is None:
            return self._read(name, None)[1]
        first, layers = self._held.pop(name, (0, ()))
        if not first <= layer < first + len(layers):
            del layers  # freed before the next ones are read
            first, layers = self._read(name, layer)
        self._held[name] = first, layers
        return layers[layer - first]


def part_layout(part: str, config: ModelConfig) -> Layout:
    """The layout in which a part of the model is exported."""
    if part in OWN_PARTS:
        return Layout("sail_jax", lambda _: OWN_PARTS[part]())
    configs = {"llm": hf_configs.llm_config, "vit": hf_configs.vision_config, "audio": hf_configs.audio_config}
    return ARCHITECTURES[configs[part](getattr(config, part))["model_type"]].layouts[0]


def model_tensors(params: Any, config: ModelConfig, read: Read | None = None) -> Iterator[_Tensor]:
    """Yields the tensors of the exported model, float32, in the order of the tables.

    Args:
        params: the model's parameters, or their shapes as abstract arrays.
        config: its config.
        read: reads layers of the parameter at a path, such as "llm/embedding"; None where `params` are arrays.
    """
    shapes = {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    held = _HeldLayers(read or (lambda name, layer: (0, np.asarray(shapes[name]))))
    for part, module in MODULES.items():
        layout, settings = part_layout(part, config), getattr(config, part, None)
        yield from _tensors(layout.rows(settings), part, shapes, held, f"{module}.")
        for name, value in layout.constants(settings):
            yield _Tensor(f"{module}.{name}", value.shape, value.dtype, lambda value=value: value)


def _tensors(
    rows: list[Row], part: str, shapes: Mapping[str, Any], held: _HeldLayers, prefix: str
) -> Iterator[_Tensor]:
    shared: dict[str, list[Row]] = {}
    for row in rows:
        shared.setdefault(row.theirs, []).append(row)
    for theirs, group in shared.items():
        names = tuple(f"{part}/{row.ours}" for row in group)
        layers = range(shapes[names[0]].shape[0]) if group[0].stacked else (None,)
        ours = [shapes[name] for name in names]
        if group[0].stacked:
            ours = [jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in ours]
        one = jax.eval_shape(functools.partial(_join, group), ours)
        for layer in layers:
            yield _Tensor(
                prefix + theirs.format(layer),
                one.shape,
                np.dtype(one.dtype),
                lambda g=group, k=names, n=layer: _join(g, held(k, n)),
            )


def _join(group: list[Row], ours: Sequence[Any]) -> Any:
    """Joins the parameters, or the layers of them, that share a tensor of the exported model."""
    parts = [row.form.to_theirs(array) for row, array in zip(group, ours, strict=True)]
    return parts[0] if len(parts) == 1 else parts[0].__array_namespace__().concat(parts, axis=group[0].axis)


def write_weights(tensors: Iterator[_Tensor], directory: Path, dtype: str, shard_bytes: int = _SHARD_BYTES) -> None:
    """Writes safetensors, in several files with an index if they are large.

    One tensor is computed at a time.
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
        written += _write_file(shard, directory / file, dtype)
        index |= {tensor.name: file for tensor in shard}
    if len(shards) > 1:
        content = {"metadata": {"total_size": written}, "weight_map": index}
        (directory / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n")


def _write_file(tensors: Sequence[_Tensor], path: Path, dtype: str) -> int:
    """Writes a safetensors file tensor by tensor, which the library's own writer takes all at once.

    Returns:
        The bytes of the tensors.

    Source: https://huggingface.co/docs/safetensors, "Format".
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        stored = _stored(tensor, dtype)
        start, end = end, end + math.prod(tensor.shape) * stored.itemsize
        header[tensor.name] = {"dtype": _DTYPES[stored.name], "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            file.write(_content(tensor, dtype))  # no name holds it while the next parameter is read
    return end


def _content(tensor: _Tensor, dtype: str) -> memoryview:
    """Returns the bytes of a tensor as it is written."""
    value = np.asarray(tensor.make(), _stored(tensor, dtype), order="C")
    return value.reshape(-1).view(np.uint8).data


def _stored(tensor: _Tensor, dtype: str) -> np.dtype:
    """Returns the type in which a tensor is written; only floating-point numbers change theirs."""
    return np.dtype(dtype) if np.issubdtype(tensor.dtype, np.floating) else tensor.dtype
