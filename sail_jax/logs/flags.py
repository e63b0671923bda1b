"""Parses the flags of an event log: a column of true and false, or a condition such as "rating>=4".

`parse_condition` reads an entry of `config.logs.events.flags`; the `Condition` that it returns gives a polars
expression. Conditions also work on text formats, whose columns are strings: cells are parsed as numbers before the
comparison.
"""

import dataclasses
import math
import operator
import re
from collections.abc import Collection

import polars as pl

from sail_jax.errors import SailError

_OPERATORS = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"(?P<column>[^<>=!]+)(?P<sign>[<>=!]+)(?P<value>[^<>=!]*)")
_QUOTES = "\"'"


@dataclasses.dataclass(frozen=True)
class Condition:
    """A comparison of a column with a fixed value.

    Attributes:
        column: the column.
        sign: one of >=, <=, ==, !=, >, <.
        value: a finite number, or a text, which allows only == and !=.
        setting: the setting that holds the condition, for messages.
    """

    column: str
    sign: str
    value: float | str
    setting: str = ""

    def expression(self, dtype: pl.DataType) -> pl.Expr:
        """The condition as a Boolean polars expression.

        It is false for null and NaN, and where a number is compared with a cell that is not a number.

        Args:
            dtype: the type of the column.

        Raises:
            SailError: the column holds neither numbers nor text, or it holds times and the value is a number.
        """
        column = pl.col(self.column)
        comparable = (
            dtype.is_numeric() or dtype == pl.Boolean or isinstance(dtype, (pl.String, pl.Categorical, pl.Enum))
        )
        if not comparable:
            raise SailError(
                f"{self.setting}: column {self.column!r} is {dtype} and cannot be compared with {self.value!r}. "
                "Name a column of numbers or text."
            )
        if isinstance(self.value, str):
            left = column.cast(pl.String).str.strip_chars()
        else:
            text = not (dtype.is_numeric() or dtype == pl.Boolean)
            left = column.cast(pl.String).str.strip_chars() if text else column
            # polars treats NaN as greater than every number.
            left = left.cast(pl.Float64, strict=False).fill_nan(None)
        return _OPERATORS[self.sign](left, pl.lit(self.value)).fill_null(False)


def parse_condition(flag: str, setting: str, columns: Collection[str] = ()) -> Condition | None:
    """Parses a flag into a condition; returns None if the flag is a column name.

    Args:
        flag: a column, or a condition: column, one of >=, <=, ==, !=, >, <, and a number or a text ("rating>=4",
            "event == like", "kind != 'a b'"). A number in quotes is a text.
        setting: the setting that holds the flag, for messages.
        columns: the columns of the log; a flag that is one of them is a column, even if it contains an operator.

    Returns:
        The condition, or None if the flag is a column.

    Raises:
        SailError: the condition is malformed, or compares a text by order.
    """
    if flag in columns or not re.search("[<>=!]", flag):
        return None
    match = _CONDITION.fullmatch(flag)
    sign = match["sign"] if match else ""
    written = match["value"].strip() if match else ""
    if sign not in _OPERATORS or not match["column"].strip() or not written:
        raise SailError(
            f"{setting}: {flag!r} is not a condition. Write a column, one of {', '.join(_OPERATORS)}, and a value, as "
            "in 'rating>=4', or only the name of a column."
        )
    value = _value(written)
    if isinstance(value, str) and sign not in ("==", "!="):
        raise SailError(f"{setting}: {flag!r} compares with a text. Write a number, or use == or !=.")
    return Condition(match["column"].strip(), sign, value, setting)


def _value(written: str) -> float | str:
    if len(written) > 1 and written[0] == written[-1] and written[0] in _QUOTES:
        return written[1:-1]
    try:
        number = float(written)
    except ValueError:
        return written
    return number if math.isfinite(number) else written
