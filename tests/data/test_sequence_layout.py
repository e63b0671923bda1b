"""Every distinct item of a group has one place, and every sequence finds its items there."""

import numpy as np
import pytest

from sail_jax.batch import NO_MEMBER
from sail_jax.data.sequence_layout import lay_out


def read_back(layout, groups):
    """The ids that the members of each row point at."""
    size, sides = len(layout.places) // groups, len(layout.places[0])
    found = []
    for row, members in enumerate(layout.members):
        first = row - row % size
        flat = [item for places in layout.places[first : first + size] for item in places]
        found.append([None if m == NO_MEMBER else flat[m + (row - first) * sides] for m in members])
    return found


@pytest.mark.parametrize("groups", [1, 2])
def test_sequences_find_their_items(groups):
    histories = [["a", "b", "c"], ["b"], ["c", "a", "b", "d", "e"], ["t1", "a", "c", "d"]]
    targets = ["t0", "t1", "t0", "a"]
    layout = lay_out(histories, targets, groups=groups, length=4, sides=5)
    assert layout.left_out == 0
    assert read_back(layout, groups) == [
        ["t0", None, "a", "b", "c"],
        ["t1", None, None, None, "b"],
        ["t0", "a", "b", "d", "e"],
        ["a", "t1", "a", "c", "d"],
    ]
    for group in np.array_split(np.array(layout.places, object), groups):
        there = [item for item in group.ravel() if item is not None]
        assert len(there) == len(set(there))


def test_what_does_not_fit_is_the_oldest():
    layout = lay_out([["a", "b", "c"], ["d", "e", "c"]], ["s", "t"], groups=1, length=3, sides=2)
    assert layout.left_out == 3
    assert read_back(layout, 1) == [["s", None, "b", "c"], ["t", None, None, "c"]]


def test_places_are_spread_over_the_rows():
    layout = lay_out([["a"], ["a"], ["a"], ["a"]], ["s", "t", "u", "v"], groups=1, length=1, sides=2)
    assert [row[0] for row in layout.places] == ["s", "t", "u", "v"]
    assert [row[1] for row in layout.places] == ["a", None, None, None]
