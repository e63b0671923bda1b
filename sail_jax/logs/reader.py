"""Opens a recommender's logs as lazy frames with canonical column names.

`config.logs` maps tables and columns (see `sail_jax.config.logs`). This module reads only schemas: the frames are
polars queries for the streaming engine. Rows without a user, an item, a query, a hashtag or a time are dropped, because
no rule can use them; `count_rows` counts all rows, so that callers can report how many were dropped.

The parts of a log may differ in column types (a user id as a number in one and as a string in another). Types of text
formats are not guessed.
"""

import contextlib
import difflib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sail_jax.config import Config
from sail_jax.data.ingest.sources import SEPARATORS, TABLE_SUFFIXES, separator_of
from sail_jax.data.parquet_files import missing_column
from sail_jax.errors import SailError
from sail_jax.logs.flags import parse_condition

_TRUE = ("true", "1", "1.0", "yes", "t", "y")
_VECTOR_BATCH = 8192
# Dates in text: ISO 8601, of which "%+" is the form with an offset or Z. What stands first in 01/02/2024 is not known.
_DATES = (
    *("%+", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M", "%Y-%m-%d"),
    *("%Y/%m/%d %H:%M:%S%.f", "%Y/%m/%d"),
)
# The share of the rows of a log whose time may be no time.
_BAD_TIMES = 0.01
# The end of the year 9999, and what no time of a log lies beyond, in seconds.
_LAST_TIME, _PLAUSIBLE_TIME = 253_402_300_799, 7_258_118_400
# Where a column splits the events, the times of test rows are raised above all those of train rows. Times are whole
# seconds of up to 34,000 years.
_TEST_TIME = 1 << 40


def has_log(config: Config, name: str) -> bool:
    """Whether the settings name a log ("events", "searches", "live", "hashtags", "catalogue")."""
    return bool(getattr(config.logs, name).path)


def log_paths(config: Config, source: Path) -> list[Path]:
    """Returns the paths of all logs and vectors that the settings name, whether they are there or not."""
    logs = config.logs
    named = [log.path for log in (logs.events, logs.searches, logs.live, logs.hashtags, logs.catalogue)]
    return [Path(source) / path for path in (*named, logs.dense_features, *logs.id_embeddings.values()) if path]


def scan_events(config: Config, source: Path) -> pl.LazyFrame:
    """Scans the event log: impressions and plays.

    Args:
        config: the experiment.
        source: the folder to which the paths of `config.logs` are relative.

    Returns:
        user and item (String), time (Int64 seconds), positives (UInt8, how many of the flags are true; 1 where
        `config.logs.events.flags` is empty), watch_share (Float32, null if unknown). With `config.logs.events.split`,
        times keep only their order, and those of test rows come after the cut.

    Raises:
        SailError: the log or a column is missing, a file cannot be read, or a split is set beside other logs.
    """
    settings = config.logs.events
    _check_split(config)

    def build(log: _Columns) -> dict[str, pl.Expr]:
        watched = log.number("watch_share") if settings.watch_share else pl.lit(None, pl.Float32)
        return {
            "user": log.text("user"),
            "item": log.text("item"),
            "time": log.split_time("time", "split") if settings.split else log.time("time"),
            "positives": log.count_true("flags", settings.flags),
            "watch_share": watched,
        }

    return _select(config, source, "events", build, optional=("watch_share",))


def scan_results(config: Config, source: Path) -> pl.LazyFrame:
    """Scans the search log: the results shown for each query.

    Columns: user, query, item (String), time (Int64 seconds), clicked (Boolean). If `config.logs.searches.clicked` is
    empty, every row is a click. Args and errors as for `scan_events`.
    """

    def build(log: _Columns) -> dict[str, pl.Expr]:
        clicked = log.true("clicked") if config.logs.searches.clicked else pl.lit(True)
        texts = {name: log.text(name) for name in ("user", "query", "item")}
        return texts | {"time": log.time("time"), "clicked": clicked}

    return _select(config, source, "searches", build)


def scan_live(config: Config, source: Path) -> pl.LazyFrame:
    """Scans the live log: visits of live streams.

    Columns: user, item (String), time (Int64 seconds), seconds (Float32). Args and errors as for `scan_events`.
    """

    def build(log: _Columns) -> dict[str, pl.Expr]:
        seconds = log.number("seconds").fill_null(0)
        return {"user": log.text("user"), "item": log.text("item"), "time": log.time("time"), "seconds": seconds}

    return _select(config, source, "live", build)


def scan_hashtags(config: Config, source: Path) -> pl.LazyFrame:
    """Scans the hashtag log: hashtags submitted for items.

    Columns: item, hashtag (String), time (Int64 seconds). Args and errors as for `scan_events`.
    """

    def build(log: _Columns) -> dict[str, pl.Expr]:
        return {"item": log.text("item"), "hashtag": log.text("hashtag"), "time": log.time("time")}

    return _select(config, source, "hashtags", build)


def scan_items(config: Config, source: Path) -> pl.LazyFrame:
    """Scans the item catalogue.

    Returns:
        item (String), time (Int64 seconds, null if unknown), labels (List[String], empty if there are none), summary
        (String, null if there is none). Args and errors as for `scan_events`.
    """
    settings, separator = config.logs.catalogue, config.ingest.source.separator

    def build(log: _Columns) -> dict[str, pl.Expr]:
        return {
            "item": log.text("item"),
            "time": log.time("time") if settings.time else pl.lit(None, pl.Int64),
            "labels": log.texts("labels", separator) if settings.labels else pl.lit([], pl.List(pl.String)),
            "summary": log.text("summary") if settings.summary else pl.lit(None, pl.String),
        }

    return _select(config, source, "catalogue", build, optional=("time", "summary"))


def _check_split(config: Config) -> None:
    """Raises SailError if events are split by a column while other logs would need a cut in time."""
    others = [name for name in ("searches", "live", "hashtags") if has_log(config, name)]
    others += ["catalogue"] if has_log(config, "catalogue") and config.logs.catalogue.time else []
    if config.logs.events.split and others:
        key = "time" if others[0] == "catalogue" else "path"
        raise SailError(
            f"config.logs.events.split splits the events by a column, and config.logs.{others[0]} can only be cut in "
            f"time: set config.logs.{others[0]}.{key} to '', or config.logs.events.split."
        )


def check_times(config: Config, source: Path, names: Collection[str]) -> None:
    """Checks the times of logs, which else would drop their rows, or move the cut.

    Args:
        config: the experiment.
        source: the folder to which the paths of `config.logs` are relative.
        names: the logs; those without a path or a time are passed over.

    Raises:
        SailError: more than one row in a hundred has a time that is none, or times lie beyond the year 9999. The error
            has the first such value.
    """
    for name in names:
        settings = getattr(config.logs, name)
        if not has_log(config, name) or not settings.time:
            continue
        for files, schema in _by_schema(_parts(config, source, name)):
            log = _Columns(settings, f"config.logs.{name}", str(files[0]), schema, config.logs.time_unit)
            column = settings.time if settings.time in schema else settings.time.removeprefix("-")
            given, time = pl.col(column).cast(pl.String).str.strip_chars(), log.time("time")
            bad = time.is_null() & given.is_not_null() & (given != "")
            found = _scan(files).select(
                rows=pl.len(),
                bad=bad.sum(),
                first=given.filter(bad).first(),
                last=time.max(),
                shown=given.get(time.arg_max()),
            )
            found = found.collect(engine="streaming").row(0, named=True)
            where = f"{files[0] if len(files) == 1 else files[0].parent}: column {column!r}"
            if found["bad"] > _BAD_TIMES * found["rows"]:
                raise SailError(
                    f"{where} has {found['bad']:,} values of {found['rows']:,} that are no times; the first is "
                    f"{found['first']!r}. Write seconds, or dates such as 2024-01-31 or 2024-01-31T12:00:00Z, or "
                    f"change config.logs.{name}.time."
                )
            ordered = column != settings.time or (name == "events" and settings.split)
            if not ordered and (found["last"] or 0) > _LAST_TIME:
                raise SailError(
                    f"{where} reaches beyond the year 9999 with {found['shown']!r}. {_unit_of(found['last'], config)}"
                )


def _unit_of(last: int, config: Config) -> str:
    """Returns what to do about times whose latest is `last`, in seconds by the unit of the settings."""
    per_second = _PER_SECOND[config.logs.time_unit]
    fits = [unit for unit, of in _PER_SECOND.items() if last * per_second // of <= _PLAUSIBLE_TIME]
    return f"Set config.logs.time_unit={fits[0]!r}." if fits else "Mend it there."


def count_rows(config: Config, source: Path, name: str) -> int:
    """Counts the rows of a log, including those that its scan drops."""
    scans = [_scan(files).select(pl.len()) for files, _ in _by_schema(_parts(config, source, name))]
    return int(pl.concat(scans).sum().collect(engine="streaming").item())


def cut_time(config: Config, source: Path) -> int:
    """The last second of the train split; later events belong to the test split.

    With `config.logs.events.split`, it lies between the times that `scan_events` gives to the rows of the two.

    The time span is that of the first log that is configured, in the order events, searches, live, hashtags, catalogue.
    The cut is first + floor((last - first) * (1 - config.logs.test_share)).

    Returns:
        Seconds; 0 if the log has no rows.

    Raises:
        SailError: no log is configured.
    """
    scans = {
        "events": scan_events,
        "searches": scan_results,
        "live": scan_live,
        "hashtags": scan_hashtags,
        "catalogue": scan_items,
    }
    if has_log(config, "events") and config.logs.events.split:
        return _TEST_TIME
    for name, scan in scans.items():
        if has_log(config, name):
            times = scan(config, source).select(first=pl.col("time").min(), last=pl.col("time").max())
            first, last = times.collect(engine="streaming").row(0)
            if first is None:
                continue
            return first + int((last - first) * (1 - config.logs.test_share))
    if not any(has_log(config, name) for name in scans):
        raise SailError("config.logs names no log: set config.logs.events.path or the path of another log.")
    return 0


def scan_vector_ids(path: Path, setting: str = "") -> pl.LazyFrame:
    """Scans the ids of a Parquet file of vectors, or of a folder of such files.

    Returns:
        item (String). Args and errors as for `read_vectors`.
    """
    scans = []
    for part in _files(path, setting, suffixes=(".parquet",)):
        with _readable(part):
            key = _vector_key(part, pq.read_schema(part).names, setting)
        scans.append(pl.scan_parquet(part, glob=False).select(item=pl.col(key).cast(pl.String)).drop_nulls())
    return pl.concat(scans)


def read_vectors(path: Path, setting: str = "") -> Iterator[tuple[list[str], np.ndarray]]:
    """Streams a Parquet file of vectors, or a folder of such files in the order of their names.

    Args:
        path: the file or folder, with columns `item_id` (or `id`) and `vector`.
        setting: the setting that holds the path, for messages.

    Yields:
        Ids, and [n, D] float32, one batch at a time. Rows without a vector are skipped.

    Raises:
        SailError: the path is missing, a column is missing, or the vectors differ in width.
    """
    width = 0
    for part in _files(path, setting, suffixes=(".parquet",)):
        with _readable(part), pq.ParquetFile(part) as file:
            key = _vector_key(part, file.schema_arrow.names, setting)
            for batch in file.iter_batches(_VECTOR_BATCH, columns=[key, "vector"]):
                batch = batch.filter(pc.and_(pc.is_valid(batch["vector"]), pc.is_valid(batch[key])))
                if not len(batch):
                    continue
                vectors = _matrix(batch["vector"], str(part))
                width = width or vectors.shape[1]
                if vectors.shape[1] != width:
                    raise SailError(f"{part}: a vector has {vectors.shape[1]} numbers, and the first has {width}.")
                yield batch[key].cast(pa.string()).to_pylist(), vectors


def _vector_key(part: Path, names: list[str], setting: str) -> str:
    key = next((name for name in ("item_id", "id") if name in names), None)
    if key is None or "vector" not in names:
        raise SailError(
            f"{missing_column(str(part), 'vector' if key else 'item_id', names)} Change {setting}.".rstrip()
        )
    return key


def _matrix(column: pa.Array, file: str) -> np.ndarray:
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or _is_fixed(column)):
        raise SailError(f"{file}: `vector` is {column.type}; write it as a list of numbers.")
    flat = column.flatten().cast(pa.float32())
    if len(flat) % len(column) or flat.null_count:
        raise SailError(f"{file}: vectors have gaps or differ in width; write all with the same number of numbers.")
    if not _is_fixed(column) and pc.count_distinct(pc.list_value_length(column)).as_py() > 1:
        raise SailError(f"{file}: vectors differ in width; write all with the same number of numbers.")
    return flat.to_numpy(zero_copy_only=False).reshape(len(column), -1)


def _is_fixed(column: pa.Array) -> bool:
    return pa.types.is_fixed_size_list(column.type)


class _Columns:
    """Expressions with canonical types for the columns that the settings of a log name."""

    def __init__(self, settings: Any, setting: str, file: str, schema: pl.Schema, time_unit: str):
        self._settings, self._setting, self._file, self._schema = settings, setting, file, schema
        self._time_unit = time_unit

    def text(self, key: str) -> pl.Expr:
        column, dtype = self._column(key), self._schema[getattr(self._settings, key)]
        if dtype.is_float():  # the number 7.0 is the id "7", as in the tables of items
            whole = column.cast(pl.Int64, strict=False)
            column = pl.when(whole == column).then(whole.cast(pl.String)).otherwise(column.cast(pl.String))
        return column.cast(pl.String).str.strip_chars()

    def number(self, key: str) -> pl.Expr:
        return self._column(key).cast(pl.Float32, strict=False)

    def true(self, key: str) -> pl.Expr:
        return self._true(getattr(self._settings, key), key)

    def count_true(self, key: str, columns: tuple[str, ...]) -> pl.Expr:
        if not columns:
            return pl.lit(1, pl.UInt8)
        return pl.sum_horizontal([self._true(column, key).cast(pl.UInt8) for column in columns]).cast(pl.UInt8)

    def split_time(self, key: str, split: str) -> pl.Expr:
        side, time = self.text(split).str.strip_chars(), self.time(key).clip(-_TEST_TIME, _TEST_TIME)
        late = pl.when(side == "test").then(2 * _TEST_TIME + 1).when(side == "train").then(0)
        return time + late

    def time(self, key: str) -> pl.Expr:
        name = getattr(self._settings, key)
        if name.startswith("-") and name not in self._schema:
            return -self._time(name[1:], key)
        return self._time(name, key)

    def _time(self, name: str, key: str) -> pl.Expr:
        column, dtype = self._require(name, key), self._schema[name]
        if isinstance(dtype, pl.Datetime) or dtype == pl.Date:
            return column.cast(pl.Datetime("us")).dt.epoch("s").cast(pl.Int64)
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
        column, dtype = self._column(key), self._schema[getattr(self._settings, key)]
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


def _select(
    config: Config,
    source: Path,
    name: str,
    build: Callable[[_Columns], dict[str, pl.Expr]],
    optional: tuple[str, ...] = (),
) -> pl.LazyFrame:
    """The canonical frame of a log, without the rows that have a null in a required column."""
    scans = []
    for files, schema in _by_schema(_parts(config, source, name)):
        columns = _Columns(
            getattr(config.logs, name), f"config.logs.{name}", str(files[0]), schema, config.logs.time_unit
        )
        built = build(columns)
        scans.append(_scan(files).select(**built).drop_nulls([column for column in built if column not in optional]))
    return pl.concat(scans)


def _parts(config: Config, source: Path, name: str) -> list[Path]:
    path, setting = getattr(config.logs, name).path, f"config.logs.{name}.path"
    if not path:
        raise SailError(f"{setting} is empty: name the log, relative to the source folder.")
    return _files(Path(source) / path, setting)


def _files(path: Path, setting: str, suffixes: tuple[str, ...] = TABLE_SUFFIXES) -> list[Path]:
    """The file, or the parts of the folder sorted by name."""
    files = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.suffix.lower() in suffixes)
    found = {file.suffix.lower() for file in files}
    change = f"Change {setting}, or set it to '' if there is none." if setting else ""
    if not files:
        near = difflib.get_close_matches(
            path.name, [entry.name for entry in path.parent.glob("*") if entry != path], n=3
        )
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        held = f"There is no {path}" if not path.exists() else f"{path} holds no {', '.join(suffixes)}"
        raise SailError(f"{held}.{hint} {change}".rstrip())
    if len(found) > 1 or not found <= set(suffixes):
        raise SailError(
            f"{path} is {' and '.join(sorted(found))}; write it as one of {', '.join(suffixes)}. {change}".rstrip()
        )
    return files


@contextlib.contextmanager
def readable_rows(source: Path) -> Iterator[None]:
    """Turns what the engine finds wrong with the rows of logs into an error for the user."""
    try:
        yield
    except pl.exceptions.ComputeError as error:
        reason = str(error).splitlines()[0]
        raise SailError(
            f"A log in {source} has rows that cannot be read ({reason}). Put cells that hold separators or line breaks "
            "in double quotes, and close every quote."
        ) from error


def _by_schema(files: list[Path]) -> list[tuple[list[Path], pl.Schema]]:
    """Groups parts with the same columns and types, so that one scan reads each group."""
    groups: dict[tuple, tuple[list[Path], pl.Schema]] = {}
    for file in files:
        with _readable(file):
            schema = _scan([file]).collect_schema()
        separator = separator_of(file) if file.suffix.lower() in SEPARATORS else ""
        groups.setdefault((separator, *schema.items()), ([], schema))[0].append(file)
    return list(groups.values())


def _scan(files: list[Path]) -> pl.LazyFrame:
    suffix = files[0].suffix.lower()
    if suffix == ".parquet":
        return pl.scan_parquet(files, glob=False, hive_partitioning=False)
    if suffix == ".jsonl":
        return pl.scan_ndjson(files)
    # Types are not guessed, so that an id such as 007 keeps its zeros.
    return pl.scan_csv(files, separator=separator_of(files[0]), infer_schema=False, glob=False)


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (pl.exceptions.PolarsError, pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        reason = str(error).splitlines()[0]
        raise SailError(
            f"{file} cannot be read ({reason}). It is damaged or in another format: write it again."
        ) from error


_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000}


def whole_seconds(number: pl.Expr, unit: str) -> pl.Expr:
    """Converts a column of numbers to whole seconds (Int64, rounded down).

    Args:
        number: the column, of any numeric type; nulls and values outside of Int64 become null.
        unit: `config.logs.time_unit`: "s", "ms" or "us".
    """
    per_second = _PER_SECOND[unit]
    # Floats are floored before the cast: a cast rounds times before 1970 towards zero.
    return (number // per_second).cast(pl.Int64, strict=False)
