"""The input pipeline: (seed, step) -> data set -> rows of its table -> items -> features -> batch, through Grain.

A batch is a pure function of the config and the step number. So the state of the pipeline is the number of the next
step; a resumed run continues exactly, whatever the number of worker processes, and hosts agree without talking. A whole
batch is prepared inside one worker: batches, not records, cross between processes.
"""

import dataclasses
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags

from sail_jax.config import Config
from sail_jax.data.batch_shapes import media_room
from sail_jax.data.collate import collate
from sail_jax.data.features import FeatureExtractor, ItemFeatures, View
from sail_jax.data.prompts import PromptEncoder, load_tokenizer
from sail_jax.data.sampler import Sampler
from sail_jax.data.store import ItemStore
from sail_jax.data.tables import Pair
from sail_jax.data.training_set import TrainingSet, dataset_weights
from sail_jax.errors import BadRecordError, SailError
from sail_jax.items import Batch, text_item

# Keeps the draws of hard negatives apart from those of the sides, which are numbered from 0.
_NEGATIVES = 1 << 20


@dataclasses.dataclass(frozen=True)
class HostShare:
    """The part of each global batch that one process prepares.

    Attributes:
        start: first pair.
        stop: one past the last pair.
        groups: data-parallel shards among these pairs.
    """

    start: int
    stop: int
    groups: int


class LoadedBatch(NamedTuple):
    """A batch with what the training loop reports of it.

    Attributes:
        arrays: this host's part of the batch, numpy arrays.
        step: the step it is for.
        datasets: the data sets that may occur in the global batch.
        bad_records: messages of the records that could not be loaded; their items are masked out.
        media_cut: frames and clips that did not fit the budgets.
    """

    arrays: Batch
    step: int
    datasets: tuple[int, ...]
    bad_records: tuple[str, ...]
    media_cut: int


def open_store(config: Config) -> ItemStore:
    """The item store of a config's data folder."""
    if not config.data.dir:
        raise SailError("config.data.dir is empty: set it to the folder that `ingest` wrote.")
    return ItemStore.open(Path(config.data.dir) / "items")


def make_extractor(config: Config) -> FeatureExtractor:
    """The feature extractor of a config, with its tokenizer loaded."""
    tokenizer = load_tokenizer(config.prompt, Path(config.data.dir), config.model.text_vocab)
    return FeatureExtractor(config, PromptEncoder(config.prompt, tokenizer, config.model.perceiver.latents))


class BatchSource:
    """Random access by step number to this host's part of the training batches.

    Args:
        config: the experiment, or a stage of it.
        share: the pairs of the global batch that this process prepares.
        begin: the first step of the stage.
        drawn: how often each data set was drawn before it, so that its rows go on where they were; empty for never.

    Raises:
        SailError: when there is no data set, or one has fewer rows than a batch.
    """

    def __init__(self, config: Config, share: HostShare, *, begin: int = 0, drawn: Sequence[int] = ()) -> None:
        self._weights = dataset_weights(config)
        self._config, self._share = config, share
        self._store = open_store(config)
        self._extract = make_extractor(config)
        self._sampler = Sampler(list(self._weights.values()), config.seed)
        # A set that is never drawn is not opened: its table may be made by a later stage.
        self._sets = {
            index: TrainingSet(config, name, index)
            for index, (name, weight) in enumerate(self._weights.items())
            if weight > 0
        }
        draws = config.data.batch_size if config.data.sampling == "mixed" else 1
        self._before = np.array(drawn or [0] * len(self._weights)) - self._sampler.counts(begin * draws)
        self._sides = max(len(dataset.views) for dataset in self._sets.values())
        for dataset in self._sets.values():
            self._check_size(dataset)
            dataset.check_pairs()

    def _check_size(self, dataset: TrainingSet) -> None:
        rows, batch_size = len(dataset.table), self._config.data.batch_size
        if rows < batch_size:
            raise SailError(
                f"The data set {dataset.name!r} has {rows} rows in split "
                f"{self._config.data.datasets[dataset.name].split!r}, fewer than the batch of {batch_size}: lower "
                "config.data.batch_size or add rows."
            )

    def __len__(self) -> int:
        return self._config.train.steps

    def fingerprint(self) -> dict[str, Any]:
        """What decides the batches; a run can only be resumed when it is the same."""
        data = self._config.data
        return {
            "seed": self._config.seed,
            "batch_size": data.batch_size,
            "sampling": data.sampling,
            "datasets": {s.name: [len(s.table), self._weights[s.name]] for s in self._sets.values()},
            "negatives": {s.name: s.mined for s in self._sets.values() if s.mined is not None},
        }

    def datasets(self, step: int) -> tuple[int, ...]:
        """The data sets that may occur in the global batch of `step`; the same on all hosts."""
        if self._config.data.sampling == "specialized":
            return (self._sampler.dataset(step),)
        return tuple(self._sets)

    def examples(self, step: int) -> list[tuple[int, int]]:
        """(data set, example number) of each pair of this host's part of the batch of `step`."""
        size, rows = self._config.data.batch_size, range(self._share.start, self._share.stop)
        if self._config.data.sampling == "specialized":
            chosen = self._sampler.dataset(step)
            first = int((self._before + self._sampler.counts(step))[chosen]) * size
            return [(chosen, first + row) for row in rows]
        draws = [step * size + row for row in rows]
        seen = self._before + self._sampler.counts(draws[0])
        examples = []
        for draw in draws:
            chosen = self._sampler.dataset(draw)
            examples.append((chosen, int(seen[chosen])))
            seen[chosen] += 1
        return examples

    def __getitem__(self, step: int) -> LoadedBatch:
        step = int(step)
        bad: list[str] = []
        examples = self.examples(step)
        datasets = [dataset for dataset, _ in examples]
        pairs = [self._sets[dataset].pair(example) for dataset, example in examples]
        features = [self._pair_features(step, row, datasets[row], pair, bad) for row, pair in enumerate(pairs)]
        arrays, cut = collate(
            features,
            datasets,
            [pair.score for pair in pairs],
            groups=self._share.groups,
            frame_capacity=self._room("V", datasets),
            clip_capacity=self._room("A", datasets),
            audio_width=self._config.model.audio.projection,
        )
        return LoadedBatch(arrays, step, self.datasets(step), tuple(bad), cut)

    def _room(self, modality: str, datasets: list[int]) -> int:
        """Length of the flat axis of a modality in this host's part of a batch."""
        mixed = self._config.data.sampling == "mixed"
        views = [dataset.views for dataset in (self._sets.values() if mixed else [self._sets[datasets[0]]])]
        return media_room(self._config, views, modality, len(datasets), self._share.groups)

    def _pair_features(self, step: int, row: int, dataset: int, pair: Pair, bad: list[str]) -> tuple[ItemFeatures, ...]:
        """The sides of a pair; a mixed batch is padded with blanks to the sides of the set that has the most."""
        chosen, place = self._sets[dataset], [self._config.seed, step, self._share.start + row]
        ids = [pair.query_id, pair.target_id, *chosen.negatives(pair, np.random.default_rng([*place, _NEGATIVES]))]
        sides = [
            self._features(
                item_id, pair.query_text if side == 0 else None, view, np.random.default_rng([*place, side]), bad
            )
            for side, (item_id, view) in enumerate(zip(ids, chosen.views, strict=True))
        ]
        blanks = self._sides if self._config.data.sampling == "mixed" else len(sides)
        return (*sides, *[self._extract.blank()] * (blanks - len(sides)))

    def _features(
        self, item_id: str | None, text: str | None, view: View, rng: np.random.Generator, bad: list[str]
    ) -> ItemFeatures:
        """The features of an item, of a free text where there is no id, or of nothing where there is neither."""
        if item_id is None and text is None:
            return self._extract.blank()
        try:
            item = text_item(text) if item_id is None else self._store.get(item_id)
            return self._extract(item, view, dropout=self._config.data.field_dropout, rng=rng)
        except BadRecordError as error:
            bad.append(str(error.at(source=str(self._store.path))))
            return self._extract.blank()


def make_iterator(source: BatchSource, config: Config, start: int) -> Generator[LoadedBatch, None, None]:
    """Iterates over the batches of steps `start`, `start + 1`, ... in order, prepared ahead.

    Close it (`contextlib.closing`) to end the workers and to free the batches that were prepared and not used.

    Args:
        source: the batches by step.
        config: `data.workers` processes prepare whole batches, `data.prefetch` of them ahead each.
        start: the first step.
    """
    dataset = grain.MapDataset.source(source)[start:]
    data = config.data
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=max(1, data.prefetch))
    steps = dataset.to_iter_dataset(reading)
    if data.workers > 0:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, which only an absl program parses
        workers = grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=max(1, data.prefetch))
        steps = steps.mp_prefetch(workers, worker_init_fn=_begin_worker)
    batches = iter(steps)
    try:
        yield from batches
    finally:
        batches.close()
        gc.collect()  # Grain leaves batches in reference cycles, whose shared memory would outlive the process


def _begin_worker(*_: int) -> None:
    """Runs first in a worker process: it is the training process that ends the workers, and they end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
