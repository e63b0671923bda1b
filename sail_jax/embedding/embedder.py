"""Embeds items with a trained model.

The parameters are split over the devices of a mesh as in training. The mesh may have the devices of several processes,
which then embed together: all of them call the same methods with the same arguments, each loads and decodes its share
of the items (`embedding.windows`), and all get all vectors.

Axis letters: V views, n items of a window, D width, Q histories, L items of a history.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sail_jax.config import Config
from sail_jax.data import prompts
from sail_jax.data.features import FeatureExtractor, View
from sail_jax.data.instructions import instructions_of
from sail_jax.data.item_dicts import is_free_text, to_item
from sail_jax.data.pipeline import make_extractor
from sail_jax.embedding.forward import forward, inference_mesh, inference_model, on_every_device, pool_histories
from sail_jax.embedding.memory import explained
from sail_jax.embedding.windows import Window, WindowReader
from sail_jax.errors import BadRecordError, SailError
from sail_jax.items import TEXT_FIELDS, Item
from sail_jax.models.model import abstract_params
from sail_jax.patterns import MODALITIES
from sail_jax.progress import track
from sail_jax.runs.checkpoints import Checkpoints, restore_params
from sail_jax.runs.directory import RunDirectory
from sail_jax.sharding.mesh import data_shards, in_batch_order, shard_batch
from sail_jax.vectors.unit import unit_rows

# Items of which texts and others are told apart at once.
_CHUNK = 4096
# Histories that are pooled in one call.
_HISTORIES = 256


class Embedder:
    """Embeds items with fixed parameters of a model.

    Args:
        config: the experiment.
        params: the model's parameters, on `mesh`.
        extractor: turns items into arrays.
        mesh: where the computation runs; batches are split over its data axes.
        step: the step of the checkpoint that the parameters came from, if they came from one.

    Attributes:
        processes: the processes of the mesh, which embed together.
        width: D.
    """

    def __init__(
        self, config: Config, params: Any, extractor: FeatureExtractor, mesh: Mesh, *, step: int | None = None
    ) -> None:
        self.config, self.params, self.mesh, self.step = config, params, mesh, step
        self._model, self._reader = inference_model(config, mesh), WindowReader(config, extractor, mesh)
        self.processes, self.width = self._reader.processes, config.model.llm.width

    def encode(
        self,
        items: Iterable[Item | str | Path | Mapping[str, Any]],
        *,
        dims: int | None = None,
        batch_size: int | None = None,
        modalities: str = MODALITIES,
        fields: Sequence[str] = TEXT_FIELDS,
        instruction: str | None = None,
        show_progress: bool = False,
    ) -> np.ndarray:
        """Embeds items and texts.

        Args:
            items: items; strings as free-text queries; dicts such as {"title": "sourdough", "image": "frame.jpg"},
                whose keys `item_dicts.to_item` lists; or paths: a string that ends in a media suffix (".jpg") is the
                path of that file, and {"text": ...} a text that ends so. They are consumed as a stream.
            dims: number of leading dimensions that are kept; one of `config.objective.matryoshka` works best, as the
                model was trained for these. None keeps all.
            batch_size: items per batch; affects only speed. None takes `config.eval.batch_size`.
            modalities: modalities of the items that are shown.
            fields: text fields that are shown.
            instruction: the system prompt; replaced by `config.prompt.unified` where the run has one. None takes those
                that the run was trained with: for free texts that of queries, for all else that of documents.
            show_progress: whether a progress bar is shown.

        Returns:
            [items, dims] float32, rows of unit length.

        Raises:
            BadRecordError: an item cannot be read or decoded, is a path without a file, or has none of the modalities;
                the message names its position and the field.
            SailError: wrong dims, batch size, modalities or fields, or a device runs out of memory.
        """
        if isinstance(items, Item | str | Path | Mapping):
            raise SailError("encode takes a list of items and texts; write encode([item]).")
        dims = check_dims(dims, self.width)
        by_role = instructions_of(self.config) if instruction is None else (instruction, instruction)
        views = {kind: self.view(modalities, fields, of) for kind, of in zip((True, False), by_role, strict=True)}
        total = len(items) if isinstance(items, Sized) else None
        shown = iter(track(items, description="encode", total=total, disable=not show_progress))
        if views[True] == views[False]:
            blocks = list(self._encode(shown, views[True], dims, batch_size))
        else:
            blocks = []
            while chunk := list(itertools.islice(shown, _CHUNK)):
                blocks.append(self._encode_by_role(chunk, views, dims, batch_size, sum(map(len, blocks))))
        return np.concatenate(blocks) if blocks else np.zeros((0, dims), np.float32)

    def _encode_by_role(
        self, items: list[Any], views: Mapping[bool, View], dims: int, batch_size: int | None, at: int
    ) -> np.ndarray:
        """Embeds texts and items under views of their own; `at` is the position of the first one, for messages."""
        z = np.zeros((len(items), dims), np.float32)
        for is_text, view in views.items():
            places = [place for place, item in enumerate(items) if is_free_text(item) == is_text]
            if places:
                chosen = (items[place] for place in places)
                z[places] = np.concatenate(
                    list(self._encode(chosen, view, dims, batch_size, [at + place for place in places]))
                )
        return z

    def _encode(
        self,
        items: Iterable[Any],
        view: View,
        dims: int,
        batch_size: int | None,
        positions: Sequence[int] | None = None,
    ) -> Iterator[np.ndarray]:
        """Yields the unit vectors of items under one view, window by window; `positions` are those for messages."""
        loaders, at = (functools.partial(to_item, item, self.config.ingest) for item in items), 0
        for z, bad in self.stream(loaders, view, (view.modalities,), batch_size=batch_size):
            for position, error in bad.items():
                raise _at_position(error, at + position if positions is None else positions[at + position])
            yield unit_rows(z[0, :, :dims])
            at += z.shape[1]

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
            items: a stream of items, or of functions that load one, which are called in threads, and only for the items
                that fall to this process.
            view: the fields, the instruction and the modalities shown; these include all modalities of `views`.
            views: sets of modalities, such as "VT"; each gives every item an embedding of its own, from one pass of the
                towers.
            batch_size: items per batch, rounded up to the data-parallel devices; None for `config.eval.batch_size`.

        Yields:
            z: [V, n, D] float32 of the next n items, not normalised; zeros for bad items.
            bad: position within these n -> error, for items that cannot be used.
        """
        batch = self._whole_batch(self.config.eval.batch_size if batch_size is None else batch_size)
        pending: list[tuple[Window, list[_Placed]]] = []
        with ThreadPoolExecutor(max_workers=4) as pool:
            for window in self._reader.read(items, view, batch, pool):
                pending.append((window, self._dispatch(window, views)))
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
            with jax.set_mesh(self.mesh):
                found = self._readable(pool_histories(self._model, self.params, batch))
            pooled[start : start + len(some)] = np.asarray(found)[: len(some)]
        return pooled

    def _whole_batch(self, size: int) -> int:
        """Rounds a batch size up to a multiple of the data-parallel devices."""
        if size < 1:
            raise SailError(f"batch_size is {size}; it must be at least 1.")
        shards = data_shards(self.mesh)
        return -(-size // shards) * shards

    def _dispatch(self, window: Window, views: tuple[str, ...]) -> list["_Placed"]:
        """Starts the batches of a window."""
        with jax.set_mesh(self.mesh), explained(lambda: self.params):
            return [
                (places, self._readable(forward(self._model, self.params, shard_batch(arrays, self.mesh), views)))
                for places, arrays in window.batches
            ]

    def _readable(self, vectors: jax.Array) -> jax.Array:
        """Returns vectors that this process can read, also where other processes have computed them."""
        return on_every_device(vectors) if self.processes.count > 1 else vectors

    def _collect(self, window: Window, batches: list["_Placed"]) -> tuple[np.ndarray, dict[int, BadRecordError]]:
        """Waits for the batches of a window and puts their rows back in the order of the items."""
        values = np.zeros((batches[0][1].shape[0], window.items, self.width), np.float32)
        for places, z in batches:
            with explained(lambda: self.params):  # computed by now
                rows = in_batch_order(np.asarray(z), self.mesh, axis=1)
            for start, items in places:
                values[:, items] = rows[:, start : start + len(items)]
        if not np.isfinite(values).all():
            raise SailError(
                "The model's vectors are not finite: its training diverged (see the loss in metrics.jsonl). Use an "
                "earlier checkpoint, or train again with a lower config.optimizer.peak."
            )
        values[:, list(window.bad)] = 0
        return values, window.bad


# Where the items of a batch lie (`PlannedBatch.places`), and the batch's vectors [V, rows, D].
_Placed = tuple[list[tuple[int, list[int]]], jax.Array]


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


def load(
    workdir: str | Path,
    config: Config | None = None,
    *,
    devices: Sequence[jax.Device] | None = None,
    step: int | None = None,
) -> Embedder:
    """Loads a checkpoint of a run onto devices, with the parameters split by `config.mesh`.

    Args:
        workdir: the run directory.
        config: replaces the config of the run, for other evaluation settings or another data folder.
        devices: the devices; by default those of all processes, which then must all load it and embed together.
        step: the step of the checkpoint; by default the newest one that is whole.

    Raises:
        SailError: there is no run or no such checkpoint, it is damaged or does not fit the config, the folder is an
            export, or a device runs out of memory.
    """
    run = RunDirectory(workdir)
    if (run.path / "modules.json").is_file():
        raise SailError(
            f"{run.path} is an exported model: load it with "
            f"sentence_transformers.SentenceTransformer({str(workdir)!r}, trust_remote_code=True), "
            "or load the run that it was exported from."
        )
    config = config or run.load_config()
    mesh = inference_mesh(config.mesh, devices)
    checkpoints = Checkpoints(run, saves=False, step=step)
    try:
        with explained(lambda: abstract_params(config, mesh)):
            params = restore_params(checkpoints, config, mesh)
    finally:
        checkpoints.close()
    return Embedder(config, params, make_extractor(config), mesh, step=checkpoints.latest())
