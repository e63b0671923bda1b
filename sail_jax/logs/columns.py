"""Gives the columns of a log canonical types: ids, numbers, flags and times."""

from typing import Any, NoReturn

import polars as pl

from sail_jax.data.parquet_files import missing_column
from sail_jax.errors import SailError
from sail_jax.logs.flags import parse_condition

_TRUE = ("true", "1", "1.0", "yes", "t", "y")
# Dates in text: ISO 8601, of which "%+" is the form with an offset or Z. What stands first in 01/02/2024 is not known.
_DATES = (
    *("%+", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M", "%Y-%m-%d"),
    *("%Y/%m/%d %H:%M:%S%.f", "%Y/%m/%d"),
)
# Where a column splits the events, the times of test rows are raised above all those of train rows. Times are whole
# seconds of up to 34,000 years.
TEST_TIME = 1 << 40
_DAYS = 95_000_000  # up to the year 262,000
PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000}


class Columns:
    """Expressions with canonical types for the columns that the settings of a log name."""

    def __init__(self, settings: Any, setting: str, file: str, schema: pl.Schema, time_unit: str):
        self._settings, self._setting, self._file, self._schema = settings, setting, file, schema
        self._time_unit = time_unit

    def text(self, key: str) -> pl.Expr:
        """Returns a column as text (String): an id, a query."""
        column, dtype = self._column(key), self._schema[getattr(self._settings, key)]
        if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
            self._refuse(key, dtype, "write texts or numbers")
        if dtype.is_temporal():
            column = in_range(column, dtype)
        if dtype.is_float():  # the number 7.0 is the id "7", as in the tables of items
            whole = column.cast(pl.Int64, strict=False)
            column = pl.when(whole == column).then(whole.cast(pl.String)).otherwise(column.cast(pl.String))
        return column.cast(pl.String).str.strip_chars()

    def number(self, key: str) -> pl.Expr:
        """Returns a column as Float32; null for what is no number."""
        dtype = self._schema.get(getattr(self._settings, key))
        if dtype is not None and (dtype.is_nested() or dtype in (pl.Binary, pl.Object)):
            self._refuse(key, dtype, "write numbers")
        return self._column(key).cast(pl.Float32, strict=False)

    def true(self, key: str) -> pl.Expr:
        """Returns whether a column, or a condition, is true (Boolean, never null)."""
        return self._true(getattr(self._settings, key), key)

    def count_true(self, key: str, columns: tuple[str, ...]) -> pl.Expr:
        """Returns how many of some columns and conditions are true (UInt8); 1 without any."""
        if not columns:
            return pl.lit(1, pl.UInt8)
        return pl.sum_horizontal([self._true(column, key).cast(pl.UInt8) for column in columns]).cast(pl.UInt8)

    def split_time(self, key: str, split: str) -> pl.Expr:
        """Returns times in their order, those of the test split after all others; null for other splits."""
        side, time = self.text(split).str.strip_chars(), self.time(key).clip(-TEST_TIME, TEST_TIME)
        late = pl.when(side == "test").then(2 * TEST_TIME + 1).when(side == "train").then(0)
        return time + late

    def time(self, key: str) -> pl.Expr:
        """Returns times in whole seconds (Int64); null for what is no time."""
        name = getattr(self._settings, key)
        if name.startswith("-") and name not in self._schema:
            return -self._time(name[1:], key)
        return self._time(name, key)

    def _time(self, name: str, key: str) -> pl.Expr:
        column, dtype = self._require(name, key), self._schema[name]
        if isinstance(dtype, pl.Datetime) or dtype == pl.Date:
            return in_range(column, dtype).cast(pl.Datetime("us")).dt.epoch("s").cast(pl.Int64)
        if dtype == pl.String:
            # A date, a timestamp, or a number in a text file.
            written = [column.str.strip_chars().str.to_datetime(form, strict=False) for form in _DATES]
            seconds = [whole_seconds(column.str.strip_chars().cast(pl.Float64, strict=False), self._time_unit)]
            return pl.coalesce(seconds + [time.dt.epoch("s").cast(pl.Int64) for time in written])
        if not dtype.is_numeric():
            raise SailError(
                f"{self._file}: column {name!r} is {dtype}; write whole seconds or a "
                f"timestamp, or change {self._setting}.{key}."
            )
        return whole_seconds(column, self._time_unit)

    def texts(self, key: str, separator: str) -> pl.Expr:
        """Returns a column of lists, or of texts with separators, as List[String]; empty for null."""
        column, dtype = self._column(key), self._schema[getattr(self._settings, key)]
        if dtype != pl.String and not (isinstance(dtype, pl.List) and not dtype.inner.is_nested()):
            self._refuse(key, dtype, "write a text or a list of texts")
        if dtype == pl.String:
            column = column.str.split(separator)
        return column.cast(pl.List(pl.String)).fill_null([]).list.drop_nulls()

    def _column(self, key: str) -> pl.Expr:
        return self._require(getattr(self._settings, key), key)

    def _require(self, column: str, key: str) -> pl.Expr:
        if column not in self._schema:
            raise SailError(f"{missing_column(self._file, column, list(self._schema))} Change {self._setting}.{key}.")
        return pl.col(column)

    def _true(self, column: str, key: str) -> pl.Expr:
        condition = parse_condition(column, f"{self._setting}.{key}", self._schema)
        if condition is not None:
            self._require(condition.column, key)
            return condition.expression(self._schema[condition.column])
        values, dtype = self._require(column, key), self._schema[column]
        if dtype == pl.String:
            return values.str.strip_chars().str.to_lowercase().is_in(_TRUE).fill_null(False)
        if dtype != pl.Boolean and not dtype.is_numeric():
            raise SailError(
                f"{self._file}: column {column!r} is {dtype}; write true or false. Change {self._setting}.{key}."
            )
        return values.cast(pl.Boolean).fill_null(False)

    def _refuse(self, key: str, dtype: pl.DataType, remedy: str) -> NoReturn:
        column = getattr(self._settings, key)
        raise SailError(f"{self._file}: column {column!r} is {dtype}; {remedy}, or change {self._setting}.{key}.")


def in_range(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Returns a column whose dates are cut to those that the engine can write."""
    if dtype == pl.Date:
        return column.to_physical().clip(-_DAYS, _DAYS).cast(pl.Date)
    if isinstance(dtype, pl.Datetime) and dtype.time_unit in PER_SECOND:  # those in nanoseconds always are
        most = _DAYS * 86_400 * PER_SECOND[dtype.time_unit]
        return column.to_physical().clip(-most, most).cast(dtype)
    return column


def whole_seconds(number: pl.Expr, unit: str) -> pl.Expr:
    """Converts a column of numbers to whole seconds (Int64, rounded down).

    Args:
        number: the column, of any numeric type; nulls and values outside of Int64 become null.
        unit: `config.logs.time_unit`: "s", "ms" or "us".
    """
    per_second = PER_SECOND[unit]
    # Floats are floored before the cast: a cast rounds times before 1970 towards zero.
    return (number // per_second).cast(pl.Int64, strict=False)
