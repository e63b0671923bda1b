"""Reads a tower from a Hugging Face directory, tensor by tensor, directly onto the mesh."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sail_jax.convert.architectures import exemption, find_architecture
from sail_jax.convert.weight_files import WeightFiles
from sail_jax.convert.weight_map import Layout, Row
from sail_jax.errors import SailError
from sail_jax.models.bicubic import resize_grid
from sail_jax.sharding.parameters import path_name

# The towers of published checkpoints; a model has "llm" or "bert".
TOWERS = ("llm", "vit", "audio", "bert")
# Settings of CLAP's feature extractor -> our names.
_SOUND = {
    "feature_size": "mel_bins",
    "sampling_rate": "sample_rate",
    "max_length_s": "clip_seconds",
    "fft_window_size": "n_fft",
    "hop_length": "hop",
    "frequency_min": "f_min",
    "frequency_max": "f_max",
}
_FLOATS = ("F64", "F32", "F16", "BF16")
# Settings of ours that may differ from the checkpoint: tables of positions are resized to the images.
_FREE = ("image_size",)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The result of reading a part from a checkpoint.

    Attributes:
        params: the parameters, on the mesh.
        source: the directory.
        tensors: the number of tensors used.
        resized: parameters that were resized to another resolution.
        left_over: reason -> number of tensors of the checkpoint that were not used.
    """

    params: Any
    source: Path
    tensors: int
    resized: tuple[str, ...]
    left_over: Mapping[str, int]


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file of a checkpoint.

    Raises:
        SailError: it is missing or malformed.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is not a mapping")
        return values
    except (OSError, ValueError) as error:
        raise SailError(
            f"{path} cannot be read ({error}). Name a Hugging Face directory, with its config.json."
        ) from error


def checkpoint_settings(directory: Path, tower: str) -> dict[str, Any]:
    """The settings of a tower that a checkpoint fixes, from config.json and preprocessor files.

    Args:
        directory: a Hugging Face directory.
        tower: "llm", "vit", "audio" or "bert".

    Raises:
        SailError: the checkpoint has no such tower, or one that our modules do not support.
    """
    values = read_json(directory / "config.json")
    found = find_architecture(values, tower)
    if found is None:
        raise SailError(
            f"{directory} (model_type {values.get('model_type')!r}) has no supported {tower} tower; see "
            "sail_jax/convert/architectures.py for the supported ones."
        )
    architecture, part = found
    if values.get("quantization_config"):
        raise SailError(f"{directory} holds quantised weights; use the checkpoint without quantisation.")
    try:
        settings = {"causal": values["causal"]} if tower == "llm" and "causal" in values else {}
        return settings | architecture.settings(part) | _preprocessing(directory, tower)
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise SailError(
            f"{directory / 'config.json'} lacks settings of a {part['model_type']} tower, or has them in another form "
            f"({error!r}). Download the checkpoint again."
        ) from error


def inspect_checkpoint(directory: Path) -> dict[str, dict[str, Any]]:
    """Tower -> the settings that a checkpoint fixes, for every tower that it holds.

    Raises:
        SailError: it holds no supported tower.
    """
    values = read_json(directory / "config.json")
    found = {tower: checkpoint_settings(directory, tower) for tower in TOWERS if find_architecture(values, tower)}
    if not found:
        raise SailError(f"{directory} (model_type {values.get('model_type')!r}) has no supported tower.")
    return found


def _preprocessing(directory: Path, tower: str) -> dict[str, Any]:
    """Our settings in the file of the image processor or feature extractor, if there is one."""
    if tower == "vit":
        values = _processor(directory, "image_processor")
        return {key: tuple(values[key]) for key in ("image_mean", "image_std") if key in values}
    if tower == "audio":
        values = _processor(directory, "feature_extractor")
        settings = {ours: values[key] for key, ours in _SOUND.items() if key in values}
        # The extractor of fused checkpoints uses HTK's mel scale.
        scales = {"fusion": "htk", "rand_trunc": "slaney"}
        return settings | ({"mel_scale": scales[values["truncation"]]} if values.get("truncation") in scales else {})
    return {}


def _processor(directory: Path, name: str) -> dict[str, Any]:
    """The settings of a processor, from its own file or from the common file of all processors."""
    own, all_of_them = directory / "preprocessor_config.json", directory / "processor_config.json"
    if own.is_file():
        return read_json(own)
    return (read_json(all_of_them).get(name) or {}) if all_of_them.is_file() else {}


def check_settings(directory: Path, tower: str, config: Any) -> None:
    """Checks that our tower has the checkpoint's sizes, epsilons, frequencies and activations.

    Raises:
        SailError: listing every setting that differs, with the value to set.
    """
    settings = checkpoint_settings(directory, tower)
    wrong = [
        f"config.model.{tower}.{key}={value!r} (now {getattr(config, key)!r})"
        for key, value in settings.items()
        if key not in _FREE and not _same(getattr(config, key), value)
    ]
    if wrong:
        raise SailError(f"The {tower} tower differs from the checkpoint {directory}; set {', '.join(wrong)}.")


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, tuple):
        return len(ours) == len(theirs) and all(_same(*pair) for pair in zip(ours, theirs, strict=True))
    return bool(np.isclose(ours, theirs, rtol=1e-6, atol=0)) if isinstance(ours, float) else ours == theirs


def load_tower(
    directory: Path,
    tower: str,
    config: Any,
    abstract: Any,
    *,
    allow_bin: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Loaded:
    """Reads a tower from a checkpoint.

    Tensors are read one by one. Each host reads only the part that its devices need, casts it to the type of the
    parameter, and places it on its shards.

    Args:
        directory: a Hugging Face directory.
        tower: "llm", "vit", "audio" or "bert".
        config: the tower's config.
        abstract: the tower's parameters as `jax.ShapeDtypeStruct`s with shardings.
        allow_bin: see `WeightFiles`.
        progress: called after each parameter with the number of parameters done.

    Raises:
        SailError: the config differs from the checkpoint's; or tensors are missing, have another shape, or are neither
            used nor exempt (the message lists all of them).
    """
    check_settings(directory, tower, config)
    architecture, _ = find_architecture(read_json(directory / "config.json"), tower)
    files = WeightFiles(directory, allow_bin=allow_bin)
    try:
        layout, prefix = _find_layout(files, architecture.layouts, config)
        return load_rows(
            files,
            layout.rows(config),
            prefix,
            abstract,
            left_over=lambda name: exemption(name, tower),
            progress=progress,
        )
    finally:
        files.close()


def _find_layout(files: WeightFiles, layouts: Sequence[Layout], config: Any) -> tuple[Layout, str]:
    for layout in layouts:
        anchor = layout.rows(config)[0].theirs
        for prefix in layout.prefixes:
            if prefix + anchor in files.shapes:
                return layout, prefix
    anchors = " or ".join(sorted({layout.rows(config)[0].theirs for layout in layouts}))
    roots = sorted({name.split(".")[0] for name in files.shapes})
    raise SailError(
        f"{files.directory} has no tensor {anchors} under any known prefix; its tensors have the prefixes "
        f"{', '.join(roots)}."
    )


def load_rows(
    files: WeightFiles,
    rows: Sequence[Row],
    prefix: str,
    abstract: Any,
    *,
    left_over: Callable[[str], str | None],
    progress: Callable[[int], None] = lambda done: None,
) -> Loaded:
    """Reads the parameters of a table; see `load_tower`.

    Args:
        files: the checkpoint.
        rows: the table.
        prefix: the prefix of the table's names in the checkpoint.
        abstract: the parameters to read.
        left_over: tensor -> why it may remain unused, or None.
        progress: see `load_tower`.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(abstract)
    wanted = {path_name(path): leaf for path, leaf in leaves}
    plan = plan_rows(rows, prefix, wanted)
    used = {name for entry in plan.values() for name in entry.names}
    unused = [name for name in files.shapes if name not in used]
    problems = _problems(files, plan.values())
    problems += [f"not mapped: {name} {files.shapes[name]}" for name in unused if left_over(name) is None]
    if problems:
        shown = "\n  ".join(problems)
        raise SailError(
            f"{files.directory} does not fit the model, {len(problems)} tensors:\n  {shown}\nChoose the config of that "
            "checkpoint, or extend sail_jax/convert/weight_map.py."
        )
    arrays = []
    for done, name in enumerate(wanted, start=1):
        arrays.append(plan[name].place(files, wanted[name]))
        files.close()  # unmaps the file, so that its pages do not stay resident
        progress(done)
    reasons = [left_over(name) for name in unused]
    return Loaded(
        params=jax.tree.unflatten(structure, arrays),
        source=files.directory,
        tensors=len(used),
        resized=tuple(name for name, entry in plan.items() if entry.resized(files)),
        left_over={reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
    )


@dataclasses.dataclass(frozen=True)
class _Entry:
    """The plan for reading one parameter: its row, the tensors by layer, and its part of them.

    Attributes:
        row: the row.
        names: the tensors, one per layer, or one.
        shape: our shape without the layers.
        start: start of its part along `row.axis` of the tensor.
        size: length of its part.
        whole: length of the tensor along `row.axis`, all parts together.
        flexible: whether one of the parts is a grid, so that the tensor fits at any resolution.
    """

    row: Row
    names: tuple[str, ...]
    shape: tuple[int, ...]
    start: int
    size: int
    whole: int
    flexible: bool

    def expected(self) -> tuple[int, ...]:
        """The shape of a tensor that fits."""
        theirs = list(_their_shape(self.row, self.shape))
        if theirs:
            theirs[self.row.axis] = self.whole
        return tuple(theirs)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape can be read."""
        expected = self.expected()
        if self.flexible and len(shape) == len(expected):
            # Positions are the second-to-last axis in every form of a grid.
            shape, expected = (s[:-2] + s[-1:] for s in (shape, expected))
        return shape == expected

    def resized(self, files: WeightFiles) -> bool:
        """Whether the checkpoint has another resolution."""
        return self.row.grid and files.shapes[self.names[0]] != self.expected()

    def place(self, files: WeightFiles, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        """Reads the parameter onto its shards; holds one of its stacked layers in host memory at a time."""
        if not self.row.stacked:
            return self._array(files, self.names[0], leaf.dtype, leaf.sharding)
        sharding = NamedSharding(leaf.sharding.mesh, PartitionSpec(*leaf.sharding.spec[1:]))
        stack = jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
        fill = _layer_filler(leaf.sharding)
        for layer, name in enumerate(self.names):
            stack = fill(stack, self._array(files, name, leaf.dtype, sharding), layer)
            stack.block_until_ready()  # without this, layers pile up in host memory
        return stack

    def _array(self, files: WeightFiles, name: str, dtype: Any, sharding: NamedSharding) -> jax.Array:
        def read(index: tuple[slice, ...]) -> np.ndarray:
            return np.asarray(self._piece(files, name, index), dtype, order="C")

        return jax.make_array_from_callback(self.shape, sharding, read)

    def _piece(self, files: WeightFiles, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """The values of one tensor at an index into our array (without the layers)."""
        index = tuple(slice(*s.indices(n)[:2]) for s, n in zip(index, self.shape, strict=True))
        row = self.row
        if row.form.slices is not None and not row.grid and index:
            theirs = list(row.form.slices(index))
            theirs[row.axis] = slice(theirs[row.axis].start + self.start, theirs[row.axis].stop + self.start)
            return row.form.to_ours(files.read(name, tuple(theirs)))
        tensor = files.read(name)
        if self.whole != self.size:
            stop = None if row.grid else self.start + self.size
            tensor = tensor[(slice(None),) * row.axis + (slice(self.start, stop),)]
        ours = row.form.to_ours(tensor)
        return (_to_grid(ours, self.shape[0]) if row.grid else ours)[index]


@functools.lru_cache
def _layer_filler(sharding: NamedSharding) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    """A jitted function (stack, layer, index) -> stack with that layer replaced; donates the stack."""

    def fill(stack: jax.Array, layer: jax.Array, index: int) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(stack, layer, index, 0)

    return jax.jit(fill, donate_argnums=0, out_shardings=sharding)


def _to_grid(table: np.ndarray, positions: int) -> np.ndarray:
    return table if len(table) == positions else resize_grid(table, int(positions**0.5))


def _their_shape(row: Row, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the tensor for an array of ours, without allocating memory."""
    return row.form.to_theirs(np.broadcast_to(np.float32(0), shape)).shape


def plan_rows(rows: Sequence[Row], prefix: str, wanted: Mapping[str, Any]) -> dict[str, _Entry]:
    """Our path -> the plan for reading it."""
    tables = {row.ours: row for row in rows}
    if set(tables) != set(wanted):
        raise ValueError(f"the table and the tower differ in {sorted(set(tables) ^ set(wanted))}")
    shapes = {name: leaf.shape[1:] if tables[name].stacked else leaf.shape for name, leaf in wanted.items()}
    sizes = {name: (_their_shape(row, shapes[name]) or (1,))[row.axis] for name, row in tables.items()}
    plan = {}
    for name, row in tables.items():
        sharing = [other for other, r in tables.items() if r.theirs == row.theirs]
        layers = range(wanted[name].shape[0]) if row.stacked else (0,)
        plan[name] = _Entry(
            row=row,
            names=tuple(prefix + row.theirs.format(layer) for layer in layers),
            shape=shapes[name],
            start=sum(sizes[other] for other in sharing[: sharing.index(name)]),
            size=sizes[name],
            whole=sum(sizes[other] for other in sharing),
            flexible=any(tables[other].grid for other in sharing),
        )
    return plan


def _problems(files: WeightFiles, entries: Iterable[_Entry]) -> list[str]:
    problems: dict[str, str] = {}
    for entry in entries:
        for name in entry.names:
            shape = files.shapes.get(name)
            if shape is None:
                problems[name] = f"missing: {name} {entry.expected()}"
            elif files.dtypes[name] not in _FLOATS:
                problems[name] = f"another type: {name} {files.dtypes[name]}; quantised weights are not supported"
            elif not entry.fits(shape):
                problems[name] = f"another shape: {name} {shape}, not {entry.expected()}"
    return list(problems.values())
