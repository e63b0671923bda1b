"""The weight files of a Hugging Face directory: reads names and shapes at once, values on demand."""

import contextlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from sail_jax.errors import SailError

_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"


class WeightFiles:
    """Lazy access to safetensors files, sharded or not, or to pickled files if allowed.

    One file is mapped into memory at a time, so that resident memory never exceeds the largest file.

    Args:
        directory: a Hugging Face directory.
        allow_bin: whether to read pickled files (`pytorch_model.bin`) if there are no safetensors; this needs PyTorch,
            which reads them with its restricted unpickler.

    Raises:
        SailError: there are no weights, or only pickled ones that are not allowed, or a file is missing or damaged.
    """

    def __init__(self, directory: Path, *, allow_bin: bool = False) -> None:
        self.directory = directory
        self._open: tuple[Path, Any] | None = None
        self._where: Mapping[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        files = self._find(_SAFE) or dict.fromkeys(sorted(directory.glob("*.safetensors")))
        self._pickled = not files
        if self._pickled:
            files = self._find(_PICKLED)
            self._check_pickled(files, allow_bin)
        self._read_headers(files)

    def _find(self, single: str) -> dict[Path, set[str] | None]:
        """File -> the names that an index lists for it; None without an index."""
        index = self.directory / f"{single}.index.json"
        if index.is_file():
            promised: dict[Path, set[str]] = {}
            for name, file in self._weight_map(index).items():
                promised.setdefault(self.directory / file, set()).add(name)
            return promised
        return {self.directory / single: None} if (self.directory / single).is_file() else {}

    def _weight_map(self, index: Path) -> dict[str, str]:
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            outside = [file for file in names.values() if Path(file).name != file]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SailError(
                f"{index} is not an index of weights ({error!r}). Download the checkpoint again."
            ) from error
        if outside:
            raise SailError(
                f"{index} names {outside[0]}, which is not a file beside it. Choose a checkpoint that you trust."
            )
        return names

    def _check_pickled(self, files: Mapping[Path, Any], allow_bin: bool) -> None:
        if not files:
            raise SailError(
                f"{self.directory} holds no weights: neither {_SAFE} nor its index. Download the checkpoint again; "
                "if it has only .bin files, set config.init_allow_bin=True."
            )
        if not allow_bin:
            raise SailError(
                f"{self.directory} holds only pickled weights ({', '.join(path.name for path in files)}). A pickle can "
                "run code: convert it to safetensors, or, if you trust its source, set config.init_allow_bin=True."
            )

    def _read_headers(self, files: Mapping[Path, set[str] | None]) -> None:
        where = {}
        for path, promised in files.items():
            handle = self._file(path)
            names = list(handle.keys())
            absent = (promised or set()) - set(names)
            if absent:
                raise SailError(
                    f"{path} lacks {sorted(absent)[:5]}, which the index lists. Download the checkpoint again."
                )
            for name in names:
                if name in where:
                    raise SailError(f"{path} and {where[name].name} both hold {name}. Keep one of the two files.")
                where[name] = path
                self.shapes[name], self.dtypes[name] = self._header(handle, name)
        self._where = where

    def _header(self, handle: Any, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and type of a tensor; the type in safetensors' notation."""
        if self._pickled:
            tensor = handle[name]
            return tuple(tensor.shape), "F32" if tensor.is_floating_point() else str(tensor.dtype)
        header = handle.get_slice(name)
        return tuple(header.get_shape()), header.get_dtype()

    def _file(self, path: Path) -> Any:
        """Opens a file, and unmaps the one opened before."""
        if self._open is None or self._open[0] != path:
            self.close()
            try:
                self._open = (path, self._map(path))
            except (OSError, safetensors.SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                reason = str(error).partition("\n")[0]
                raise SailError(f"{path} cannot be read ({reason}). Download the checkpoint again.") from error
        return self._open[1]

    def _map(self, path: Path) -> Any:
        if not self._pickled:
            # Used as a context manager, because that is the only way to close it.
            return safetensors.safe_open(path, framework="np").__enter__()
        try:
            import torch  # noqa: PLC0415
        except ImportError as error:
            raise SailError(f"Reading {path} needs PyTorch: pip install 'sail_jax[torch]'.") from error
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # a file from before PyTorch 1.6, which cannot be mapped
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
            raise SailError(f"{path} does not map names to tensors. Convert it to safetensors.")
        return {name: tensor.detach() for name, tensor in tensors.items()}

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """Reads a tensor, or a part of it, in its stored type; pickled bfloat16 becomes float32."""
        handle = self._file(self._where[name])
        if self._pickled:
            tensor = handle[name] if index is None else handle[name][index]
            return tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
        return handle.get_tensor(name) if index is None else handle.get_slice(name)[index]

    def largest_file(self) -> int:
        """The size of the largest file in bytes."""
        return max(path.stat().st_size for path in set(self._where.values()))

    def close(self) -> None:
        """Unmaps the open file."""
        if self._open is not None and not self._pickled:
            with contextlib.suppress(safetensors.SafetensorError):
                self._open[1].__exit__(None, None, None)
        self._open = None
