"""Embeds items with a trained model; inference batches are formed only here.

Axis letters: V views, n items of a window, N token positions, D width, Q histories, L items of a history.

To keep padding small, the items of a window are sorted by their numbers of frames, clips and tokens, and each batch is
padded only to its longest item. The sizes of a batch are rounded up to a few values, so that few shapes are compiled.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.progress import track

from sail_jax.batch import Batch
from sail_jax.config import Config
from sail_jax.config.data import DEFAULT_INSTRUCTION
from sail_jax.config.training import MeshConfig
from sail_jax.data import prompts
from sail_jax.data.collate import collate
from sail_jax.data.features import FeatureExtractor, ItemFeatures, View
from sail_jax.data.item_dicts import to_item
from sail_jax.data.pipeline import make_extractor
from sail_jax.errors import BadRecordError, SailError
from sail_jax.items import TEXT_FIELDS, Item
from sail_jax.models.model import make_model
from sail_jax.models.sequence import SequenceHead
from sail_jax.patterns import MODALITIES
from sail_jax.runs.checkpoints import Checkpoints, restore_params
from sail_jax.runs.directory import RunDirectory
from sail_jax.sharding.mesh import data_shards, make_mesh, shard_batch
from sail_jax.vectors.unit import unit_rows

# Size of a window in batches, and the bytes of decoded media at which it closes early; they bound the host's memory.
_WINDOW_BATCHES = 16
_WINDOW_BYTES = 256 << 20
# Histories that are pooled in one call.
_HISTORIES = 256


class NothingShownError(BadRecordError):
    """An error for an item without any of the shown modalities, which often is no mistake in the data."""


class Embedder:
    """Embeds items with fixed parameters of a model.

    Args:
        config: the experiment.
        params: the model's parameters, on `mesh`.
        extractor: turns items into arrays.
        mesh: where the computation runs; batches are split over its data axes.
    """

    def __init__(self, config: Config, params: Any, extractor: FeatureExtractor, mesh: Mesh) -> None:
        self.config, self.params, self.mesh = config, params, mesh
        self._extract, self._groups = extractor, data_shards(mesh)
        # Without a backward pass there are no activations to bound.
        self._model = make_model(dataclasses.replace(config.model, media_chunk=0), groups=self._groups)
        self.width = config.model.llm.width

    def encode(
        self,
        items: Iterable[Item | str | Mapping[str, Any]],
        *,
        dims: int | None = None,
        batch_size: int | None = None,
        modalities: str = MODALITIES,
        fields: Sequence[str] = TEXT_FIELDS,
        instruction: str = DEFAULT_INSTRUCTION,
        show_progress: bool = False,
    ) -> np.ndarray:
        """Embeds items and texts.

        Args:
            items: items; strings as free-text queries; or dicts such as {"title": "sourdough", "image": "frame.jpg"},
                whose keys `item_dicts.to_item` lists. They are consumed as a stream.
            dims: number of leading dimensions that are kept; one of `config.objective.matryoshka` works best, as the
                model was trained for these. None keeps all.
            batch_size: items per batch; affects only speed. None takes `config.eval.batch_size`.
            modalities: modalities of the items that are shown.
            fields: text fields that are shown.
            instruction: the system prompt; replaced by `config.prompt.unified` where the run has one.
            show_progress: whether a progress bar is shown.

        Returns:
            [items, dims] float32, rows of unit length.

        Raises:
            BadRecordError: an item cannot be read or decoded, or has none of the modalities; the message names its
                position and the field.
            SailError: wrong dims, batch size, modalities or fields.
        """
        if isinstance(items, Item | str | Mapping):
            raise SailError("encode takes a list of items and texts; write encode([item]).")
        dims = check_dims(dims, self.width)
        view = self.view(modalities, fields, instruction)
        total = len(items) if isinstance(items, Sized) else None
        shown = track(items, description="encode", total=total, disable=not show_progress)
        loaders = (functools.partial(to_item, item, self.config.ingest) for item in shown)
        blocks, at = [], 0
        for z, bad in self.stream(loaders, view, (view.modalities,), batch_size=batch_size):
            for position, error in bad.items():
                raise _at_position(error, at + position)
            blocks.append(unit_rows(z[0, :, :dims]))
            at += len(blocks[-1])
        return np.concatenate(blocks) if blocks else np.zeros((0, dims), np.float32)

    def view(self, modalities: str, fields: Sequence[str], instruction: str) -> View:
        """Returns the view of items under an instruction, or the unified one if the model was trained so.

        Raises:
            SailError: unknown modalities or fields.
        """
        return View(modalities, tuple(fields), prompts.instruction(self.config.prompt, instruction))

    def stream(
        self,
        items: Iterable[Item | Callable[[], Item]],
        view: View,
        views: tuple[str, ...],
        *,
        batch_size: int | None = None,
    ) -> Iterator[tuple[np.ndarray, dict[int, BadRecordError]]]:
        """Embeds items window by window, in order; decodes the next window while the device computes.

        Args:
            items: a stream of items, or of functions that load one, which are called in threads.
            view: the fields, the instruction and the modalities shown; these include all modalities of `views`.
            views: sets of modalities, such as "VT"; each gives every item an embedding of its own, from one pass of the
                towers.
            batch_size: items per batch, rounded up to the data-parallel devices; None for `config.eval.batch_size`.

        Yields:
            z: [V, n, D] float32 of the next n items, not normalised; zeros for bad items.
            bad: position within these n -> error, for items that cannot be used.
        """
        batch = self._whole_batch(self.config.eval.batch_size if batch_size is None else batch_size)
        pending: list[tuple[list[_Placed], dict[int, BadRecordError]]] = []
        with ThreadPoolExecutor(max_workers=4) as pool:
            for features, bad in self._prepare(items, view, batch, pool):
                pending.append((self._dispatch_window(features, batch, views), bad))
                if len(pending) > 1:
                    yield self._collect(*pending.pop(0))
            for entry in pending:
                yield self._collect(*entry)

    def pool(self, vectors: np.ndarray, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the pooled vectors of histories, as the model was trained (`config.model.sequence`).

        Args:
            vectors: [n, D] of items, may be memory-mapped; a row of zeros stands for an item without a vector, and is
                ignored.
            sequences: Q arrays of rows of `vectors`, oldest first; the last `model.sequence.max_items` are pooled.

        Returns:
            [Q, D] float32, not normalised.
        """
        most = self.config.model.sequence.max_items
        sequences = [rows[-most:] for rows in sequences]
        length = max(map(len, sequences), default=1)
        pooled = np.zeros((len(sequences), self.width), np.float32)
        for start in range(0, len(sequences), _HISTORIES):
            some = sequences[start : start + _HISTORIES]
            batch = np.zeros((_HISTORIES, length, self.width), np.float32)
            for row, rows in enumerate(some):
                batch[row, length - len(rows) :] = vectors[rows]
            pooled[start : start + len(some)] = np.asarray(_pool(self._model, self.params, batch))[: len(some)]
        return pooled

    def _whole_batch(self, size: int) -> int:
        """Rounds a batch size up to a multiple of the data-parallel devices."""
        if size < 1:
            raise SailError(f"batch_size is {size}; it must be at least 1.")
        return -(-size // self._groups) * self._groups

    def _prepare(
        self, items: Iterable[Item | Callable[[], Item]], view: View, batch: int, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[list[ItemFeatures], dict[int, BadRecordError]]]:
        """Yields the features of each window, and the errors of its bad items, whose features are blank."""
        window: list[ItemFeatures] = []
        bad: dict[int, BadRecordError] = {}
        held = 0
        for chunk in _chunks(items, batch):
            for result in pool.map(lambda item: self._one(item, view), chunk):
                if isinstance(result, BadRecordError):
                    bad[len(window)], result = result, self._extract.blank()
                window.append(result)
                held += result.frames.nbytes + result.clips.nbytes
            if len(window) >= _WINDOW_BATCHES * batch or held >= _WINDOW_BYTES:
                yield window, bad
                window, bad, held = [], {}, 0
        if window:
            yield window, bad

    def _one(self, item: Item | Callable[[], Item], view: View) -> ItemFeatures | BadRecordError:
        record = ""
        try:
            item = item() if callable(item) else item
            record = item.item_id
            features = self._extract(item, view)
        except BadRecordError as error:
            return error.at(record=record)
        if not features.valid:
            return NothingShownError(
                f"the item has none of the modalities {view.modalities!r}",
                remedy="Show more of it, or leave it out",
                record=record,
            )
        return features

    def _dispatch_window(self, features: list[ItemFeatures], batch: int, views: tuple[str, ...]) -> list["_Placed"]:
        """Starts the batches of a window, each made of similar items."""
        held = [(len(item.frames), len(item.clips), _length(item)) for item in features]
        order = sorted(range(len(features)), key=held.__getitem__)
        batches = [order[at : at + batch] for at in range(0, len(order), batch)]
        return [(places, self._dispatch([features[i] for i in places], batch, views)) for places in batches]

    def _dispatch(self, features: list[ItemFeatures], batch: int, views: tuple[str, ...]) -> jax.Array:
        """Starts one batch; returns [V, rows, D] with padding rows at the end."""
        rows = features + [self._extract.blank()] * (self._rows(len(features), batch) - len(features))
        length = min(_bucket(max(map(_length, rows))), len(rows[0].tokens))
        rows = [
            dataclasses.replace(row, tokens=row.tokens[:length], token_types=row.token_types[:length]) for row in rows
        ]
        arrays, _ = collate(
            [[row] for row in rows],
            [0] * len(rows),
            [None] * len(rows),
            groups=self._groups,
            frame_capacity=self._capacity([len(row.frames) for row in rows]),
            clip_capacity=self._capacity([len(row.clips) for row in rows]),
            audio_width=self.config.model.audio.projection,
        )
        with jax.set_mesh(self.mesh):
            return _forward(self._model, self.params, shard_batch(arrays, self.mesh), views)

    def _rows(self, count: int, batch: int) -> int:
        """Returns the rows of a batch for `count` items: a power of two per device, so that one query stays cheap."""
        rows = self._groups
        while rows < count:
            rows *= 2
        return min(rows, batch)

    def _capacity(self, counts: list[int]) -> int:
        """Returns the capacity for the media of a batch, in powers of two so that few shapes are compiled."""
        per_group = np.asarray(counts).reshape(self._groups, -1).sum(axis=1).max()
        if per_group == 0:
            return 0
        capacity = len(counts) // self._groups
        while capacity < per_group:
            capacity *= 2
        return capacity * self._groups

    def _collect(
        self, batches: list["_Placed"], bad: dict[int, BadRecordError]
    ) -> tuple[np.ndarray, dict[int, BadRecordError]]:
        """Waits for the batches of a window and puts their rows back in the order of the items."""
        views = batches[0][1].shape[0]
        values = np.zeros((views, sum(len(places) for places, _ in batches), self.width), np.float32)
        for places, z in batches:
            values[:, places] = np.asarray(z)[:, : len(places)]
        if not np.isfinite(values).all():
            raise SailError(
                "The model's vectors are not finite: its training diverged (see the loss in metrics.jsonl). Use an "
                "earlier checkpoint, or train again with a lower config.optimizer.peak."
            )
        values[:, list(bad)] = 0
        return values, bad


# Positions of a batch's items within their window, and the batch's vectors [V, rows, D].
_Placed = tuple[list[int], jax.Array]


def check_dims(dims: int | None, width: int) -> int:
    """Returns the number of dimensions to keep: `dims`, or `width` for None.

    Raises:
        SailError: `dims` is not between 1 and `width`.
    """
    if dims is not None and not 1 <= dims <= width:
        raise SailError(f"dims is {dims}; the model's embeddings have 1 to {width} dimensions.")
    return width if dims is None else dims


def _at_position(error: BadRecordError, position: int) -> BadRecordError:
    """Adds the position of an item in its list, as it may have no id."""
    record = f"item {position}" + f" ({error.record})" * bool(error.record)
    return BadRecordError(error.problem, remedy=error.remedy, record=record, field=error.field)


def _length(item: ItemFeatures) -> int:
    """Returns the number of tokens of an item."""
    return int(np.count_nonzero(item.token_types))


def _bucket(length: int) -> int:
    """Rounds a length up to 8, 16, ... 64, 80, 96, 112, 128, 160, ...: at most a fifth of padding from 32 on."""
    length = max(length, 1)
    step = max(8, (1 << (length - 1).bit_length()) // 8)
    return -(-length // step) * step


@functools.partial(jax.jit, static_argnames=("model", "views"))
def _forward(model: nn.Module, params: Any, batch: Batch, views: tuple[str, ...]) -> jax.Array:
    """Returns the embeddings [V, B, D] of a batch with one item per pair; compiled once per model."""
    (z,), _ = model.apply({"params": params}, batch, (views,))
    return z


@functools.partial(jax.jit, static_argnames=("model",))
def _pool(model: nn.Module, params: Any, vectors: jax.Array) -> jax.Array:
    """Pools histories, [B, L, D] -> [B, D]."""
    head = SequenceHead(model.config.sequence, model.config.llm.width, dtype=jnp.dtype(model.config.dtype))
    return head.apply({"params": params.get("sequence", {})}, vectors, (vectors != 0).any(-1), method="pool")


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def load(workdir: str | Path, config: Config | None = None) -> Embedder:
    """Loads the latest checkpoint of a run onto all devices of this process.

    Args:
        workdir: the run directory.
        config: replaces the config of the run, for other evaluation settings or another data folder.

    Raises:
        SailError: there is no run or no checkpoint, the checkpoint does not fit the config, or the folder is an export.
    """
    run = RunDirectory(workdir)
    if (run.path / "modules.json").is_file():
        raise SailError(
            f"{run.path} is an exported model: load it with "
            f"sentence_transformers.SentenceTransformer({str(workdir)!r}, trust_remote_code=True), "
            "or load the run that it was exported from."
        )
    config = config or run.load_config()
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    checkpoints = Checkpoints(run)
    try:
        params = restore_params(checkpoints, config, mesh)
    finally:
        checkpoints.close()
    return Embedder(config, params, make_extractor(config), mesh)
