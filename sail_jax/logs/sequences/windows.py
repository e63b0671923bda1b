"""Windows of histories: which items are targets, what stands before them, and how a few of these are drawn.

Axis letters: W windows, C candidates (all windows' entries before their targets, one window after the other).
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from sail_jax.logs.sequences.histories import Histories
from sail_jax.logs.sequences.item_lists import ranges

_CANDIDATES = 1 << 20  # that are worked on at a time


@dataclasses.dataclass(frozen=True)
class Windows:
    """Targets, each with the range of its history.

    Attributes:
        target: [W] int64, the entry that is the target.
        begin: [W] int64; the history is the entries begin to target - 1.
    """

    target: np.ndarray
    begin: np.ndarray

    def __len__(self) -> int:
        return len(self.target)

    def chunks(self) -> Iterator["Windows"]:
        """The windows some at a time, so that their candidates are not too many."""
        ends = np.cumsum(self.target - self.begin)
        first = 0
        while first < len(self):
            before = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + _CANDIDATES, "right")))
            yield Windows(self.target[first:last], self.begin[first:last])
            first = last

    def candidates(self) -> tuple[np.ndarray, np.ndarray]:
        """([C] the window of each candidate, [C] its entry), in the order of the windows and of the histories."""
        window = np.repeat(np.arange(len(self)), self.target - self.begin)
        return window, ranges(self.begin, self.target)


def train_windows(histories: Histories, cut: int, *, history: int, windows: int, stride: int) -> Windows:
    """The train targets of each user: the last entry up to the cut, and those a multiple of `stride` before it.

    Args:
        histories: the histories.
        cut: the last second of the train split.
        history: entries before a target, at most.
        windows: targets of a user, at most.
        stride: entries from one target to the next.

    Returns:
        The windows. A user's latest target is there even where nothing stands before it, so that it can be counted.
    """
    before = np.concatenate([[0], np.cumsum(histories.time <= cut)])
    begins = histories.starts[:-1]
    last = begins + before[histories.starts[1:]] - before[begins] - 1
    places = last[:, None] - np.arange(windows) * stride
    wanted = places > begins[:, None]
    wanted[:, 0] = last >= begins
    target = places[wanted]
    return Windows(target, np.maximum(histories.starts[histories.user[target]], target - history))


def test_windows(histories: Histories, cut: int, *, history: int) -> Windows:
    """The test target of each user: the latest entry, where it lies after the cut; what stands before it is its history.

    Args and returns as for `train_windows`.
    """
    last = histories.starts[1:] - 1
    target = last[histories.time[last] > cut]
    return Windows(target, np.maximum(histories.starts[histories.user[target]], target - history))


def draw_keys(seed: int, histories: Histories, windows: Windows, window: np.ndarray, entry: np.ndarray) -> np.ndarray:
    """Random numbers of candidates, that depend on the seed, the user, the target and the item alone.

    Args:
        seed: of the draw.
        histories: the histories.
        windows: the windows.
        window: [C].
        entry: [C].

    Returns:
        [C] uint64.
    """
    target = windows.target
    of_window = _mix(
        _mix(histories.user_keys[histories.user[target]] + np.uint64(seed)) ^ _item_keys(histories, target)
    )
    return _mix(of_window[window] ^ _item_keys(histories, entry))


def _item_keys(histories: Histories, entry: np.ndarray) -> np.ndarray:
    return histories.item_keys[histories.item[entry]]


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def proportional_ranks(window: np.ndarray, cluster: np.ndarray, kept: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Ranks the kept candidates of each window so that the first n of them follow the window's clusters, for every n.

    The seats go to the clusters by the method of Sainte-Lague: the r-th item of a cluster (from 0) has the priority
    share / (r + 1/2). Which items of a cluster come first, and which of two clusters with equal priority, is drawn.

    Args:
        window: [C] ascending.
        cluster: [C] int64; its shares are counted over all candidates of the window, kept or not.
        kept: [C] bool.
        draw: [C] uint64 random numbers.

    Returns:
        [C] float64, the lower the earlier; among equals the lower `draw` comes first.
    """
    groups, group, counts = np.unique(np.stack([window, cluster]), axis=1, return_inverse=True, return_counts=True)
    del groups
    group = group.reshape(-1)
    order = np.lexsort((draw, ~kept, group))
    firsts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rank = np.empty(len(window), np.int64)
    rank[order] = np.arange(len(window)) - firsts[group[order]]
    return (rank + 0.5) / counts[group]


def first_of_each(window: np.ndarray, kept: np.ndarray, count: int, *priority: np.ndarray) -> np.ndarray:
    """Picks some of the kept candidates of each window.

    Args:
        window: [C] ascending.
        kept: [C] bool.
        count: candidates of a window that are picked, at most.
        priority: keys [C], the first of them the most important; the lowest are picked.

    Returns:
        Places of the candidates that are picked, ascending.
    """
    places = np.flatnonzero(kept)
    order = places[np.lexsort([*(key[places] for key in reversed(priority)), window[places]])]
    of = window[order]
    rank = np.arange(len(of)) - np.searchsorted(of, of)
    return np.sort(order[rank < count])
