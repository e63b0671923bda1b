"""Reads items in windows, and forms the batches of a window; inference batches are formed only here.

To keep padding small, the items of a window are sorted by their numbers of frames, clips and tokens, and each batch is
padded only to its longest item. The sizes of a batch are rounded up to a few values, so that few shapes are compiled.

Several processes share a window: each loads and decodes a share of its items and provides its rows of every batch. Once
per window they tell each other the sizes of their rows, since all of them must run the same programs.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from sail_jax.batch import Batch
from sail_jax.config import Config
from sail_jax.data.collate import collate
from sail_jax.data.features import FeatureExtractor, ItemFeatures, View
from sail_jax.errors import BadRecordError
from sail_jax.items import Item
from sail_jax.sharding.mesh import data_shards, host_rows
from sail_jax.sharding.process_group import Processes

# Size of a window in batches, and the bytes of decoded media at which it closes early; they bound the host's memory.
_WINDOW_BATCHES = 16
_WINDOW_BYTES = 256 << 20


class NothingShownError(BadRecordError):
    """An error for an item without any of the shown modalities, which often is no mistake in the data."""


class Share(NamedTuple):
    """The part of every window and batch that one process provides.

    Processes that differ only in their place on the tensor axis have the same share.

    Attributes:
        index: number of the share, from 0.
        count: number of shares; item i of a window belongs to share i % count.
        groups: data-parallel shards whose rows are in the share.
    """

    index: int
    count: int
    groups: int


class PlannedBatch(NamedTuple):
    """A batch of a window.

    Attributes:
        places: (first row, positions in the window) of the items of each share; other rows are padding.
        arrays: the rows of this process, numpy arrays with one item per pair.
    """

    places: list[tuple[int, list[int]]]
    arrays: Batch


class Window(NamedTuple):
    """Consecutive items of a stream.

    Attributes:
        items: number of items, of all processes.
        bad: position in the window -> error, for items that cannot be used, of all processes.
        batches: the batches, collated one at a time; they have equal shapes on all processes.
    """

    items: int
    bad: dict[int, BadRecordError]
    batches: Iterator[PlannedBatch]


class WindowReader:
    """Reads streams of items in windows, together with the other processes of a mesh.

    Args:
        config: the experiment.
        extractor: turns items into arrays.
        mesh: where the batches are embedded.
    """

    def __init__(self, config: Config, extractor: FeatureExtractor, mesh: Mesh) -> None:
        self._config, self._extract, self.processes = config, extractor, Processes.of(mesh)
        shards = data_shards(mesh)
        start, stop = host_rows(mesh, shards)
        self._share = Share(start // (stop - start), shards // (stop - start), stop - start)

    def read(
        self, items: Iterable[Item | Callable[[], Item]], view: View, batch: int, pool: ThreadPoolExecutor
    ) -> Iterator[Window]:
        """Yields the windows of a stream.

        Args:
            items: the stream, equal on all processes; functions are called only for the items of this process' share.
            view: what of an item is shown.
            batch: rows of a batch of all processes, a multiple of the data-parallel shards.
            pool: threads that load and decode.
        """
        own: list[tuple[int, ItemFeatures]] = []
        bad: dict[int, BadRecordError] = {}
        count = held = 0
        for chunk in _chunks(items, batch):
            places = range(count + self._share.index, count + len(chunk), self._share.count)
            mine = chunk[self._share.index :: self._share.count]
            for place, result in zip(places, pool.map(lambda item: self._one(item, view), mine), strict=True):
                if isinstance(result, BadRecordError):
                    bad[place], result = result, self._extract.blank()
                own.append((place, result))
                held += result.frames.nbytes + result.clips.nbytes
            count += len(chunk)
            if self._share.count > 1:  # processes close a window together, so they go by the most that it may hold
                held = -(-count // self._share.count) * self._most_bytes(view)
            if count >= _WINDOW_BATCHES * batch or held >= _WINDOW_BYTES:
                yield self._planned(count, own, bad, batch)
                own, bad, count, held = [], {}, 0, 0
        if count:
            yield self._planned(count, own, bad, batch)

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

    def _most_bytes(self, view: View) -> int:
        """Returns the bytes of the decoded media of an item that has as many as the model takes."""
        model = self._config.model
        frames = model.perceiver.max_frames * 3 * model.vit.image_size**2 if "V" in view.modalities else 0
        clips = model.audio.max_clips * 2 * model.audio.clip_samples if "A" in view.modalities else 0
        return frames + clips

    def _planned(
        self, count: int, own: list[tuple[int, ItemFeatures]], bad: dict[int, BadRecordError], batch: int
    ) -> Window:
        """Sorts the items of this process, and agrees with the others on the shapes of the batches."""
        share, rows = self._share, batch // self._share.count
        most = -(-count // share.count)
        sizes = [self._rows(min(rows, most - at), rows) for at in range(0, most, rows)]
        own = sorted(own, key=lambda entry: (len(entry[1].frames), len(entry[1].clips), _length(entry[1])))
        parts = [[features for _, features in own[k * rows :][:rows]] for k in range(len(sizes))]
        needs = np.array([self._needs(part, size) for part, size in zip(parts, sizes, strict=True)])
        unseen = [place for place, error in bad.items() if isinstance(error, NothingShownError)]
        told = self.processes.gather((share.index, [place for place, _ in own], needs, bad, unseen))
        orders = {index: order for index, order, *_ in told}
        agreed = np.max([needs for _, _, needs, *_ in told], axis=0)
        bad = {place: error for *_, found, _ in told for place, error in found.items()}
        for place in (place for *_, unseen in told for place in unseen):
            bad[place] = _nothing_shown(bad[place])

        def batches() -> Iterator[PlannedBatch]:
            for k, (part, size) in enumerate(zip(parts, sizes, strict=True)):
                places = [(index * size, order[k * rows :][:rows]) for index, order in orders.items()]
                yield PlannedBatch(places, self._collated(part, size, *agreed[k].tolist()))

        return Window(count, bad, batches())

    def _needs(self, part: Sequence[ItemFeatures], size: int) -> tuple[int, int, int]:
        """Returns the length, and the most frames and clips of a data-parallel shard, of `size` rows."""
        length = min(_bucket(max(map(_length, part), default=0)), self._config.prompt.max_tokens)
        media = np.zeros((2, size), int)
        media[:, : len(part)] = [[len(item.frames) for item in part], [len(item.clips) for item in part]]
        return length, *media.reshape(2, self._share.groups, -1).sum(axis=-1).max(axis=-1).tolist()

    def _collated(self, part: list[ItemFeatures], size: int, length: int, frames: int, clips: int) -> Batch:
        rows = part + [self._extract.blank()] * (size - len(part))
        rows = [
            dataclasses.replace(row, tokens=row.tokens[:length], token_types=row.token_types[:length]) for row in rows
        ]
        arrays, _ = collate(
            [[row] for row in rows],
            [0] * size,
            [None] * size,
            groups=self._share.groups,
            frame_capacity=self._capacity(frames, size),
            clip_capacity=self._capacity(clips, size),
            audio_width=self._config.model.audio.projection,
        )
        return arrays

    def _rows(self, count: int, most: int) -> int:
        """Returns the rows of a batch for `count` items: a power of two per device, so that one query stays cheap."""
        rows = self._share.groups
        while rows < count:
            rows *= 2
        return min(rows, most)

    def _capacity(self, needed: int, size: int) -> int:
        """Returns the capacity for the media of a batch, in powers of two so that few shapes are compiled."""
        if needed == 0:
            return 0
        capacity = size // self._share.groups
        while capacity < needed:
            capacity *= 2
        return capacity * self._share.groups


def _nothing_shown(error: BadRecordError) -> NothingShownError:
    """Returns the error as what it was in the process that found it; a pickled error is a plain one."""
    return NothingShownError(error.problem, remedy=error.remedy, record=error.record)


def _length(item: ItemFeatures) -> int:
    """Returns the number of tokens of an item."""
    return int(np.count_nonzero(item.token_types))


def _bucket(length: int) -> int:
    """Rounds a length up to 8, 16, ... 64, 80, 96, 112, 128, 160, ...: at most a fifth of padding from 32 on."""
    length = max(length, 1)
    step = max(8, (1 << (length - 1).bit_length()) // 8)
    return -(-length // step) * step


def _chunks(items: Iterable[Item | Callable[[], Item]], size: int) -> Iterator[list[Item | Callable[[], Item]]]:
    chunk: list[Item | Callable[[], Item]] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
