"""The constructions of sequences: which items before a target are kept, and in which order.

The four train constructions are those of arXiv 2510.12709, sec. 3.3.5; the two test constructions those of sec. 4.2.
Axis letters as in `sail_jax.logs.sequences.windows`.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from sail_jax.config.log_sequences import SequencesConfig
from sail_jax.logs.sequences.histories import Histories
from sail_jax.logs.sequences.item_facts import Consumers, Embeddings, Labels
from sail_jax.logs.sequences.windows import Windows, draw_keys, proportional_ranks


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Windows, the candidates before their targets, and facts about the items.

    Attributes:
        settings: the thresholds.
        seed: the seed of the draws.
        histories: the histories.
        windows: W targets.
        labels: labels of the items; None if the construction does not read them. Likewise the next two.
        embeddings: content embeddings of the items.
        consumers: consumers of the items.
    """

    settings: SequencesConfig
    seed: int
    histories: Histories
    windows: Windows
    labels: Labels | None = None
    embeddings: Embeddings | None = None
    consumers: Consumers | None = None

    @functools.cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """([C] the window of each candidate, [C] its entry)."""
        return self.windows.candidates()

    @property
    def window(self) -> np.ndarray:
        """[C] int64, the window of each candidate."""
        return self.places[0]

    @property
    def item(self) -> np.ndarray:
        """[C] int64, the item of each candidate."""
        return self.histories.item[self.places[1]]

    @property
    def targets(self) -> np.ndarray:
        """[W] int64, the item of each target."""
        return self.histories.item[self.windows.target]

    @functools.cached_property
    def draw(self) -> np.ndarray:
        """[C] uint64, a random number for each candidate."""
        return draw_keys(self.seed, self.histories, self.windows, *self.places)

    @functools.cached_property
    def age(self) -> np.ndarray:
        """[C] int64, lower for candidates nearer to the target."""
        return -self.places[1]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The candidates that a construction keeps, and their order of priority.

    Attributes:
        known: [W] bool, whether the target has the label or vector that the construction needs.
        kept: [C] bool.
        priority: keys [C], the most important first; the kept candidates with the lowest keys form the sequence.
    """

    known: np.ndarray
    kept: np.ndarray
    priority: tuple[np.ndarray, ...]


def _content_single(c: Candidates) -> Choice:
    """Keeps candidates close to the target in content embedding; prefers the most recent."""
    known, targets = c.embeddings.known, c.targets[c.window]
    kept = known[c.item] & known[targets]
    kept[kept] = c.embeddings.cosine(c.item[kept], targets[kept]) >= c.settings.cosine
    return Choice(known[c.targets], kept, (c.age,))


def _content_multi(c: Candidates) -> Choice:
    """Keeps candidates with labels that overlap the target's; prefers the most recent."""
    kept = c.labels.jaccard(c.item, c.targets[c.window]) > c.settings.label_jaccard
    return Choice(c.labels.known[c.targets], kept, (c.age,))


def _collab_single(c: Candidates) -> Choice:
    """Keeps candidates consumed by the same other users as the target; draws in proportion to the clusters."""
    users = c.histories.user_hashes[c.histories.user[c.windows.target]][c.window]
    kept = c.consumers.jaccard(c.item, c.targets[c.window], users) >= c.settings.behaviour_jaccard
    return Choice(_all(c), kept, (_proportion(c, kept), c.draw))


def _collab_multi(c: Candidates) -> Choice:
    """Keeps all candidates; draws in proportion to the clusters of the history."""
    kept = np.ones(len(c.window), bool)
    return Choice(_all(c), kept, (_proportion(c, kept), c.draw))


def _vanilla(c: Candidates) -> Choice:
    """Keeps all candidates; draws at random."""
    return Choice(_all(c), np.ones(len(c.window), bool), (c.draw,))


def _whole(c: Candidates) -> Choice:
    """Keeps all candidates, in their order."""
    return Choice(_all(c), np.ones(len(c.window), bool), (c.places[1],))


def _filtered(c: Candidates) -> Choice:
    """Keeps candidates in the target's cluster; draws at random."""
    cluster = c.labels.cluster
    known = c.labels.known[c.targets]
    return Choice(known, known[c.window] & (cluster[c.item] == cluster[c.targets[c.window]]), (c.draw,))


def _proportion(c: Candidates, kept: np.ndarray) -> np.ndarray:
    return proportional_ranks(c.window, c.labels.cluster[c.item], kept, c.draw)


def _all(c: Candidates) -> np.ndarray:
    return np.ones(len(c.windows), bool)


@dataclasses.dataclass(frozen=True)
class Construction:
    """A way to build sequences, with the inputs that it needs.

    Attributes:
        choose: keeps candidates and ranks them.
        peak: "single" or "multi", which chooses the threshold of positive behaviours.
        needs: the facts about items that it reads: "labels", "embeddings", "consumers".
        evaluation: whether it builds test sequences only.
        whole: whether it builds one train sequence of each user, with all items up to the cut.
    """

    choose: Callable[[Candidates], Choice]
    peak: str
    needs: tuple[str, ...] = ()
    evaluation: bool = False
    whole: bool = False

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it builds."""
        return ("test",) if self.evaluation else ("train",) if self.whole else ("train", "test")

    def positives(self, settings: SequencesConfig) -> int:
        """The least number of positive behaviours with which an event counts."""
        return settings.single_positives if self.peak == "single" else settings.multi_positives


CONSTRUCTIONS = {
    "seq_content_single": Construction(_content_single, "single", ("embeddings",)),
    "seq_content_multi": Construction(_content_multi, "multi", ("labels",)),
    "seq_collab_single": Construction(_collab_single, "single", ("labels", "consumers")),
    "seq_collab_multi": Construction(_collab_multi, "multi", ("labels",)),
    "histories": Construction(_whole, "multi", whole=True),
    "eval_vanilla": Construction(_vanilla, "multi", (), evaluation=True),
    "eval_filtered": Construction(_filtered, "multi", ("labels",), evaluation=True),
}
