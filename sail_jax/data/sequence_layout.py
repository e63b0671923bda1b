"""Assigns the distinct items of sequences to the places of a batch, so that each is encoded once.

Axes: B sequences, S places per sequence, L items of a history.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sail_jax.batch import NO_MEMBER
from sail_jax.data.collate import as_halves
from sail_jax.data.features import ItemFeatures
from sail_jax.data.same_content import SameContent
from sail_jax.data.sequence_tables import Sequence as ItemSequence
from sail_jax.items import item_key


class Layout(NamedTuple):
    """The places of a batch.

    Attributes:
        places: B lists of S item ids, None where a place is empty.
        members: [B, 1 + L] int32, see `batch.Batch`.
        left_out: number of items of histories without a place.
    """

    places: list[list[str | None]]
    members: np.ndarray
    left_out: int


def lay_out(
    histories: Sequence[Sequence[str]], targets: Sequence[str], *, groups: int, length: int, sides: int
) -> Layout:
    """Assigns places to the targets first, then to the items of the histories, the latest of all first.

    Consecutive places are in different rows, so that media are spread evenly over a group.

    Args:
        histories: B lists of item ids, oldest first; only the last L of each are used.
        targets: B item ids.
        groups: equal groups of sequences.
        length: L.
        sides: S, at least 1.
    """
    size = len(targets) // groups
    places: list[list[str | None]] = [[None] * sides for _ in targets]
    members = np.full((len(targets), 1 + length), NO_MEMBER, np.int32)
    left_out = 0
    for first in range(0, len(targets), size):
        rows = range(first, first + size)
        wanted = [(row, 0, targets[row]) for row in rows]
        for back in range(1, length + 1):
            wanted += [(row, 1 + length - back, histories[row][-back]) for row in rows if back <= len(histories[row])]
        place_of: dict[str, int] = {}
        for row, column, item_id in wanted:
            number = (
                place_of.setdefault(item_id, len(place_of)) if len(place_of) < size * sides else place_of.get(item_id)
            )
            if number is None:
                left_out += 1
                continue
            at, side = number % size, number // size
            places[first + at][side] = item_id
            members[row, column] = (at - (row - first)) * sides + side
    return Layout(places, members, left_out)


def sequence_keys(
    sequences: Sequence[ItemSequence],
    layout: Layout,
    features: Sequence[Sequence[ItemFeatures]],
    same: SameContent,
    *,
    length: int,
    seen: int,
) -> dict[str, np.ndarray]:
    """Keys that exclude false negatives: the `Batch` fields item_keys, text_keys, valid and seen_keys.

    Two sequences of one user count as the same query, so that the target of one is not a negative of the other.

    Args:
        sequences: B sequences.
        layout: their places.
        features: B lists of S features, of the items in these places.
        same: the items with equal content, which have the key of the first one.
        length: L.
        seen: number of latest items that a user has seen, in addition to the L of the history; W is the sum of both.
    """
    user_keys = [item_key(f"user:{sequence.user_id}") for sequence in sequences]
    flat = [item for row in features for item in row]
    sides = len(features[0])
    targets = [flat[row * sides + place] for row, place in enumerate(layout.members[:, 0])]
    known = np.zeros((len(sequences), length + seen), np.uint64)
    for row, sequence in enumerate(sequences):
        shown = sequence.item_ids[-length:]
        others = [item for item in (*sequence.item_ids, *sequence.seen_ids) if item not in shown]
        latest = [*shown, *dict.fromkeys(reversed(others))][: length + seen]
        known[row, : len(latest)] = np.array([item_key(item_id) for item_id in latest], np.uint64)

    def both(of_targets: list[int]) -> np.ndarray:
        return np.stack([as_halves(user_keys), as_halves(of_targets)], axis=1)

    return {
        "item_keys": both([target.item_key for target in targets]),
        "text_keys": both([target.text_key for target in targets]),
        "valid": np.array([[True, target.valid] for target in targets]),
        "seen_keys": as_halves(same.of_keys(known.reshape(-1))).reshape(len(sequences), -1, 2),
    }
