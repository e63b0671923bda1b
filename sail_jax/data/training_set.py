"""One training set: its table, what its sides show, its hard negatives, and the order in which its rows are read."""

import dataclasses
from pathlib import Path
from typing import Any

import grain
import numpy as np

from sail_jax.config import Config
from sail_jax.config.data import DatasetConfig
from sail_jax.config.schema import nearest
from sail_jax.data.hard_negative_table import NegativesTable
from sail_jax.data.materialized import Example, MaterializedSet, write_materialized
from sail_jax.data.sampling_weights import read_weights
from sail_jax.data.sequence_tables import Sequence, SequenceTable
from sail_jax.data.store import ItemStore
from sail_jax.data.tables import Pair, PairTable
from sail_jax.data.views import dataset_patterns, sides_shown
from sail_jax.errors import SailError
from sail_jax.patterns import OMNI

_CHECKED_PAIRS = 256


def dataset_weights(config: Config) -> dict[str, float]:
    """Training set -> sampling weight: from the file of `config.data.weights` where there is one, else its own.

    Raises:
        SailError: when there is no data set, or the file is missing, is wrong, or is of other data sets.
    """
    datasets, setting = config.data.datasets, "config.data.weights"
    if not datasets:
        raise SailError("config.data.datasets is empty: name at least one training set.")
    if config.data.weights:
        return read_weights(Path(config.data.dir) / config.data.weights, list(datasets), setting)
    return {name: dataset.weight for name, dataset in datasets.items()}


class TrainingSet:
    """One training set: its table, what its sides show, and the order in which its rows are read.

    Args:
        config: the experiment.
        name: its name in the config.
        index: its number among the training sets.
    """

    def __init__(self, config: Config, name: str, index: int) -> None:
        settings, folder = config.data.datasets[name], Path(config.data.dir)
        self.name, self.index, self._settings, self.kind = name, index, settings, settings.kind
        kind = SequenceTable if settings.kind == "sequences" else PairTable
        self.table = kind.open(folder / settings.table, split=settings.split)
        self.views = sides_shown(config, name)
        self.patterns = dataset_patterns(config, name)
        self._negatives = _open_negatives(settings, folder, name)
        self._seed = config.seed + index
        self._order = grain.MapDataset.range(len(self.table)).shuffle(seed=self._seed).repeat()
        self._materialized = (
            MaterializedSet(folder / settings.materialized, self._identity()) if settings.materialized else None
        )

    def pair(self, number: int) -> Pair:
        """The pair that is read as number `number`, counted over epochs; each epoch has an order of its own."""
        return self.example(number).pair

    def example(self, number: int) -> Example:
        """That pair, with its items as far as they stand beside it; the store has the others."""
        if self._materialized is not None:
            return self._materialized[number]
        return Example(self.table[int(self._order[number])], {})

    def sequence(self, number: int) -> Sequence:
        """The sequence that is read as number `number`, of a set of sequences."""
        return self.table[int(self._order[number])]

    @property
    def history(self) -> int:
        """Items of a history that make the query."""
        return self._settings.history

    @property
    def seen(self) -> int:
        """Items that a user has seen, at most, that are kept out of the negatives."""
        return self._settings.seen

    @property
    def epochs(self) -> int | None:
        """Epochs that can be read; None where there is no end to them."""
        return None if self._materialized is None else self._materialized.epochs

    def _identity(self) -> dict[str, Any]:
        """What decides the pair of every example number."""
        rows = len(self.table)
        return {"table": self.table.digest(), "split": self._settings.split, "rows": rows, "order_seed": self._seed}

    def materialize(self, output: Path, store: ItemStore, *, epochs: int, examples_per_shard: int) -> None:
        """Writes its first epochs, pairs with their items in the order in which training reads them (see `materialized`).

        Raises:
            SailError: `output` holds something else.
        """
        examples = epochs * len(self.table)
        pairs = map(self.pair, range(examples))
        identity = self._identity() | {"epochs": epochs, "examples": examples}
        write_materialized(output, pairs, store, identity, examples_per_shard)

    def check_examples(self, needed: int) -> None:
        """Checks that there are as many examples as training will read.

        Raises:
            SailError: fewer epochs than are needed were materialized.
        """
        rows = len(self.table)
        if self.epochs is not None and needed > self.epochs * rows:
            raise SailError(
                f"Training reads {needed:,} examples of the data set {self.name!r}, and {self._settings.materialized} has "
                f"{self.epochs * rows:,}: materialize {-(-needed // rows)} epochs, not {self.epochs}, or train for fewer steps."
            )

    @property
    def mined(self) -> dict[str, Any] | None:
        """What is known of its hard negatives, as JSON values; None where there are none."""
        return None if self._negatives is None else {"queries": len(self._negatives), **self._negatives.metadata}

    def check_pairs(self) -> None:
        """Looks at the first pairs for settings that can have no effect on them.

        Raises:
            SailError: when COSENT has a weight of the set's own and no pair has a score; when a pattern asks queries that are
                texts for vision or sound; when hard negatives are asked for and no query has any.
        """
        if self.kind == "sequences":
            return
        first = [self.table[i] for i in range(min(_CHECKED_PAIRS, len(self.table)))]
        where = f"config.data.datasets.{self.name}"
        if self._settings.loss_weights.get("cosent", 0) > 0 and all(pair.score is None for pair in first):
            raise SailError(
                f"{where}.loss_weights gives COSENT a weight, and {self.table.path} has no scores: name their column in "
                "config.ingest.tables when you ingest, or leave the weight out."
            )
        if all(pair.query_id is None for pair in first):
            for pattern in self.patterns:
                if pattern.query not in ("T", OMNI):
                    raise SailError(
                        f"{where}.patterns has '{pattern}', but the queries of {self.table.path} are texts, which have neither "
                        f"vision nor sound: write 'T->{pattern.target}'."
                    )
        if self._negatives and not any(self._negatives.get(pair.query_id, pair.query_text)[0] for pair in first):
            raise SailError(
                f"{self._negatives.path} has no hard negatives for the first {len(first)} queries of the data set "
                f"{self.name!r}: it was mined for other queries. Mine it for this set."
            )

    def negatives(self, pair: Pair, rng: np.random.Generator) -> list[str | None]:
        """The ids of the hard negatives that are shown with a pair, None where it has fewer."""
        if self._negatives is None:
            return []
        found, _ = self._negatives.get(pair.query_id, pair.query_text)
        others = [item_id for item_id in found if item_id != pair.target_id]
        drawn = rng.permutation(len(others))[: self._settings.hard_negatives]
        return [others[i] for i in drawn] + [None] * (self._settings.hard_negatives - len(drawn))


def materialize(config: Config, name: str, output: Path, store: ItemStore, *, epochs: int) -> None:
    """Writes a training set's joined, shuffled records as sequential shards (see `TrainingSet.materialize`).

    Args:
        config: the experiment; `ingest.items_per_shard` examples make a shard.
        name: the training set.
        output: the folder.
        store: the items.
        epochs: how often the table is written, each time in an order of its own.

    Raises:
        SailError: there is no such training set, fewer than one epoch is asked for, or `output` holds something else.
    """
    datasets = config.data.datasets
    if name not in datasets:
        raise SailError(f"config.data.datasets has no {name!r}. Did you mean {nearest(name, datasets)}?")
    if datasets[name].kind == "sequences":
        raise SailError(
            f"config.data.datasets.{name} is of kind 'sequences'; records are materialized of pairs and items."
        )
    if epochs < 1:
        raise SailError(f"--epochs is {epochs}; write at least one.")
    settings = dataclasses.replace(datasets[name], materialized="", hard_negatives=0)
    data = dataclasses.replace(config.data, datasets=datasets | {name: settings})
    dataset = TrainingSet(dataclasses.replace(config, data=data), name, list(datasets).index(name))
    dataset.materialize(output, store, epochs=epochs, examples_per_shard=config.ingest.items_per_shard)


def _open_negatives(settings: DatasetConfig, folder: Path, name: str) -> NegativesTable | None:
    if not settings.hard_negatives:
        return None
    if not settings.negatives:
        raise SailError(
            f"config.data.datasets.{name}.hard_negatives is {settings.hard_negatives}, and its `negatives` names no table: "
            "mine one with `python -m sail_jax mine`, or set it to 0."
        )
    return NegativesTable.open(folder / settings.negatives)
