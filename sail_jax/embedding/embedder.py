"""A loaded model that turns items into vectors; the only place that knows how to batch for inference.

Axis letters: V views, n items of a window, N token positions, D width.

Batches are formed of items that are alike, so that little of what is computed is padding: a window of items at a time is
sorted by what they hold, and each batch is as long as its longest item. Lengths, rows, frames and clips come in steps,
so that few shapes are compiled.
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

# Items of a window, in batches, and the bytes of decoded media at which it closes early: both bound what is held on the host.
_WINDOW_BATCHES = 16
_WINDOW_BYTES = 256 << 20
# Histories that are pooled at a time.
_HISTORIES = 256


class NothingShownError(BadRecordError):
    """An item that has none of the modalities that are shown; often no fault of the data."""


class Embedder:
    """Embeds items with fixed parameters.

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
            items: items; strings as free-text queries; or dicts such as {"title": "sourdough", "image": "frame.jpg"}, whose keys
                `item_dicts.to_item` lists. They are read as they are needed.
            dims: how many of the first dimensions are kept, best one of `config.objective.matryoshka`, for which the
                model was trained; None for all.
            batch_size: items per batch, which changes speed alone; None for `config.eval.batch_size`.
            modalities: what is shown of them.
            fields: text fields that are shown.
            instruction: the system prompt; a run with a unified one shows that in its place.
            show_progress: whether a progress bar is shown.

        Returns:
            [items, dims] float32, rows of unit length.

        Raises:
            BadRecordError: when an item cannot be read or decoded, or has none of the modalities; the error names its
                position, and the field.
            SailError: on wrong dims, batch size, modalities or fields.
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
        """What is shown of items, under the instruction that the model was trained to read in place of this one.

        Raises:
            SailError: on unknown modalities or fields.
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
        """Embeds window by window, in order, decoding the next window while the device works on this one.

        Args:
            items: any number of items, or functions that load one, which are called in threads; they are read as they are
                needed.
            view: what is shown of them; its modalities must cover those of `views`.
            views: modality sets, each of which gives an embedding of its own; the towers run once.
            batch_size: items per batch, rounded up to the data-parallel devices; None for `config.eval.batch_size`.

        Yields:
            z: [V, n, D] float32 of the next n items, not normalised; zeros for bad items.
            bad: position within these n -> error, for items that could not be used.
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
        """The vectors of histories, pooled as the model was trained to (`config.model.sequence`).

        Args:
            vectors: [n, D] of items, may be memory-mapped; rows of zeros are items without a vector, which take no part.
            sequences: Q arrays of rows of `vectors`, oldest first; of those longer than `config.model.sequence.max_items` the last.

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
        """The least multiple of the data-parallel devices that is no smaller than `size`."""
        if size < 1:
            raise SailError(f"batch_size is {size}; it must be at least 1.")
        return -(-size // self._groups) * self._groups

    def _prepare(
        self, items: Iterable[Item | Callable[[], Item]], view: View, batch: int, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[list[ItemFeatures], dict[int, BadRecordError]]]:
        """Features of the items of a window, and what was wrong with those that are blank."""
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
        """Starts the batches of a window, each of items that are alike."""
        held = [(len(item.frames), len(item.clips), _length(item)) for item in features]
        order = sorted(range(len(features)), key=held.__getitem__)
        batches = [order[at : at + batch] for at in range(0, len(order), batch)]
        return [(places, self._dispatch([features[i] for i in places], batch, views)) for places in batches]

    def _dispatch(self, features: list[ItemFeatures], batch: int, views: tuple[str, ...]) -> jax.Array:
        """Starts one batch; [V, rows, D], with rows of padding at the end."""
        rows = features + [self._extract.blank()] * (self._rows(len(features), batch) - len(features))
        length = min(_step_up(max(map(_length, rows))), len(rows[0].tokens))
        rows = [
            dataclasses.replace(row, tokens=row.tokens[:length], token_types=row.token_types[:length]) for row in rows
        ]
        arrays, _ = collate(
            [[row] for row in rows],
            [0] * len(rows),
            [None] * len(rows),
            groups=self._groups,
            frame_capacity=self._room([len(row.frames) for row in rows]),
            clip_capacity=self._room([len(row.clips) for row in rows]),
            audio_width=self.config.model.audio.projection,
        )
        with jax.set_mesh(self.mesh):
            return _forward(self._model, self.params, shard_batch(arrays, self.mesh), views)

    def _rows(self, count: int, batch: int) -> int:
        """Rows for `count` items of a batch, in steps of doubling: one query does not pay for a whole batch."""
        rows = self._groups
        while rows < count:
            rows *= 2
        return min(rows, batch)

    def _room(self, counts: list[int]) -> int:
        """Room for all media of a batch, in steps of doubling so that few shapes are compiled."""
        per_group = np.asarray(counts).reshape(self._groups, -1).sum(axis=1).max()
        if per_group == 0:
            return 0
        room = len(counts) // self._groups
        while room < per_group:
            room *= 2
        return room * self._groups

    def _collect(
        self, batches: list["_Placed"], bad: dict[int, BadRecordError]
    ) -> tuple[np.ndarray, dict[int, BadRecordError]]:
        """Waits for the batches of a window and lays their rows where the items stood."""
        views = batches[0][1].shape[0]
        values = np.zeros((views, sum(len(places) for places, _ in batches), self.width), np.float32)
        for places, z in batches:
            values[:, places] = np.asarray(z)[:, : len(places)]
        if not np.isfinite(values).all():
            raise SailError(
                "The model's vectors are not finite: its training went astray (see the loss in metrics.jsonl). Use an earlier "
                "checkpoint, or train again with a lower config.optimizer.peak."
            )
        values[:, list(bad)] = 0
        return values, bad


# Positions of a batch's items within their window, and the batch's vectors [V, rows, D].
_Placed = tuple[list[int], jax.Array]


def check_dims(dims: int | None, width: int) -> int:
    """How many dimensions are kept of an embedding of `width`: `dims`, or all for None.

    Raises:
        SailError: the embedding has not that many.
    """
    if dims is not None and not 1 <= dims <= width:
        raise SailError(f"dims is {dims}; the model's embeddings have 1 to {width} dimensions.")
    return width if dims is None else dims


def _at_position(error: BadRecordError, position: int) -> BadRecordError:
    """The error of an item in a list, which may have no id."""
    record = f"item {position}" + f" ({error.record})" * bool(error.record)
    return BadRecordError(error.problem, remedy=error.remedy, record=record, field=error.field)


def _length(item: ItemFeatures) -> int:
    """Positions of an item up to its last token."""
    return int(np.count_nonzero(item.token_types))


def _step_up(length: int) -> int:
    """The next of 8, 16, ... 64, 80, 96, 112, 128, 160, ...: from 32 on four lengths per doubling, a fifth of padding at most."""
    length = max(length, 1)
    step = max(8, (1 << (length - 1).bit_length()) // 8)
    return -(-length // step) * step


@functools.partial(jax.jit, static_argnames=("model", "views"))
def _forward(model: nn.Module, params: Any, batch: Batch, views: tuple[str, ...]) -> jax.Array:
    """[V, B, D] embeddings of a batch with one item per pair; compiled once for all embedders of a model."""
    (z,), _ = model.apply({"params": params}, batch, (views,))
    return z


@functools.partial(jax.jit, static_argnames=("model",))
def _pool(model: nn.Module, params: Any, vectors: jax.Array) -> jax.Array:
    """[B, L, D] -> [B, D]."""
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
    """Loads the latest checkpoint of a run, on all devices of this process.

    Args:
        workdir: the run directory.
        config: evaluation settings and data folder to use instead of those the run was started with.

    Raises:
        SailError: when there is no run or no checkpoint, the checkpoint is of another config, or the folder is an export,
            which holds no run's config.
    """
    run = RunDirectory(workdir)
    if (run.path / "modules.json").is_file():
        raise SailError(
            f"{run.path} is an exported model: load it with sentence_transformers.SentenceTransformer({str(workdir)!r}, "
            "trust_remote_code=True), or load the run that it was exported from."
        )
    config = config or run.load_config()
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    checkpoints = Checkpoints(run)
    try:
        params = restore_params(checkpoints, config, mesh)
    finally:
        checkpoints.close()
    return Embedder(config, params, make_extractor(config), mesh)
