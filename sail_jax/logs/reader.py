"""Opens a recommender's logs as lazy frames with canonical column names.

`config.logs` maps tables and columns (see `sail_jax.config.logs`). This module reads only schemas: the frames are
polars queries for the streaming engine. Rows without a user, an item, a query, a hashtag or a time are dropped, because
no rule can use them; `count_rows` counts all rows, so that callers can report how many were dropped.
"""

from collections.abc import Callable, Collection
from pathlib import Path

import polars as pl

from sail_jax.buckets import fetch
from sail_jax.config import Config
from sail_jax.data.ingest.sources import TABLE_SUFFIXES, assumed_separators, passed_over
from sail_jax.errors import SailError
from sail_jax.logs.columns import PER_SECOND, TEST_TIME, Columns, in_range
from sail_jax.logs.log_files import VECTOR_SUFFIXES, by_schema, check_cells, files_of, readable_rows, scan_files

# Their groups of settings have these names.
LOGS = ("events", "searches", "live", "hashtags", "catalogue")
# The share of the rows of a log whose time may be no time.
_BAD_TIMES = 0.01
# The end of the year 9999, and what no time of a log lies beyond, in seconds.
_LAST_TIME, _PLAUSIBLE_TIME = 253_402_300_799, 7_258_118_400


def has_log(config: Config, name: str) -> bool:
    """Whether the settings name a log ("events", "searches", "live", "hashtags", "catalogue")."""
    return bool(getattr(config.logs, name).path)


def log_paths(config: Config, source: Path) -> list[Path]:
    """Returns the paths of all logs and vectors that the settings name, whether they are there or not."""
    return [path for paths in _named(config, source).values() for path in paths]


def passed_over_beside(config: Config, source: Path) -> list[str]:
    """Returns a line for each folder of a log or of vectors, on what is not read of it, if anything is."""
    lines = [
        passed_over(path, files_of(path, "", suffixes))
        for suffixes, paths in _named(config, source).items()
        for path in paths
        if path.is_dir()
    ]
    return list(filter(None, lines))


def separators_said(config: Config, source: Path) -> list[str]:
    """Returns a line for each log in CSV or TSV, on what is taken to separate its cells."""
    paths = _named(config, source)[TABLE_SUFFIXES]
    for path in paths:
        fetch(path)
    lines = [assumed_separators(str(path), files_of(path, "")) for path in paths if path.exists()]
    return list(filter(None, lines))


def check_present(config: Config, source: Path, names: Collection[str]) -> None:
    """Checks that several logs are there, so that all that are missing are told at once.

    Args:
        config: the experiment.
        source: the folder to which the paths of `config.logs` are relative.
        names: the logs; also "dense_features" and "id_embeddings". Those without a path are passed over.

    Raises:
        SailError: some are missing; of one alone, it says more than of several.
    """
    logs = config.logs
    paths = {f"config.logs.{name}.path": getattr(logs, name).path for name in LOGS if name in names}
    if "dense_features" in names:
        paths["config.logs.dense_features"] = logs.dense_features
    if "id_embeddings" in names:
        paths |= {f"config.logs.id_embeddings.{name}": path for name, path in logs.id_embeddings.items()}
    placed = {setting: Path(source) / path for setting, path in paths.items() if path}
    for path in placed.values():
        fetch(path)
    missing = {setting: path for setting, path in placed.items() if not path.exists()}
    if len(missing) > 1:
        unset = " ".join(f"--{setting}=''" for setting in missing)
        raise SailError(
            f"There is no {', no '.join(map(str, missing.values()))}. Name them in the config, or give what you do not "
            f"have no path: {unset}"
        )
    for setting, path in missing.items():
        files_of(path, setting)


def _named(config: Config, source: Path) -> dict[tuple[str, ...], list[Path]]:
    """Suffixes of files -> the paths that the settings name: of logs, and of vectors."""
    logs = config.logs
    tables = [getattr(logs, name).path for name in LOGS]
    vectors = [logs.dense_features, *logs.id_embeddings.values()]
    named = {TABLE_SUFFIXES: tables, VECTOR_SUFFIXES: vectors}
    return {suffixes: [Path(source) / path for path in paths if path] for suffixes, paths in named.items()}


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

    def build(log: Columns) -> dict[str, pl.Expr]:
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

    def build(log: Columns) -> dict[str, pl.Expr]:
        clicked = log.true("clicked") if config.logs.searches.clicked else pl.lit(True)
        texts = {name: log.text(name) for name in ("user", "query", "item")}
        return texts | {"time": log.time("time"), "clicked": clicked}

    return _select(config, source, "searches", build)


def scan_live(config: Config, source: Path) -> pl.LazyFrame:
    """Scans the live log: visits of live streams.

    Columns: user, item (String), time (Int64 seconds), seconds (Float32). Args and errors as for `scan_events`.
    """

    def build(log: Columns) -> dict[str, pl.Expr]:
        seconds = log.number("seconds").fill_null(0)
        return {"user": log.text("user"), "item": log.text("item"), "time": log.time("time"), "seconds": seconds}

    return _select(config, source, "live", build)


def scan_hashtags(config: Config, source: Path) -> pl.LazyFrame:
    """Scans the hashtag log: hashtags submitted for items.

    Columns: item, hashtag (String), time (Int64 seconds). Args and errors as for `scan_events`.
    """

    def build(log: Columns) -> dict[str, pl.Expr]:
        return {"item": log.text("item"), "hashtag": log.text("hashtag"), "time": log.time("time")}

    return _select(config, source, "hashtags", build)


def scan_items(config: Config, source: Path) -> pl.LazyFrame:
    """Scans the item catalogue.

    Returns:
        item (String), time (Int64 seconds, null if unknown), labels (List[String], empty if there are none), summary
        (String, null if there is none). Args and errors as for `scan_events`.
    """
    settings, separator = config.logs.catalogue, config.ingest.source.separator

    def build(log: Columns) -> dict[str, pl.Expr]:
        return {
            "item": log.text("item"),
            "time": log.time("time") if settings.time else pl.lit(None, pl.Int64),
            "labels": log.texts("labels", separator) if settings.labels else pl.lit([], pl.List(pl.String)),
            "summary": log.text("summary") if settings.summary else pl.lit(None, pl.String),
        }

    return _select(config, source, "catalogue", build, optional=("time", "summary"))


def _check_split(config: Config) -> None:
    """Raises SailError if events are split by a column while other logs would need a cut in time, or by users too."""
    if config.logs.events.split and config.logs.split != "time":
        raise SailError(
            f"config.logs.split is {config.logs.split!r}, and config.logs.events.split splits the events by a column. "
            "Set config.logs.split='time', or config.logs.events.split=''."
        )
    others = [name for name in ("searches", "live", "hashtags") if has_log(config, name)]
    others += ["catalogue"] if has_log(config, "catalogue") and config.logs.catalogue.time else []
    if config.logs.events.split and others:
        key = "time" if others[0] == "catalogue" else "path"
        raise SailError(
            f"config.logs.events.split splits the events by a column, and config.logs.{others[0]} can only be cut in "
            f"time: set config.logs.{others[0]}.{key} to '', or config.logs.events.split."
        )


def check_rows(config: Config, source: Path, names: Collection[str]) -> None:
    """Checks that the rows of logs have as many cells as the header; arguments as of `check_times`.

    Raises:
        SailError: one has not, or is no row.
    """
    for name in names:
        for file in _parts(config, source, name) if has_log(config, name) else ():
            check_cells(file)


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
        for files, schema in by_schema(_parts(config, source, name)):
            log = Columns(settings, f"config.logs.{name}", str(files[0]), schema, config.logs.time_unit)
            column = settings.time if settings.time in schema else settings.time.removeprefix("-")
            time, dtype = log.time("time"), schema[column]
            given = pl.col(column).str.strip_chars() if dtype == pl.String else pl.col(column)
            bad = time.is_null() & given.is_not_null()
            bad = bad & (given != "") if dtype == pl.String else bad
            found = scan_files(files, schema).select(
                rows=pl.len(),
                bad=bad.sum(),
                first=in_range(given.filter(bad).first(), dtype).cast(pl.String),
                last=time.max(),
                shown=in_range(given.get(time.arg_max()), dtype).cast(pl.String),
            )
            with readable_rows(source):
                found = found.collect(engine="streaming").row(0, named=True)
            where = f"{files[0] if len(files) == 1 else files[0].parent}: column {column!r}"
            if found["bad"] > _BAD_TIMES * found["rows"]:
                raise SailError(
                    f"{where} has {found['bad']:,} values of {found['rows']:,} that are no times; the first is "
                    f"{found['first']!r:.200}. Write seconds, or dates such as 2024-01-31 or 2024-01-31T12:00:00Z, or "
                    f"change config.logs.{name}.time."
                )
            ordered = column != settings.time or (name == "events" and settings.split)
            if not ordered and (found["last"] or 0) > _LAST_TIME:
                remedy = _unit_of(found["last"], config)
                raise SailError(f"{where} reaches beyond the year 9999 with {found['shown']!r:.200}. {remedy}")


def _unit_of(last: int, config: Config) -> str:
    """Returns what to do about times whose latest is `last`, in seconds by the unit of the settings."""
    per_second = PER_SECOND[config.logs.time_unit]
    fits = [unit for unit, of in PER_SECOND.items() if last * per_second // of <= _PLAUSIBLE_TIME]
    return f"Set config.logs.time_unit={fits[0]!r}." if fits else "Mend it there."


def count_rows(config: Config, source: Path, name: str) -> int:
    """Counts the rows of a log, including those that its scan drops."""
    scans = [scan_files(*part).select(pl.len()) for part in by_schema(_parts(config, source, name))]
    with readable_rows(source):
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
        return TEST_TIME
    for name, scan in scans.items():
        if has_log(config, name):
            times = scan(config, source).select(first=pl.col("time").min(), last=pl.col("time").max())
            with readable_rows(source):
                first, last = times.collect(engine="streaming").row(0)
            if first is None:
                continue
            return first + int((last - first) * (1 - config.logs.test_share))
    if not any(has_log(config, name) for name in scans):
        raise SailError("config.logs names no log: set config.logs.events.path or the path of another log.")
    return 0


def _select(
    config: Config,
    source: Path,
    name: str,
    build: Callable[[Columns], dict[str, pl.Expr]],
    optional: tuple[str, ...] = (),
) -> pl.LazyFrame:
    """The canonical frame of a log, without the rows that have a null in a required column."""
    scans = []
    for files, schema in by_schema(_parts(config, source, name)):
        columns = Columns(
            getattr(config.logs, name), f"config.logs.{name}", str(files[0]), schema, config.logs.time_unit
        )
        built = build(columns)
        scans.append(
            scan_files(files, schema).select(**built).drop_nulls([column for column in built if column not in optional])
        )
    return pl.concat(scans)


def _parts(config: Config, source: Path, name: str) -> list[Path]:
    path, setting = getattr(config.logs, name).path, f"config.logs.{name}.path"
    if not path:
        raise SailError(f"{setting} is empty: name the log, relative to the source folder.")
    return files_of(Path(source) / path, setting)
