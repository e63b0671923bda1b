"""Pairs each row of a group with the few rows that follow it, in time linear in the group's size."""

import polars as pl

CANDIDATES = {"a": pl.UInt32, "b": pl.UInt32, "test": pl.Boolean, "n": pl.UInt32}


def neighbour_pairs(rows: pl.DataFrame, group: list[str], neighbours: int, window: int | None = None) -> pl.DataFrame:
    """Pairs every row with at most `neighbours` following rows of its group, and counts groups per pair.

    Args:
        rows: item (UInt32), test (Boolean), the columns of the group and, with a window, time (Int64); sorted by group
            and, within a group, in the order in which rows follow each other. An item occurs once in a group.
        group: the columns of the group.
        neighbours: how many following rows are paired.
        window: largest difference of the times; None for no limit.

    Returns:
        a < b (UInt32), test, n (UInt32, how many groups have the pair). Rows of different splits make no pair.
    """
    found = []
    for step in range(1, neighbours + 1):
        follows = [pl.col(name) == pl.col(name).shift(-step) for name in [*group, "test"]]
        if window is not None:
            follows.append(pl.col("time").shift(-step) - pl.col("time") <= window)
        other = pl.col("item").shift(-step)
        pairs = (
            rows.lazy()
            .select("item", "test", other=other, follows=pl.all_horizontal(follows))
            .filter(pl.col("follows") & (pl.col("item") != pl.col("other")))
            .select(a=pl.min_horizontal("item", "other"), b=pl.max_horizontal("item", "other"), test="test")
            .collect()
        )
        if not len(pairs):
            break  # no group and no window contains rows further apart
        found.append(pairs)
    if not found:
        return pl.DataFrame(schema=CANDIDATES)
    return pl.concat(found).group_by("a", "b", "test").agg(n=pl.len().cast(pl.UInt32))
