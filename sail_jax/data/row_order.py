"""The order in which training reads the rows of a table: from the number of an example to its row.

Each order is a function of a seed and the number alone, so that a resumed run goes on exactly, and hosts and worker
processes agree. None keeps a number for each row in memory.

- All rows alike: each row once an epoch, in a pseudo-random order of the whole table.
- By row groups (`GroupOrder`): each row once an epoch; so many row groups at a time are read and shuffled together.
- By weight (`WeightedOrder`): each example is a draw of a row with replacement, in proportion to its weight.
"""

import functools
from typing import Protocol

import grain
import numpy as np

from sail_jax.data.row_groups import WEIGHT_FIELD, RowGroupTable
from sail_jax.errors import SailError

# Separate the draws of orders from others with the same seed.
_OF_EPOCH, _OF_WINDOW, _OF_DRAWS = 0x0E90C4, 0x0F1D0, 0xD4A35
# Cumulative weights that are kept, in bytes, and the least number of row groups.
_KEPT_BYTES, _KEPT_GROUPS = 64 << 20, 32
# Row groups drawn in vain after which the statistics of the weights must be wrong.
_IN_VAIN = 1_000_000


class RowOrder(Protocol):
    """The rows of a table by the numbers of examples, which count on over epochs."""

    def __getitem__(self, number: int) -> int:
        """The row of an example."""


def row_order(table: RowGroupTable, seed: int, *, groups: int, by_weight: bool) -> RowOrder:
    """Returns the order of a table's rows.

    Args:
        table: the table.
        seed: of the order.
        groups: row groups that are shuffled together; 0 shuffles all rows alike.
        by_weight: whether rows are drawn in proportion to the column `weight`.

    Raises:
        SailError: `groups` row groups are more than the table keeps, or the weights cannot be used.
    """
    if groups > table.cached:
        raise SailError(
            f"Of {table.path}, {table.cached} row groups are kept in memory, and shuffle_groups is {groups}: lower it "
            f"to {table.cached}, or write smaller row groups, such as of 4,096 rows."
        )
    if by_weight:
        return WeightedOrder(table, seed, groups)
    if groups:
        return GroupOrder(table.groups.sizes, seed, groups)
    return grain.MapDataset.range(len(table)).shuffle(seed=seed).repeat()


class GroupOrder:
    """Each row once an epoch: row groups in a random order, the rows of a few shuffled together.

    Memory is at most 64 bytes for each row group, and 8 bytes for each row of two windows. It may be pickled, and used
    by several threads.

    Args:
        sizes: [G] rows of each row group.
        seed: of the order.
        groups: row groups that are shuffled together.
    """

    def __init__(self, sizes: np.ndarray, seed: int, groups: int) -> None:
        self._sizes, self._seed, self._together = np.asarray(sizes, np.int64), seed, groups
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._rows = int(self._sizes.sum())
        self._epoch = functools.lru_cache(2)(self._make_epoch)
        self._window = functools.lru_cache(2)(self._make_window)

    def __reduce__(self):
        return GroupOrder, (self._sizes, self._seed, self._together)

    def __getitem__(self, number: int) -> int:
        epoch, place = divmod(number, self._rows)
        order, ends, windows = self._epoch(epoch)
        window = int(windows.searchsorted(place, "right"))
        begin = int(windows[window - 1]) if window else 0
        place = begin + int(self._window(epoch, window, int(windows[window]) - begin)[place - begin])
        at = int(ends.searchsorted(place, "right"))
        return int(self._starts[order[at]] + place - (ends[at] - self._sizes[order[at]]))

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The row groups in the order of an epoch; the rows up to the end of each, and up to that of each window."""
        order = np.random.default_rng([self._seed, _OF_EPOCH, epoch]).permutation(len(self._sizes)).astype(np.int32)
        ends = np.cumsum(self._sizes[order])
        last = np.minimum(np.arange(1, -(-len(ends) // self._together) + 1) * self._together, len(ends)) - 1
        return order, ends, ends[last]

    def _make_window(self, epoch: int, window: int, rows: int) -> np.ndarray:
        """The shuffled places of the rows of a window."""
        return np.random.default_rng([self._seed, _OF_WINDOW, epoch, window]).permutation(rows)


class WeightedOrder:
    """Draws rows in proportion to their weights, with replacement.

    A row group is proposed in proportion to its rows times its largest weight, which is in the files' metadata, and
    taken with the probability of its sum of weights over that bound; then a row of it is drawn by its weight. So each
    row is drawn with its exact share, and only weights of proposed row groups are read. On average, (sum of the bounds)
    / (sum of the weights) row groups are proposed for one that is taken.

    An "epoch" is as many draws as there are rows. With `groups`, so many row groups are drawn for each stretch of as
    many examples as they have rows on average, and the rows of the stretch are drawn from these alone: few row groups
    are read, and the share of a row over all stretches is the same. Memory is 24 bytes for each row group, 64 MB of
    weights, and 8 bytes for each row of two stretches. It may be pickled, and used by several threads.

    Args:
        table: the table.
        seed: of the draws.
        groups: row groups of a stretch; 0 draws each example from all.

    Raises:
        SailError: there is no column `weight`, its statistics are missing, or a weight is negative or none.
    """

    def __init__(self, table: RowGroupTable, seed: int, groups: int) -> None:
        self._table, self._seed, self._together = table, seed, groups
        sizes = table.groups.sizes
        self._starts, self._bounds = table.groups.ends - sizes, sizes * largest_weights(table)
        self._totals = np.cumsum(self._bounds)
        self._stretch = max(1, groups * len(table) // max(1, len(sizes)))
        kept = max(_KEPT_GROUPS, _KEPT_BYTES // (8 * int(sizes.max(initial=1))))
        self._weights = functools.lru_cache(kept)(self._cumulative)
        self._rows = functools.lru_cache(2)(self._draw)

    def __reduce__(self):
        return WeightedOrder, (self._table, self._seed, self._together)

    def __getitem__(self, number: int) -> int:
        stretch, place = divmod(number, self._stretch)
        return int(self._rows(stretch)[place])

    def _draw(self, stretch: int) -> np.ndarray:
        """[draws] int64 the rows of a stretch."""
        rng = np.random.default_rng([self._seed, _OF_DRAWS, stretch])
        groups = [self._draw_group(rng) for _ in range(max(1, self._together))]
        chosen, points = rng.integers(len(groups), size=self._stretch), rng.random(self._stretch)
        rows = np.empty(self._stretch, np.int64)
        for number, group in enumerate(groups):
            of_group = chosen == number
            rows[of_group] = self._starts[group] + _at(self._weights(group), points[of_group])
        return rows

    def _draw_group(self, rng: np.random.Generator) -> int:
        for _ in range(_IN_VAIN):
            group = int(_at(self._totals, rng.random()))
            if rng.random() * self._bounds[group] < self._weights(group)[-1]:
                return group
        raise SailError(
            f"The largest weights in the metadata of {self._table.path} are far above those of its rows: of "
            f"{_IN_VAIN:,} row groups none was drawn. Write the table again."
        )

    def _cumulative(self, group: int) -> np.ndarray:
        """[rows] float64 the sums of the weights of a row group up to each row."""
        column = self._table.column(group, WEIGHT_FIELD.name)
        weights = column.to_numpy(zero_copy_only=False).astype(np.float64)
        sums = np.cumsum(weights)
        if not (np.isfinite(weights).all() and (weights >= 0).all() and sums[-1] <= self._bounds[group] * (1 + 1e-9)):
            raise SailError(
                f"{self._table.part_of(group)} has a weight that is negative, no number, or above the largest one of "
                "its metadata. Write the weights as finite numbers of at least 0, with statistics."
            )
        return sums


def largest_weights(table: RowGroupTable) -> np.ndarray:
    """[G] float64 the largest weight in each row group of a table, from the metadata of its files.

    Raises:
        SailError: there is no column `weight`, its statistics are missing, a weight is negative or none, or all are 0.
    """
    name = WEIGHT_FIELD.name
    if not table.has(name):
        raise SailError(
            f"{table.path} has no column 'weight', by which its rows are to be drawn: write it with "
            "--config.builders.weight of `pairs`, or set by_weight=False."
        )
    largest = np.zeros(len(table.groups.ends))
    for number, of_group in enumerate(table.statistics(name)):
        if of_group is None or not of_group.has_min_max or of_group.null_count:
            problem = "rows without a weight" if of_group is not None and of_group.null_count else "no statistics of it"
        elif not 0 <= of_group.min <= of_group.max < np.inf:
            problem = f"the weights {of_group.min} to {of_group.max}"
        else:
            largest[number] = of_group.max
            continue
        raise SailError(
            f"{table.part_of(number)}: the column 'weight' of the row group {table.groups.group[number]} has "
            f"{problem}. Write finite numbers of at least 0, with statistics."
        )
    if not largest.any():
        raise SailError(f"{table.path} gives all rows the weight 0, so that none can be drawn. Set by_weight=False.")
    return largest


def _at(sums: np.ndarray, point: float | np.ndarray) -> np.ndarray:
    """The places that points of [0, 1) have among cumulative sums; a place without a share of its own has none."""
    last = sums.searchsorted(sums[-1], "left")  # a point next to 1 may be rounded up to it
    return np.minimum(sums.searchsorted(np.asarray(point) * sums[-1], "right"), last)
