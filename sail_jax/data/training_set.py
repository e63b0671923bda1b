"""A training set: its table, the views of its sides, its hard negatives, and its order of rows."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from sail_jax.buckets import place
from sail_jax.config import Config
from sail_jax.config.data import DatasetConfig
from sail_jax.config.schema import nearest
from sail_jax.data.draw_counts import SetCounts, count_set
from sail_jax.data.hard_negative_table import NegativesTable
from sail_jax.data.joined_vectors import joined_digests
from sail_jax.data.materialized import Example, MaterializedSet, write_materialized
from sail_jax.data.row_order import RowOrder, row_order
from sail_jax.data.same_content import SameContent
from sail_jax.data.sampling_weights import read_weights
from sail_jax.data.sequence_tables import Sequence, SequenceTable
from sail_jax.data.store import FOLDER, ItemStore
from sail_jax.data.tables import Pair, PairTable
from sail_jax.data.views import dataset_patterns, side_views, teacher_widths
from sail_jax.errors import SailError
from sail_jax.patterns import OMNI
from sail_jax.sharding.process_group import everyone

_CHECKED_PAIRS = 256


def dataset_weights(config: Config) -> dict[str, float]:
    """Training set -> sampling weight, from the file of `config.data.weights` or from the settings.

    Raises:
        SailError: there is no data set, or the file is missing, malformed, or for other data sets.
    """
    datasets, setting = config.data.datasets, "config.data.weights"
    if not datasets:
        raise SailError("config.data.datasets is empty: name at least one training set.")
    if config.data.weights:
        return read_weights(place(config.data.dir) / place(config.data.weights), list(datasets), setting)
    return {name: dataset.weight for name, dataset in datasets.items()}


class TrainingSet:
    """A training set: its table, the views of its sides, and the order in which its rows are read.

    Args:
        config: the experiment.
        name: its name in the config.
        index: its number among the training sets.
    """

    def __init__(self, config: Config, name: str, index: int) -> None:
        settings, folder = config.data.datasets[name], place(config.data.dir)
        self.name, self.index, self._settings, self.kind = name, index, settings, settings.kind
        kind = SequenceTable if settings.kind == "sequences" else PairTable
        self.table = kind.open(folder / place(settings.table), split=settings.split)
        self.views = side_views(config, name)
        self.patterns = dataset_patterns(config, name)
        self._negatives = _open_negatives(settings, folder, name)
        self._joined = _joined_teachers(config, name)
        self._seed = config.seed + index
        self._order = self._make_order()
        self._materialized = (
            MaterializedSet(folder / place(settings.materialized), self._identity()) if settings.materialized else None
        )

    @property
    def corrects(self) -> bool:
        """Whether the losses of this set correct for the popularity of candidates."""
        return self._settings.correct_popularity > 0

    @property
    def roles(self) -> tuple[str, ...]:
        """What the item of each side of a pair is drawn as; see `draw_counts`."""
        hard, random = self._settings.hard_negatives, self._settings.random_negatives
        return ("query", "target", *["negative"] * hard, *["random"] * random)[: len(self.views)]

    def draw_counts(self, folder: Path, same: SameContent) -> SetCounts:
        """Counts how often items are drawn, in a folder that all processes may share; see `count_set`."""

        def count() -> SetCounts:
            return count_set(folder, self.name, self.table, self._negatives, self._settings, same)

        everyone().on_first(count)  # the others then read what it wrote, or count in folders of their own
        return count()

    def pair(self, number: int) -> Pair:
        """The pair with a number, counted over epochs; each epoch has another order."""
        return self.example(number).pair

    def example(self, number: int) -> Example:
        """The pair with a number, with its materialized items; the store has the others."""
        if self._materialized is not None:
            return self._materialized[number]
        return Example(self.table[int(self._order[number])], {})

    def sequence(self, number: int) -> Sequence:
        """The sequence with a number; only for a set of sequences."""
        return self.table[int(self._order[number])]

    def _make_order(self) -> RowOrder:
        settings = self._settings
        if settings.by_weight and settings.kind == "sequences":
            raise SailError(
                f"config.data.datasets.{self.name}.by_weight draws rows of pairs; leave it out for kind 'sequences'."
            )
        return row_order(self.table, self._seed, groups=settings.shuffle_groups, by_weight=settings.by_weight)

    @property
    def order(self) -> dict[str, Any]:
        """What decides the order of the rows, beside their number and the seed; empty if nothing does."""
        settings = self._settings
        chosen = {"by_weight": settings.by_weight, "shuffle_groups": settings.shuffle_groups}
        return chosen | {"table": self.table.digest()} if any(chosen.values()) else {}

    @property
    def history(self) -> int:
        """The number of items of a history that form the query."""
        return self._settings.history

    @property
    def seen(self) -> int:
        """The most seen items per user that are excluded from the negatives."""
        return self._settings.seen

    @property
    def epochs(self) -> int | None:
        """The number of epochs that can be read; None for no limit."""
        return None if self._materialized is None else self._materialized.epochs

    def _identity(self) -> dict[str, Any]:
        """Values that determine the pair of every example number."""
        rows = len(self.table)
        rows_of = self.order | {
            "table": self.table.digest(),
            "split": self._settings.split,
            "rows": rows,
            "order_seed": self._seed,
        }
        return rows_of | ({"joined_vectors": self._joined} if self._joined else {})

    def materialize(self, output: Path, store: ItemStore, *, epochs: int, examples_per_shard: int) -> None:
        """Writes the first epochs: pairs with their items in training order (see `materialized`).

        Raises:
            SailError: `output` holds other files.
        """
        examples = epochs * len(self.table)
        pairs = map(self.pair, range(examples))
        identity = self._identity() | {"epochs": epochs, "examples": examples}
        write_materialized(output, pairs, store, identity, examples_per_shard)

    def check_examples(self, needed: int) -> None:
        """Checks that there are as many examples as training will read.

        Raises:
            SailError: too few epochs were materialized.
        """
        rows = len(self.table)
        if self.epochs is not None and needed > self.epochs * rows:
            raise SailError(
                f"Training reads {needed:,} examples of the data set {self.name!r}, but {self._settings.materialized} "
                f"has {self.epochs * rows:,}: materialize {-(-needed // rows)} epochs, not {self.epochs}, or train for "
                "fewer steps."
            )

    @property
    def mined(self) -> dict[str, Any] | None:
        """The metadata of its hard negatives as JSON values; None if it has none."""
        return None if self._negatives is None else {"queries": len(self._negatives), **self._negatives.metadata}

    def check_pairs(self) -> None:
        """Checks the first pairs for settings that can have no effect on them.

        Raises:
            SailError: COSENT has a weight of the set's own and no pair has a score; a pattern asks text queries for
                vision or sound; or hard negatives are configured and no query has any.
        """
        if self.kind == "sequences":
            return
        first = self._first_pairs()
        where = f"config.data.datasets.{self.name}"
        if self._settings.loss_weights.get("cosent", 0) > 0 and all(pair.score is None for pair in first):
            raise SailError(
                f"{where}.loss_weights gives COSENT a weight, but {self.table.path} has no scores: name their column "
                "in config.ingest.tables when you ingest, or leave the weight out."
            )
        if all(pair.query_id is None for pair in first):
            for pattern in self.patterns:
                if pattern.query not in ("T", OMNI):
                    raise SailError(
                        f"{where}.patterns has '{pattern}', but the queries of {self.table.path} are texts, which have "
                        f"neither vision nor sound: write 'T->{pattern.target}'."
                    )
        if self._negatives and not any(self._negatives.get(pair.query_id, pair.query_text)[0] for pair in first):
            raise SailError(
                f"{self._negatives.path} has no hard negatives for the first {len(first)} queries of the data set "
                f"{self.name!r}: it was mined for other queries. Mine it for this set."
            )

    def _first_pairs(self) -> list[Pair]:
        return [self.table[i] for i in range(min(_CHECKED_PAIRS, len(self.table)))]

    def search_note(self) -> str:
        """A warning if the set corrects for popularity and its queries are texts; else empty."""
        if not self.corrects or self.kind != "pairs" or any(pair.query_id is not None for pair in self._first_pairs()):
            return ""
        where = f"config.data.datasets.{self.name}"
        return (
            f"{where}.correct_popularity is {self._settings.correct_popularity}, and the queries of {self.table.path} "
            "are texts: of two items that fit a text equally well, the one with more rows will rank first. Set it to 0 "
            "if a search should go by content alone."
        )

    def negatives(self, pair: Pair, rng: np.random.Generator) -> list[str | None]:
        """The ids of the hard negatives for a pair, padded with None."""
        if self._negatives is None:
            return []
        found, _ = self._negatives.get(pair.query_id, pair.query_text)
        others = [item_id for item_id in found if item_id != pair.target_id]
        drawn = rng.permutation(len(others))[: self._settings.hard_negatives]
        return [others[i] for i in drawn] + [None] * (self._settings.hard_negatives - len(drawn))

    def random_negatives(self, items: int, rng: np.random.Generator) -> list[int]:
        """The positions of a pair's random negatives in a store of so many items."""
        return rng.integers(items, size=self._settings.random_negatives).tolist()


def materialize(config: Config, name: str, output: Path, store: ItemStore, *, epochs: int) -> None:
    """Writes a training set's joined, shuffled records as shards (see `TrainingSet.materialize`).

    Args:
        config: the experiment; `ingest.items_per_shard` examples make a shard.
        name: the training set.
        output: the folder.
        store: the items.
        epochs: how often the table is written, each time in another order.

    Raises:
        SailError: there is no such training set, `epochs` is less than one, or `output` holds other files.
    """
    datasets = config.data.datasets
    if name not in datasets:
        raise SailError(f"config.data.datasets has no {name!r}. Did you mean {nearest(name, datasets)}?")
    if datasets[name].kind == "sequences":
        raise SailError(
            f"config.data.datasets.{name} is of kind 'sequences'; only pairs and items can be materialized."
        )
    if epochs < 1:
        raise SailError(f"--epochs is {epochs}; write at least one.")
    settings = dataclasses.replace(datasets[name], materialized="", hard_negatives=0)
    data = dataclasses.replace(config.data, datasets=datasets | {name: settings})
    dataset = TrainingSet(dataclasses.replace(config, data=data), name, list(datasets).index(name))
    dataset.materialize(output, store, epochs=epochs, examples_per_shard=config.ingest.items_per_shard)


def _joined_teachers(config: Config, name: str) -> dict[str, str]:
    """The ID embeddings in a set's batches that were joined to the store, with the digests of their tables."""
    sharing = list(config.data.datasets) if config.data.sampling == "mixed" else [name]
    teachers = teacher_widths(config, sharing)
    digests = joined_digests(place(config.data.dir) / FOLDER) if teachers else {}
    return {name: digest for name, digest in digests.items() if name in teachers}


def _open_negatives(settings: DatasetConfig, folder: Path, name: str) -> NegativesTable | None:
    if not settings.hard_negatives:
        return None
    if not settings.negatives:
        raise SailError(
            f"config.data.datasets.{name}.hard_negatives is {settings.hard_negatives}, but its `negatives` names no "
            "table: mine one with `python -m sail_jax mine`, or set it to 0."
        )
    return NegativesTable.open(folder / place(settings.negatives))
