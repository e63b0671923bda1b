"""What becomes of the columns of a log, as polars expressions: here and on the machines of Spark."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import polars as pl

from sail_jax.config import Config
from sail_jax.errors import SailError
from sail_jax.logs.columns import PER_SECOND, Columns, in_range

# What may be null in a canonical row.
_OPTIONAL = {"events": ("watch_share",), "catalogue": ("time", "summary")}
# Log -> the column of texts that no row may lack in their plain form.
TEXTS = {"searches": "query", "hashtags": "hashtag"}
# The share of the rows of a log whose time may be no time.
_BAD_TIMES = 0.01
# The end of the year 9999, and what no time of a log lies beyond, in seconds.
_LAST_TIME, _PLAUSIBLE_TIME = 253_402_300_799, 7_258_118_400
# One character of a script without spaces, or a run of letters and digits.
_WORD = r"\p{Han}|\p{Hiragana}|\p{Katakana}|[\p{L}\p{M}\p{N}&&[^\p{Han}\p{Hiragana}\p{Katakana}]]+"


def canonical_columns(config: Config, name: str, log: Columns) -> dict[str, pl.Expr]:
    """Returns canonical column -> expression on the columns of a log.

    Args:
        config: the experiment.
        name: the log.
        log: its columns.

    Raises:
        SailError: a column is missing or of another type.
    """
    return _COLUMNS[name](config, log)


def required_columns(name: str, columns: Collection[str]) -> list[str]:
    """Returns those canonical columns of a log in which no row may have a null."""
    return [column for column in columns if column not in _OPTIONAL.get(name, ())]


def plain_columns(name: str) -> dict[str, pl.Expr]:
    """Returns canonical column -> expression on canonical columns, texts and words in plain form.

    Texts are normalised here, because NFKC and the classes of Unicode letters are not the same in all engines. Rows
    that have nothing left in the column of `TEXTS` are of no use.
    """
    if name == "searches":
        return {"query": plain_text(pl.col("query"))}
    if name == "hashtags":
        return {"hashtag": plain_text(pl.col("hashtag").str.strip_chars().str.strip_chars_start("#＃"))}
    if name == "catalogue":
        labels = pl.col("labels").list.eval(pl.element().str.strip_chars().replace("", None).drop_nulls())
        return {"labels": labels, "words": words_of(pl.col("summary"))}
    return {}


def columns_of(config: Config, name: str, file: str, schema: pl.Schema) -> Columns:
    """Returns the columns of a log in files with this schema; `file` names them in messages."""
    return Columns(getattr(config.logs, name), f"config.logs.{name}", file, schema, config.logs.time_unit)


def _events(config: Config, log: Columns) -> dict[str, pl.Expr]:
    settings = config.logs.events
    return {
        "user": log.text("user"),
        "item": log.text("item"),
        "time": log.split_time("time", "split") if settings.split else log.time("time"),
        "positives": log.count_true("flags", settings.flags),
        "watch_share": log.number("watch_share") if settings.watch_share else pl.lit(None, pl.Float32),
    }


def _searches(config: Config, log: Columns) -> dict[str, pl.Expr]:
    clicked = log.true("clicked") if config.logs.searches.clicked else pl.lit(True)
    texts = {name: log.text(name) for name in ("user", "query", "item")}
    return texts | {"time": log.time("time"), "clicked": clicked}


def _live(_: Config, log: Columns) -> dict[str, pl.Expr]:
    seconds = log.number("seconds").fill_null(0)
    return {"user": log.text("user"), "item": log.text("item"), "time": log.time("time"), "seconds": seconds}


def _hashtags(_: Config, log: Columns) -> dict[str, pl.Expr]:
    return {"item": log.text("item"), "hashtag": log.text("hashtag"), "time": log.time("time")}


def _items(config: Config, log: Columns) -> dict[str, pl.Expr]:
    settings, separator = config.logs.catalogue, config.ingest.source.separator
    return {
        "item": log.text("item"),
        "time": log.time("time") if settings.time else pl.lit(None, pl.Int64),
        "labels": log.texts("labels", separator) if settings.labels else pl.lit([], pl.List(pl.String)),
        "summary": log.text("summary") if settings.summary else pl.lit(None, pl.String),
    }


_COLUMNS: dict[str, Callable[[Config, Columns], dict[str, pl.Expr]]] = {
    "events": _events,
    "searches": _searches,
    "live": _live,
    "hashtags": _hashtags,
    "catalogue": _items,
}


def plain_text(text: pl.Expr) -> pl.Expr:
    """Normalises a text: lower case, NFKC, single spaces, stripped; null if nothing is left."""
    plain = text.str.normalize("NFKC").str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()
    return pl.when(plain != "").then(plain)


def words_of(text: pl.Expr) -> pl.Expr:
    """Returns the words of a text (List[String]) in lower case and NFKC; none for null."""
    return text.str.normalize("NFKC").str.to_lowercase().str.extract_all(_WORD).fill_null([])


@dataclasses.dataclass(frozen=True)
class TimeCheck:
    """Looks for times that are none, or lie beyond the year 9999, in some files of a log.

    Attributes:
        facts: aggregates of all rows: rows, bad (rows whose time is none), first (the first of these values, as text),
            last (the latest time, in seconds) and shown (its value, as text).
    """

    facts: dict[str, pl.Expr]
    _config: Config
    _name: str
    _column: str

    def require(self, found: dict[str, Any], where: str) -> None:
        """Raises SailError if the facts of the rows say that they cannot be used; `where` is the log."""
        where = f"{where}: column {self._column!r}"
        if found["bad"] > _BAD_TIMES * found["rows"]:
            raise SailError(
                f"{where} has {found['bad']:,} values of {found['rows']:,} that are no times; the first is "
                f"{found['first']!r:.200}. Write seconds, or dates such as 2024-01-31 or 2024-01-31T12:00:00Z, or "
                f"change config.logs.{self._name}.time."
            )
        settings = getattr(self._config.logs, self._name)
        ordered = self._column != settings.time or (self._name == "events" and settings.split)
        if not ordered and (found["last"] or 0) > _LAST_TIME:
            remedy = _unit_of(found["last"], self._config)
            raise SailError(f"{where} reaches beyond the year 9999 with {found['shown']!r:.200}. {remedy}")


def time_check(config: Config, name: str, log: Columns, schema: pl.Schema) -> TimeCheck:
    """Returns the check of the times of a log; arguments and errors as of `canonical_columns`."""
    settings = getattr(config.logs, name)
    column = settings.time if settings.time in schema else settings.time.removeprefix("-")
    time, dtype = log.time("time"), schema[column]
    given = pl.col(column).str.strip_chars() if dtype == pl.String else pl.col(column)
    bad = time.is_null() & given.is_not_null()
    bad = bad & (given != "") if dtype == pl.String else bad
    facts = {
        "rows": pl.len(),
        "bad": bad.sum(),
        "first": in_range(given.filter(bad).first(), dtype).cast(pl.String),
        "last": time.max(),
        "shown": in_range(given.get(time.arg_max()), dtype).cast(pl.String),
    }
    return TimeCheck(facts, config, name, column)


def _unit_of(last: int, config: Config) -> str:
    """Returns what to do about times whose latest is `last`, in seconds by the unit of the settings."""
    per_second = PER_SECOND[config.logs.time_unit]
    fits = [unit for unit, of in PER_SECOND.items() if last * per_second // of <= _PLAUSIBLE_TIME]
    return f"Set config.logs.time_unit={fits[0]!r}." if fits else "Mend it there."
