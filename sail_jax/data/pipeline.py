"""The batches of a run: (seed, step) -> data set -> table rows -> items -> features -> batch.

A batch is a pure function of the config and the step number, so the state of the pipeline is the number of the next
step. A resumed run continues exactly, with any number of worker processes (`prefetch`), and hosts agree without
communication.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sail_jax.batch import Batch
from sail_jax.buckets import place
from sail_jax.config import Config
from sail_jax.data.batch_shapes import media_room
from sail_jax.data.collate import Empty, collate, count_again
from sail_jax.data.features import FeatureExtractor, ItemFeatures, View
from sail_jax.data.frequencies import BatchFrequencies
from sail_jax.data.ingested import require_id_embeddings
from sail_jax.data.materialized import Example
from sail_jax.data.prompts import PromptEncoder, load_tokenizer
from sail_jax.data.sampler import Sampler
from sail_jax.data.sequence_layout import lay_out, sequence_keys
from sail_jax.data.store import FOLDER, ItemStore
from sail_jax.data.token_budget import fit_texts, text_budget, token_room
from sail_jax.data.tower_outputs import NO_ENCODINGS, Encodings
from sail_jax.data.training_set import TrainingSet, dataset_weights
from sail_jax.data.views import teacher_widths
from sail_jax.errors import BadRecordError, SailError
from sail_jax.files import partial_folder
from sail_jax.items import Item, text_item

# Separates the draws of negatives from those of the sides, which are numbered from 0.
_NEGATIVES = 1 << 20
# Items of which only text is shown, whose features a process keeps: about 30 MB at 64 tokens.
_KEPT_TEXTS = 1 << 16


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
    """A batch, with figures that the training loop reports.

    Attributes:
        parts: this host's part of each micro-batch, numpy arrays; one part if the batch is not split.
        step: the step of the batch.
        datasets: the data sets that may occur in the global batch.
        room: token capacity of a data-parallel shard of a micro-batch; None if the model does not pack.
        bad_records: messages of the records that could not be loaded; their items are masked out.
        media_cut: frames and clips dropped because of the budgets.
        text_cut: text tokens dropped because of the budget.
        prompt_cut: text tokens dropped because of `prompt.max_tokens`, before the budget is looked at.
        items_cut: items of histories that did not fit.
        media_shared: items whose frames and clips were encoded with an earlier one (`data.encode_once`).
        media_cached: frames and clips of which the output of the tower was read (`data.encoding_cache_gb`).
    """

    parts: tuple[Batch, ...]
    step: int
    datasets: tuple[int, ...]
    room: int | None
    bad_records: tuple[str, ...]
    media_cut: int
    text_cut: int
    prompt_cut: int = 0
    items_cut: int = 0
    media_shared: int = 0
    media_cached: int = 0

    @property
    def arrays(self) -> Batch:
        """The batch, if it has only one part."""
        (batch,) = self.parts
        return batch


def open_store(config: Config) -> ItemStore:
    """Opens the item store of a config's data folder."""
    if not config.data.dir:
        raise SailError("config.data.dir is empty: set it to the folder that `ingest` wrote.")
    return ItemStore.open(place(config.data.dir) / FOLDER)


def _once_note(config: Config) -> str | None:
    """Says that `data.encode_once` saves nothing, where that is so."""
    data = config.data
    if not data.encode_once or data.frame_budget or data.clip_budget:
        return None
    return (
        "config.data.encode_once saves nothing, since there is room for the most frames and clips of every item: set "
        "config.data.frame_budget or config.data.clip_budget, or leave it out."
    )


def make_extractor(config: Config, encodings: Encodings = NO_ENCODINGS) -> FeatureExtractor:
    """Loads the tokenizer of a config and returns its feature extractor."""
    tokenizer = load_tokenizer(config.prompt, place(config.data.dir), config.model.text_vocab)
    encoder = PromptEncoder(config.prompt, tokenizer, config.model.perceiver.latents)
    return FeatureExtractor(config, encoder, encodings)


class BatchSource:
    """Random access by step number to this host's part of the training batches.

    Args:
        config: the experiment, or a stage of it.
        share: the pairs of the global batch that this process prepares.
        begin: the first step of the stage.
        drawn: number of draws of each data set in earlier stages, after which this stage continues in its table; empty
            if there were none.
        encodings: outputs of frozen towers, which take the place of pixels and of sound.

    Attributes:
        empty: allocates the arrays of pixels and of sound; `np.empty`, or shared memory in a worker process.
        notes: settings that are likely a mistake, for the user.

    Raises:
        SailError: there is no data set, one has fewer rows than a batch, its candidates cannot be counted, or the items
            lack an ID embedding that it teaches.
    """

    def __init__(
        self,
        config: Config,
        share: HostShare,
        *,
        begin: int = 0,
        drawn: Sequence[int] = (),
        encodings: Encodings = NO_ENCODINGS,
    ) -> None:
        self.empty: Empty = np.empty
        self._weights = dataset_weights(config)
        self._config, self._share, self.encodings = config, share, encodings
        self._store = open_store(config)
        self._extract = make_extractor(config, encodings)
        self._sampler = Sampler(list(self._weights.values()), config.seed)
        # A set with weight 0 is not opened: a later stage may create its table.
        self._sets = {
            index: TrainingSet(config, name, index)
            for index, (name, weight) in enumerate(self._weights.items())
            if weight > 0
        }
        draws = config.data.batch_size if config.data.sampling == "mixed" else 1
        self._before = np.array(drawn or [0] * len(self._weights)) - self._sampler.counts(begin * draws)
        self._most_sides = max(len(dataset.views) for dataset in self._sets.values())
        names = [dataset.name for dataset in self._sets.values()]
        mixed = config.data.sampling == "mixed"
        # Data set -> the ID embeddings in the batches in which it may occur.
        self._teachers = {
            index: teacher_widths(config, names if mixed else [dataset.name]) for index, dataset in self._sets.items()
        }
        taught = dict.fromkeys(name for teachers in self._teachers.values() for name in teachers)
        require_id_embeddings(place(config.data.dir), self._store, taught)
        for dataset in self._sets.values():
            self._check_size(dataset)
            dataset.check_pairs()
            if dataset.epochs is not None:
                drawn_at_end = (self._before + self._sampler.counts(len(self) * draws))[dataset.index]
                dataset.check_examples(int(drawn_at_end) * config.data.batch_size // draws)
        notes = [*(dataset.search_note() for dataset in self._sets.values()), _once_note(config)]
        self.notes = tuple(filter(None, notes))
        self._texts: dict[tuple, ItemFeatures] = {}
        self._frequencies = BatchFrequencies(config, self._sets, self._weights, self._store)

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
        """Values that determine the batches; a run can be resumed only if they are unchanged."""
        data = self._config.data
        taught = {name for teachers in self._teachers.values() for name in teachers}
        joined = {name: of.facts["digest"] for name, of in self._store.joined.items() if name in taught}
        orders = {s.name: s.order for s in self._sets.values() if s.order}
        return {
            "seed": self._config.seed,
            "batch_size": data.batch_size,
            "sampling": data.sampling,
            "datasets": {s.name: [len(s.table), self._weights[s.name]] for s in self._sets.values()},
            "negatives": {s.name: s.mined for s in self._sets.values() if s.mined is not None},
            **({"orders": orders} if orders else {}),
            **({"contents of items": self._store.contents} if self._store.contents else {}),
            **({"items": len(self._store)} if any("random" in s.roles for s in self._sets.values()) else {}),
            **({"joined_vectors": joined} if joined else {}),
            **({"frequencies": self._frequencies.identity} if self._frequencies.identity else {}),
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

    def keep_tokenizer(self, folder: Path) -> None:
        """Copies the tokenizer into a folder, unless it is there."""
        if not folder.is_dir():
            with partial_folder(folder) as partial:
                self._extract.encoder.tokenizer.save_pretrained(partial)

    def records(self, step: int) -> list[str]:
        """The rows of this host's part of the batch of `step`, such as "copair: item1 -> item2"."""
        rows = []
        for index, number in self.examples(step):
            chosen = self._sets[index]
            row = chosen.sequence(number) if chosen.kind == "sequences" else chosen.example(number).pair
            query = " ".join(row.item_ids) if chosen.kind == "sequences" else row.query_id or repr(row.query_text)
            rows.append(f"{chosen.name}: {query} -> {row.target_id}")
        return rows

    def __getitem__(self, step: int) -> LoadedBatch:
        step = int(step)
        bad: list[str] = []
        examples, present = self.examples(step), self.datasets(step)
        make = self._sequences if self._sets[present[0]].kind == "sequences" else self._pairs
        parts = []
        for rows in np.split(np.arange(len(examples)), self._config.train.micro_batches):
            parts.append(make(step, rows, [examples[row] for row in rows], bad))
        batches, *counts = zip(*parts, strict=True)
        media_cut, text_cut, prompt_cut, shared, items_cut = (sum(of_parts) for of_parts in counts)
        cut = media_cut, text_cut, prompt_cut, items_cut
        cached = sum(self._cached(batch) for batch in batches)
        return LoadedBatch(batches, step, present, self.token_room(present), tuple(bad), *cut, shared, cached)

    def _cached(self, batch: Batch) -> int:
        """The number of frames and clips of a batch of which it has the outputs of frozen towers."""
        read = zip(self.encodings, (batch.frame_item, batch.clip_item), strict=True)
        return sum(int(np.count_nonzero(items >= 0)) for outputs, items in read if outputs is not None)

    def _pairs(
        self, step: int, rows: np.ndarray, examples: list[tuple[int, int]], bad: list[str]
    ) -> tuple[Batch, int, int, int, int, int]:
        """A micro-batch of pairs with its counts: those of `_collate`, and history items that did not fit."""
        read = [self._sets[dataset].example(number) for dataset, number in examples]
        datasets = [dataset for dataset, _ in examples]
        features = [
            self._pair_features(step, int(row), dataset, example, bad)
            for row, dataset, example in zip(rows, datasets, read, strict=True)
        ]
        batch, *cut = self._collate(features, datasets, [example.pair.score for example in read])
        return batch._replace(log_frequency=self._frequencies.of_pairs(features, datasets)), *cut, 0

    def _sequences(
        self, step: int, rows: np.ndarray, examples: list[tuple[int, int]], bad: list[str]
    ) -> tuple[Batch, int, int, int, int, int]:
        """A micro-batch of sequences; each shard holds its distinct items once. Counts as for `_pairs`."""
        chosen = self._sets[examples[0][0]]
        read = [chosen.sequence(number) for _, number in examples]
        layout = lay_out(
            [sequence.item_ids for sequence in read],
            [sequence.target_id for sequence in read],
            groups=self._share.groups,
            length=chosen.history,
            sides=len(chosen.views),
        )
        features = [self._sides(step, int(row), ids, chosen, bad) for row, ids in zip(rows, layout.places, strict=True)]
        batch, *cut = self._collate(features, [chosen.index] * len(read), [None] * len(read))
        keys = sequence_keys(read, layout, features, self._store.same, length=chosen.history, seen=chosen.seen)
        keys["log_frequency"] = self._frequencies.of_sequences(read, chosen.index)
        return batch._replace(members=layout.members, **keys), *cut, layout.left_out

    @property
    def _shard_pairs(self) -> int:
        """Pairs of a shard in a micro-batch."""
        return (self._share.stop - self._share.start) // self._share.groups // self._config.train.micro_batches

    def _collate(
        self, features: list[tuple[ItemFeatures, ...]], datasets: list[int], scores: list[float | None]
    ) -> tuple[Batch, int, int, int, int]:
        """A micro-batch, the media and text tokens that did not fit (see `LoadedBatch`), and `count_again`."""
        model, text_cut = self._config.model, 0
        prompt_cut = sum(item.text_cut for sides in features for item in sides)
        if budget := text_budget(self._config):
            features, text_cut = fit_texts(features, self._share.groups, budget)
        groups = self._share.groups * model.media_chunks(self._shard_pairs)
        batch, media_cut = collate(
            features,
            datasets,
            scores,
            groups=groups,
            frame_capacity=self._room("V", datasets, groups),
            clip_capacity=self._room("A", datasets, groups),
            audio_width=model.audio.projection,
            teachers=self._teachers[datasets[0]],
            once=self._config.data.encode_once,
            empty=self.empty,
        )
        return batch, media_cut, text_cut, prompt_cut, count_again(batch, groups)

    def token_room(self, datasets: tuple[int, ...]) -> int | None:
        """`LoadedBatch.room` of batches in which these data sets may occur."""
        budget = text_budget(self._config)
        if not budget:
            return None
        sets = [self._sets[dataset] for dataset in datasets]
        return token_room(
            [pattern for dataset in sets for pattern in dataset.patterns],
            [dataset.views for dataset in sets],
            pairs=self._shard_pairs,
            budget=budget,
            latents=self._extract.encoder.vision_tokens,
            prompt_tokens=self._extract.encoder.prompt_tokens,
        )

    def _room(self, modality: str, datasets: list[int], groups: int) -> int:
        """Length of the flat axis of a modality in this host's part of a micro-batch."""
        mixed = self._config.data.sampling == "mixed"
        views = [dataset.views for dataset in (self._sets.values() if mixed else [self._sets[datasets[0]]])]
        return media_room(self._config, views, modality, len(datasets), groups)

    def _pair_features(
        self, step: int, row: int, dataset: int, example: Example, bad: list[str]
    ) -> tuple[ItemFeatures, ...]:
        """The features of a pair's sides; in a mixed batch padded with blanks to the largest number of sides."""
        chosen, pair = self._sets[dataset], example.pair
        rng = np.random.default_rng([self._config.seed, step, self._share.start + row, _NEGATIVES])
        ids = [pair.query_id, pair.target_id, *chosen.negatives(pair, rng)]
        items: list[Item | str | int | None] = [example.items.get(item_id, item_id) for item_id in ids]
        items = [*items, *chosen.random_negatives(len(self._store), rng)][: len(chosen.views)]
        if pair.query_text is not None and pair.query_id is None:
            items[0] = text_item(pair.query_text)
        sides = self._sides(step, row, items, chosen, bad)
        blanks = self._most_sides if self._config.data.sampling == "mixed" else len(sides)
        return (*sides, *[self._extract.blank()] * (blanks - len(sides)))

    def _sides(
        self, step: int, row: int, items: Sequence[Item | str | int | None], chosen: TrainingSet, bad: list[str]
    ) -> tuple[ItemFeatures, ...]:
        """The features of the items of a row."""
        place, teachers = [self._config.seed, step, self._share.start + row], self._teachers[chosen.index]
        return tuple(
            self._features(item, view, np.random.default_rng([*place, side]), teachers, bad)
            for side, (item, view) in enumerate(zip(items, chosen.views, strict=True))
        )

    def _features(
        self,
        item: Item | str | int | None,
        view: View,
        rng: np.random.Generator,
        teachers: Mapping[str, int],
        bad: list[str],
    ) -> ItemFeatures:
        """The features of an item, of an item id or of a position in the store; blank for None.

        Those of text alone are kept: without dropped fields they are the same each time, and small.
        """
        if item is None:
            return self._extract.blank()
        dropout = self._config.data.field_dropout
        key = (item, view, *teachers) if view.modalities == "T" and not dropout and not isinstance(item, Item) else None
        if key in self._texts:
            return self._texts[key]
        try:
            if not isinstance(item, Item):
                item = self._store.get(item) if isinstance(item, str) else self._store[item]
            features = self._one_of_equals(self._extract(item, view, dropout=dropout, rng=rng, teachers=teachers))
        except BadRecordError as error:
            bad.append(str(error.at(source=str(self._store.path))))
            return self._extract.blank()
        if key is not None:
            if len(self._texts) == _KEPT_TEXTS:
                del self._texts[next(iter(self._texts))]  # the one kept first
            self._texts[key] = features
        return features

    def _one_of_equals(self, features: ItemFeatures) -> ItemFeatures:
        """Gives an item the key of the first one with its content, so that they are no negatives of each other."""
        (key,) = self._store.same.of_keys(np.array([features.item_key], np.uint64)).tolist()
        return features if key == features.item_key else dataclasses.replace(features, item_key=key)
