"""Computes the outputs of frozen towers for the items of the store, before the steps that read them."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sail_jax.config import Config
from sail_jax.config.schema import to_dict
from sail_jax.config.training import MeshConfig
from sail_jax.data.pipeline import make_extractor, open_store
from sail_jax.data.tower_outputs import Encodings, Form, TowerOutputs, media_key, write_outputs
from sail_jax.data.views import side_views
from sail_jax.errors import BadRecordError, SailError
from sail_jax.items import Item
from sail_jax.models.model import example_batch, make_model
from sail_jax.progress import track
from sail_jax.runs.directory import RunDirectory
from sail_jax.runs.fingerprint import fingerprint
from sail_jax.sharding.mesh import BATCH_SPEC, make_mesh
from sail_jax.sharding.parameters import split
from sail_jax.sharding.process_group import everyone
from sail_jax.training.setup import TrainSetup

# Changes with what towers or the decoding of pictures and sound compute.
_VERSION = 1
# Frames or clips that a device encodes at a time.
_ROWS = 16
# Bytes of outputs after which a file of them is written: what a killed process has to compute again.
_FILE_BYTES = 64 << 20


class _Tower(NamedTuple):
    """A tower.

    Attributes:
        name: the part of the model.
        field: what it reads, and what its outputs stand for, in `Batch` and `Encodings`.
        modality: the letter of that.
        method: the method of the models that runs it.
    """

    name: str
    field: str
    modality: str
    method: str


_TOWERS = (_Tower("vit", "frames", "V", "frame_outputs"), _Tower("audio", "clips", "A", "clip_outputs"))


def cache_note(setup: TrainSetup) -> str:
    """Returns a note where `data.encoding_cache_gb` saves nothing, as all towers are trained."""
    if not setup.config.data.encoding_cache_gb or _frozen(setup):
        return ""
    return (
        "config.data.encoding_cache_gb saves nothing, since the towers of frames and of sound are trained: freeze one, "
        r"as by config.optimizer.freeze=(r'^vit/',), or leave it out."
    )


def cached_encodings(setup: TrainSetup, params: Any, run: RunDirectory) -> Encodings:
    """Returns the outputs of the frozen towers for all items of the store.

    Those that are not on disk yet are computed. Towers of which anything is trained, adapters included, have none. Each
    process computes a share and then, where it does not see the files of the others, the rest.

    Args:
        setup: the setup of the run.
        params: the parameters of the training state.
        run: the run directory.

    Raises:
        SailError: there are more outputs than `data.encoding_cache_gb` has room for.
    """
    if not setup.config.data.encoding_cache_gb:
        return Encodings()
    root = Path(setup.config.data.encoding_cache or run.encodings)

    def filled(tower: _Tower) -> TowerOutputs:
        return _Filling(setup, {tower.name: params["model"][tower.name]}, root, tower).run()

    return Encodings(**{tower.field: filled(tower) for tower in _frozen(setup)})


def _frozen(setup: TrainSetup) -> list[_Tower]:
    """Returns the towers of which nothing is trained, and whose modality is shown in training."""
    config = setup.config
    trained = flatten_dict(split(config, setup.abstract.params)[0], sep="/")
    shown = {view.modalities for name in config.data.datasets for view in side_views(config, name)}
    return [
        tower
        for tower in _TOWERS
        if not any(path.startswith((f"model/{tower.name}/", f"lora/{tower.name}/")) for path in trained)
        and any(tower.modality in modalities for modalities in shown)
    ]


class _Filling:
    """Fills the folder of a tower with its outputs for the items of the store."""

    def __init__(self, setup: TrainSetup, params: Any, root: Path, tower: _Tower) -> None:
        config = setup.config
        self._config, self._tower, self._root = config, tower, root
        self._extract, self._store = make_extractor(config), open_store(config)
        self._model = make_model(config.model)
        media = getattr(jax.eval_shape(lambda: example_batch(config.model)), tower.field)
        one = jax.eval_shape(lambda params: _run(self._model, tower.method, params, media), params)
        self._media, self._form = Form(media.shape[1:], media.dtype), Form(one.shape[1:], one.dtype)
        self._folder = root / f"{tower.name}-{_identity(config, tower, params)}"
        here = [device for device in setup.mesh.devices.flat if device.process_index == jax.process_index()]
        self._mesh = make_mesh(MeshConfig(), here)
        self._params = _on_mesh(params, setup, self._mesh)

    def run(self) -> TowerOutputs:
        """Computes and writes what is missing; returns all outputs."""
        processes, items = everyone(), len(self._store)
        for first, step in dict.fromkeys([(processes.index, processes.count), (0, 1)]):
            self._fill(range(first, items, step))
            processes.wait()
        return self._outputs()

    def _outputs(self) -> TowerOutputs:
        return TowerOutputs(self._folder, self._form)

    def _fill(self, positions: range) -> None:
        """Computes and writes what is missing for the items at some positions of the store."""
        known, waiting, fresh = self._outputs(), {}, {}  # the latter are key -> media, and key -> output
        title = f"encode with the frozen {self._tower.name}"
        for done, position in enumerate(track(positions, title, disable=jax.process_index() != 0), start=1):
            waiting |= self._missing(position, (known, waiting, fresh))
            if len(waiting) >= _ROWS * self._mesh.size or done == len(positions):
                fresh |= self._encode(waiting)
                waiting = {}
            if len(fresh) * self._form.nbytes >= _FILE_BYTES or (fresh and done == len(positions)):
                self._write(fresh, done / len(positions))
                known, fresh = self._outputs(), {}

    def _missing(self, position: int, known: Sequence[Container[int]]) -> dict[int, np.ndarray]:
        """Returns the frames or the clips of an item by their keys, without those known or broken."""
        found = {}
        # Training says what is broken, where it draws the item.
        with contextlib.suppress(BadRecordError):
            for key, decode in self._media_of(self._store[position]):
                if not any(key in keys for keys in known):
                    with contextlib.suppress(BadRecordError):
                        found |= decode()
        return found

    def _media_of(self, item: Item) -> Iterator[tuple[int, Callable[[], dict[int, np.ndarray]]]]:
        """Yields keys, each with a function that decodes what has it: a frame, or a sound by the key of its start."""
        if self._tower.modality == "V":
            for index in self._extract.shown(item):
                key = media_key(item.frames[index])
                yield key, lambda key=key, index=index: {key: self._extract.frame(item, index)}
        elif item.audio is not None and item.audio_embedding is None:
            sound = item.audio
            yield (
                media_key(sound),
                lambda: {media_key(sound, part): clip for part, clip in enumerate(self._extract.clips(item))},
            )

    def _encode(self, media: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Runs the tower on frames or clips by their keys; returns its outputs by the same keys."""
        arrays, rows, outputs = list(media.values()), _ROWS * self._mesh.size, []
        sharding = NamedSharding(self._mesh, BATCH_SPEC)
        with jax.set_mesh(self._mesh):
            for start in range(0, len(arrays), rows):
                part = arrays[start : start + rows]
                padded = np.zeros((rows, *self._media.shape), self._media.dtype)
                padded[: len(part)] = part
                found = _run(self._model, self._tower.method, self._params, jax.device_put(padded, sharding))
                outputs.extend(np.asarray(found)[: len(part)])
        return dict(zip(media, outputs, strict=True))

    def _write(self, outputs: dict[int, np.ndarray], share: float) -> None:
        """Writes a file of outputs, unless it takes more room than there is; with it, `share` of the items is done."""
        room = self._config.data.encoding_cache_gb
        used = sum(path.stat().st_size for path in self._root.rglob("*.npy")) + len(outputs) * self._form.nbytes
        if used > room * 1e9:
            raise SailError(
                f"The outputs of frozen towers in {self._root} need more than config.data.encoding_cache_gb={room:g}: "
                f"{used / 1e9:.3g} GB with {share:.0%} of the items encoded by {self._tower.name!r}. Raise it, remove "
                "outputs of other towers from there, or set it to 0, which encodes in every step."
            )
        write_outputs(self._folder, list(outputs), np.stack(list(outputs.values())))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(model: nn.Module, method: str, params: Any, media: jax.Array) -> jax.Array:
    return model.apply({"params": params}, media, method=method)


def _identity(config: Config, tower: _Tower, params: Any) -> str:
    """Returns a hash of all that decides what a tower makes of a file: its parameters, and how the file is decoded."""
    model, ingest = config.model, config.ingest
    settings = to_dict(getattr(model, tower.name)), model.kind, model.dtype
    values = [_VERSION, settings, ingest.max_pixels, ingest.max_audio_seconds, fingerprint(params)]
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=8).hexdigest()


def _on_mesh(params: Any, setup: TrainSetup, mesh: Mesh) -> Any:
    """Returns a whole copy of a tower's parameters on every device of a mesh of this process."""
    replicated = NamedSharding(mesh, PartitionSpec())

    def here(leaf: jax.Array) -> jax.Array:
        return jax.make_array_from_single_device_arrays(
            leaf.shape, replicated, [shard.data for shard in leaf.addressable_shards]
        )

    return jax.tree.map(here, jax.jit(lambda tree: tree, out_shardings=setup.replicated)(params))
