"""Windows of histories: chooses the targets of each user, and draws items from those before a target.

Axis letters: W windows, C candidates (all windows' entries before their targets, one window after the other).
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from sail_jax.logs.sequences.histories import Histories, md5_key
from sail_jax.logs.sequences.item_lists import ranges

_CANDIDATES = 1 << 20  # most candidates processed at a time


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
        """Yields consecutive chunks of the windows, each with a bounded number of candidates."""
        ends = np.cumsum(self.target - self.begin)
        first = 0
        while first < len(self):
            before = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + _CANDIDATES, "right")))
            yield Windows(self.target[first:last], self.begin[first:last])
            first = last

    def candidates(self) -> tuple[np.ndarray, np.ndarray]:
        """([C] the window of each candidate, [C] its entry), sorted by window and then by entry."""
        window = np.repeat(np.arange(len(self)), self.target - self.begin)
        return window, ranges(self.begin, self.target)


def train_windows(histories: Histories, cut: int, *, history: int, windows: int, stride: int) -> Windows:
    """Chooses each user's train targets: the last entry up to the cut, and each `stride`-th before it.

    Args:
        histories: the histories.
        cut: the last second of the train split.
        history: most entries before a target.
        windows: most targets of a user.
        stride: entries from one target to the next.

    Returns:
        The windows. A user's latest target is included even if nothing precedes it, so that it can be counted.
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
    """Chooses each user's test target: the latest entry, if it is after the cut.

    Args and returns as for `train_windows`.
    """
    last = histories.starts[1:] - 1
    target = last[histories.time[last] > cut]
    return Windows(target, np.maximum(histories.starts[histories.user[target]], target - history))


def draw_keys(seed: int, histories: Histories, windows: Windows, window: np.ndarray, entry: np.ndarray) -> np.ndarray:
    """Draws random numbers for candidates; they depend only on seed, user, target and item.

    Args:
        seed: of the draw.
        histories: the histories.
        windows: the windows.
        window: [C].
        entry: [C].

    Returns:
        [C] uint64.
    """
    users, items = histories.users[histories.user[windows.target]], histories.items[histories.item]
    texts = (f"{seed}\t{users[w]}\t{items[windows.target[w]]}\t{items[e]}" for w, e in zip(window, entry, strict=True))
    return np.fromiter(map(md5_key, texts), np.uint64, len(window))


def proportional_ranks(window: np.ndarray, cluster: np.ndarray, kept: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Ranks the kept candidates of each window in proportion to the window's clusters.

    For every n, the first n of a window follow the shares of its clusters, by the method of Sainte-Lague: the r-th item
    of a cluster (from 0) has the priority share / (r + 1/2). Ties, and the order within a cluster, follow `draw`.

    Args:
        window: [C] ascending.
        cluster: [C] int64; its shares are counted over all candidates of the window, kept or not.
        kept: [C] bool.
        draw: [C] uint64 random numbers.

    Returns:
        [C] float64; lower comes first, and among equals the lower `draw`.
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
    """Picks the kept candidates of each window with the lowest priority.

    Args:
        window: [C] ascending.
        kept: [C] bool.
        count: most candidates picked of a window.
        priority: keys [C], the most important first; the lowest are picked.

    Returns:
        Indices of the picked candidates, ascending.
    """
    places = np.flatnonzero(kept)
    order = places[np.lexsort([*(key[places] for key in reversed(priority)), window[places]])]
    of = window[order]
    rank = np.arange(len(of)) - np.searchsorted(of, of)
    return np.sort(order[rank < count])
