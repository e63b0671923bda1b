"""Seeded draws inside polars queries, the same whatever the version, the threads and the order of the rows."""

import polars as pl

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def mix(value: pl.Expr, seed: int = 0) -> pl.Expr:
    """A hash of whole numbers: the finaliser of SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number
    generators"), as UInt64.
    """
    x = value.cast(pl.UInt64) + pl.lit((seed + 1) * _GOLDEN & _MASK, pl.UInt64)
    x = (x ^ (x // 2**30)) * pl.lit(0xBF58476D1CE4E5B9, pl.UInt64)
    x = (x ^ (x // 2**27)) * pl.lit(0x94D049BB133111EB, pl.UInt64)
    return x ^ (x // 2**31)


def mix_two(first: pl.Expr, second: pl.Expr, seed: int = 0) -> pl.Expr:
    """A hash of two 32-bit whole numbers in order, as UInt64."""
    return mix(first.cast(pl.UInt64) * pl.lit(2**32, pl.UInt64) + second.cast(pl.UInt64), seed)
