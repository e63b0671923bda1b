"""Seeded hashes in polars queries, the same for all versions, thread counts and row orders."""

import polars as pl

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def hash_one(value: pl.Expr, seed: int = 0) -> pl.Expr:
    """Hashes whole numbers to UInt64.

    This is the finaliser of SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number generators").
    """
    x = value.cast(pl.UInt64) + pl.lit((seed + 1) * _GOLDEN & _MASK, pl.UInt64)
    x = (x ^ (x // 2**30)) * pl.lit(0xBF58476D1CE4E5B9, pl.UInt64)
    x = (x ^ (x // 2**27)) * pl.lit(0x94D049BB133111EB, pl.UInt64)
    return x ^ (x // 2**31)


def hash_two(first: pl.Expr, second: pl.Expr, seed: int = 0) -> pl.Expr:
    """Hashes an ordered pair of 32-bit whole numbers to UInt64."""
    return hash_one(first.cast(pl.UInt64) * pl.lit(2**32, pl.UInt64) + second.cast(pl.UInt64), seed)
