"""Writes LoRA adapters in PEFT's format, beside an exported base model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from sail_jax.config import Config
from sail_jax.convert.to_torch import MODULES, part_layout
from sail_jax.convert.weight_map import Row

_ROOT = "base_model.model."


def write_adapters(lora: Any, config: Config, directory: Path) -> None:
    """Writes adapter_config.json and adapter_model.safetensors.

    `peft.PeftModel.from_pretrained(base, directory)` loads them.

    Args:
        lora: the tree of adapters (`models.lora`).
        config: the experiment.
        directory: the directory to create.
    """
    directory.mkdir()
    tensors = dict(_adapters(lora, config))
    save_file(
        {name: np.ascontiguousarray(value) for name, value in tensors.items()}, directory / "adapter_model.safetensors"
    )
    modules = dict.fromkeys(name.removeprefix(_ROOT).rpartition(".lora_")[0] for name in tensors)
    values = {
        "peft_type": "LORA",
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(modules),
        "task_type": None,
        "inference_mode": True,
        "base_model_name_or_path": "..",
    }
    (directory / "adapter_config.json").write_text(json.dumps(values, indent=2) + "\n")


def _adapters(lora: Any, config: Config) -> Iterator[tuple[str, np.ndarray]]:
    """Yields PEFT's names and tensors."""
    flat = flatten_dict(lora, sep="/")
    for part, module in MODULES.items():
        for row in part_layout(part, config.model).rows(getattr(config.model, part, None)):
            path = f"{part}/{row.ours}"
            if f"{path}_a" in flat:
                yield from _pair(row, f"{_ROOT}{module}.", flat[f"{path}_a"], flat[f"{path}_b"])


def _pair(row: Row, prefix: str, a: jax.Array, b: jax.Array) -> Iterator[tuple[str, np.ndarray]]:
    """Yields A and B of one parameter, or of all its layers."""
    layers = range(a.shape[0]) if row.stacked else (None,)
    for layer in layers:
        module = (prefix + row.theirs.format(layer)).removesuffix(".weight")
        a_layer, b_layer = (np.asarray(x if layer is None else x[layer]) for x in (a, b))
        if row.ours.endswith("embedding"):
            yield f"{module}.lora_embedding_A", a_layer.T
            yield f"{module}.lora_embedding_B", b_layer.T
            continue
        # A has the form of a matrix with R outputs; for a convolution, B is a 1 x 1 convolution.
        a_theirs = row.form.to_theirs(a_layer)
        b_theirs = b_layer.T
        yield f"{module}.lora_A.weight", a_theirs
        yield f"{module}.lora_B.weight", b_theirs.reshape(*b_theirs.shape, *[1] * (a_theirs.ndim - 2))
