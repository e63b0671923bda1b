"""Times of logs that are numbers, in whole seconds: exports count seconds, milliseconds or microseconds."""

import polars as pl

from sail_jax.log_config import LogsConfig

_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000}


def whole_seconds(number: pl.Expr, logs: LogsConfig) -> pl.Expr:
    """Whole seconds (Int64, rounded down) of a column of numbers.

    Args:
        number: the column, of any numeric type; null, or no number of 64 bits, stays null.
        logs: says what the numbers count.
    """
    per_second = _PER_SECOND[logs.time_unit]
    # Floats are floored as floats: a cast would cut times before 1970 towards zero.
    return (number // per_second).cast(pl.Int64, strict=False)
