"""Computes the log frequencies of the candidates of batches, for the sampling-bias correction.

Axis letters: B pairs of a batch, S sides of a pair.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sail_jax.buckets import place
from sail_jax.config import Config
from sail_jax.data.draw_counts import FOLDER, SetCounts
from sail_jax.data.features import ItemFeatures
from sail_jax.data.sequence_tables import Sequence as ItemSequence
from sail_jax.data.store import ItemStore
from sail_jax.data.training_set import TrainingSet
from sail_jax.items import item_key


class CandidateFrequencies:
    """How often the candidates come in the batches in which some training sets may occur.

    Args:
        sets: what is counted of each set, with the share of the pairs that are drawn from it.
        items: number of items of the store.
    """

    def __init__(self, sets: Sequence[tuple[SetCounts, float]], items: int) -> None:
        self._items = items
        self._sets = [(counted, share / counted.rows) for counted, share in sets]

    def log(self, role: str, keys: np.ndarray) -> np.ndarray:
        """The log of the share of each key among all that is drawn in a role.

        Args:
            role: "query", "target" or "negative"; or "random", in which all items are drawn alike.
            keys: [n] uint64.

        Returns:
            [n] float32; 0 for a key that is never drawn, which is that of a pair below `min_score` or of a blank.
        """
        if role == "random":
            return np.full(len(keys), -np.log(self._items), np.float32)
        parts = [(counted.counts[role], share) for counted, share in self._sets if role in counted.counts]
        if not parts:
            return np.zeros(len(keys), np.float32)
        drawn = sum(counts.of(keys) * share for counts, share in parts)
        total = sum(counts.total * share for counts, share in parts)
        return np.log(np.where(drawn > 0, drawn, total) / total).astype(np.float32)


class BatchFrequencies:
    """Makes `Batch.log_frequency`; it may be pickled.

    Args:
        config: the experiment.
        sets: the training sets that are drawn, by index. Those whose candidates are corrected are counted.
        weights: training set -> sampling weight.
        store: the items; those with equal content are counted as the first one.

    Attributes:
        identity: training set -> hashes of all that its counts depend on; empty if nothing is corrected.

    Raises:
        SailError: a table cannot be counted.
    """

    def __init__(
        self, config: Config, sets: Mapping[int, TrainingSet], weights: Mapping[str, float], store: ItemStore
    ) -> None:
        folder, mixed = place(config.data.dir) / FOLDER, config.data.sampling == "mixed"
        self._roles = {index: dataset.roles for index, dataset in sets.items()}
        counted = [dataset for dataset in sets.values() if dataset.corrects]
        if mixed and counted:  # the candidates of all pairs of a batch compete
            counted = [dataset for dataset in sets.values() if dataset.kind != "items"]
        self._same, items = store.same, len(store)
        counts = {dataset.index: dataset.draw_counts(folder, store.same) for dataset in counted}
        self.identity: dict[str, Any] = {dataset.name: counts[dataset.index].identity for dataset in counted}
        # Data set -> the frequencies in the batches in which it may occur, where these are corrected.
        self._of_batches = {index: CandidateFrequencies([(found, 1.0)], items) for index, found in counts.items()}
        if mixed and counted:
            shares = [(counts[dataset.index], weights[dataset.name]) for dataset in counted]
            self._of_batches = dict.fromkeys(sets, CandidateFrequencies(shares, items))

    def of_pairs(self, pairs: Sequence[Sequence[ItemFeatures]], datasets: Sequence[int]) -> np.ndarray | None:
        """The log frequencies of pairs: [B, S] float32; None if no data set of their batch corrects for it.

        Args:
            pairs: B pairs of S items each.
            datasets: [B] index of each pair's data set.
        """
        frequencies = self._of_batches.get(datasets[0])
        if frequencies is None:
            return None
        keys = np.array([[item.item_key for item in sides] for sides in pairs], np.uint64)
        found, of_rows = np.zeros(keys.shape, np.float32), np.asarray(datasets)
        for dataset in dict.fromkeys(datasets):
            rows = of_rows == dataset
            for side, role in enumerate(self._roles[dataset]):
                found[rows, side] = frequencies.log(role, keys[rows, side])
        return found

    def of_sequences(self, sequences: Sequence[ItemSequence], dataset: int) -> np.ndarray | None:
        """The log frequencies of histories and their targets: [B, 2] float32, or None as for `of_pairs`.

        Args:
            sequences: B sequences.
            dataset: the index of their data set.
        """
        frequencies = self._of_batches.get(dataset)
        if frequencies is None:
            return None
        keys = np.array([item_key(sequence.target_id) for sequence in sequences], np.uint64)
        targets = frequencies.log("target", self._same.of_keys(keys))
        # Each history comes once an epoch, and what is equal for all candidates corrects nothing.
        return np.stack([np.zeros_like(targets), targets], axis=1)
