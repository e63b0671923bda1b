"""Conditions on columns of a log, against the same comparisons in plain Python."""

import datetime
import operator

import polars as pl
import pytest

from sail_jax.errors import SailError
from sail_jax.logs.columns import whole_seconds
from sail_jax.logs.flags import Condition, parse_condition

RATINGS = [0.5, 3.5, 4.0, 4.5, 5.0, None, float("nan")]
SIGNS = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


def holds(flag, values, dtype=None):
    frame = pl.DataFrame({"rating": pl.Series(values, dtype=dtype, strict=False)}).lazy()
    condition = parse_condition(flag, "config.logs.events.flags")
    return frame.select(condition.expression(frame.collect_schema()["rating"])).collect()["rating"].to_list()


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("dtype", [pl.Float64, pl.Float32, pl.String], ids=str)
def test_numbers_compare_as_numbers_whatever_the_format(sign, dtype):
    known = [value is not None and value == value for value in RATINGS]
    expected = [ok and SIGNS[sign](value, 4) for ok, value in zip(known, RATINGS, strict=True)]
    written = [None if v is None else str(v) for v in RATINGS] if dtype == pl.String else RATINGS
    assert holds(f"rating{sign}4", written, dtype) == expected


def test_text_is_not_compared_letter_by_letter_with_a_number():
    assert holds("rating>=4", ["10", " 4 ", "3", "four", "", None]) == [True, True, False, False, False, False]
    assert holds("rating >= -1.5e0", [-2, -1, 0]) == [False, True, True]
    assert holds("rating>0", [True, False, None], pl.Boolean) == [True, False, False]


def test_text_equals_text():
    events = ["like", "view", " like", None]
    assert holds("rating==like", events) == [True, False, True, False]
    assert holds("rating != 'like'", events) == [False, True, False, False]
    assert holds("rating==like", events, pl.Categorical) == [True, False, True, False]
    assert holds('rating=="4"', ["4", "4.0"]) == [True, False]  # a number in quotes is a text
    assert holds("rating=='4'", [4, 5]) == [True, False]


def test_a_column_is_no_condition():
    assert parse_condition("like", "s") is None
    assert parse_condition("a>=b", "s", columns=["a>=b"]) is None
    assert parse_condition(" rating >= 4 ", "s") == Condition("rating", ">=", 4.0, "s")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("rating=>4", "is not a condition"),
        ("rating=4", "is not a condition"),
        ("rating>=", "is not a condition"),
        (">=4", "is not a condition"),
        ("1<rating<5", "is not a condition"),
        ("rating>=good", "compares with a text"),
        ("rating>'4'", "compares with a text"),
        ("rating>=nan", "compares with a text"),
    ],
)
def test_malformed_conditions_name_the_setting_and_the_form(flag, message):
    with pytest.raises(SailError, match=message) as raised:
        parse_condition(flag, "config.logs.events.flags")
    assert str(raised.value).startswith("config.logs.events.flags")


def test_columns_of_other_types_are_refused():
    for values in ([[4]], [datetime.date(2024, 1, 1)]):
        with pytest.raises(SailError, match="cannot be compared with 4"):
            holds("rating>=4", values)


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 1000), ("us", 1_000_000)])
def test_times_become_whole_seconds(unit, factor):
    last = factor - 1  # the last tick of a second
    times = [1_583_378_629 * factor + last, -1, 0, None]
    for dtype in (pl.Int64, pl.Float64):
        frame = pl.DataFrame({"t": pl.Series(times, dtype=dtype)})
        assert frame.select(whole_seconds(pl.col("t"), unit))["t"].to_list() == [1_583_378_629, -1, 0, None]
