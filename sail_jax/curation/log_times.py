"""Times of logs that are numbers, in whole seconds: exports count seconds, milliseconds or microseconds."""

import polars as pl

_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000}


def whole_seconds(number: pl.Expr, unit: str) -> pl.Expr:
    """Whole seconds (Int64, rounded down) of a column of numbers.

    Args:
        number: the column, of any numeric type; null, or no number of 64 bits, stays null.
        unit: `config.logs.time_unit`: "s", "ms" or "us".
    """
    per_second = _PER_SECOND[unit]
    # Floats are floored as floats: a cast would cut times before 1970 towards zero.
    return (number // per_second).cast(pl.Int64, strict=False)
