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
from sail_jax.logs.addresses import Address, inside, is_read_here, read_here
from sail_jax.logs.columns import TEST_TIME
from sail_jax.logs.conversion import canonical_columns, columns_of, required_columns, time_check
from sail_jax.logs.log_files import VECTOR_SUFFIXES, by_schema, check_cells, files_of, readable_rows, scan_files

# In the order in which they give the cut.
LOGS = ("events", "searches", "live", "hashtags", "catalogue")


def has_log(config: Config, name: str) -> bool:
    """Whether the settings name a log ("events", "searches", "live", "hashtags", "catalogue")."""
    return bool(getattr(config.logs, name).path)


def log_paths(config: Config, source: Path | Address) -> list[Path]:
    """Returns the paths of this machine of all logs and vectors that the settings name, there or not."""
    return [path for paths in _named(config, source).values() for path in paths]


def passed_over_beside(config: Config, source: Path | Address) -> list[str]:
    """Returns a line for each folder of a log or of vectors, on what is not read of it, if anything is."""
    lines = [
        passed_over(path, files_of(path, "", suffixes))
        for suffixes, paths in _named(config, source).items()
        for path in paths
        if path.is_dir()
    ]
    return list(filter(None, lines))


def separators_said(config: Config, source: Path | Address) -> list[str]:
    """Returns a line for each log in CSV or TSV, on what is taken to separate its cells."""
    paths = _named(config, source)[TABLE_SUFFIXES]
    for path in paths:
        fetch(path)
    lines = [assumed_separators(str(path), files_of(path, "")) for path in paths if path.exists()]
    return list(filter(None, lines))


def check_present(config: Config, source: Path | Address, names: Collection[str]) -> None:
    """Checks that several logs are there, so that all that are missing are told at once.

    Args:
        config: the experiment.
        source: the folder or the address to which the paths of `config.logs` are relative; what lies at addresses is
            passed over.
        names: the logs; also "dense_features" and "id_embeddings". Those without a path are passed over.

    Raises:
        SailError: several are missing. One alone is told by what reads it.
    """
    logs = config.logs
    paths = {f"config.logs.{name}.path": getattr(logs, name).path for name in LOGS if name in names}
    if "dense_features" in names:
        paths["config.logs.dense_features"] = logs.dense_features
    if "id_embeddings" in names:
        paths |= {f"config.logs.id_embeddings.{name}": path for name, path in logs.id_embeddings.items()}
    placed = {setting: inside(source, path) for setting, path in paths.items() if path}
    placed = {setting: path for setting, path in placed.items() if isinstance(path, Path)}
    for path in placed.values():
        fetch(path)
    missing = {setting: path for setting, path in placed.items() if not path.exists()}
    if len(missing) > 1:
        unset = " ".join(f"--{setting}=''" for setting in missing)
        raise SailError(
            f"There is no {', no '.join(map(str, missing.values()))}. Name them in the config, or give what you do not "
            f"have no path: {unset}"
        )


def _named(config: Config, source: Path | Address) -> dict[tuple[str, ...], list[Path]]:
    """Suffixes of files -> the paths of this machine that the settings name: of logs, and of vectors."""
    logs = [inside(source, path) for name in LOGS if (path := getattr(config.logs, name).path)]
    named = [config.logs.dense_features, *config.logs.id_embeddings.values()]
    vectors = [where for path in named if path and is_read_here(where := inside(source, path))]
    here = [path for path in logs if isinstance(path, Path)]
    return {TABLE_SUFFIXES: here, VECTOR_SUFFIXES: [read_here(where) for where in vectors]}


def scan_events(config: Config, source: Path | Address) -> pl.LazyFrame:
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
    return _select(config, source, "events")


def scan_results(config: Config, source: Path | Address) -> pl.LazyFrame:
    """Scans the search log: the results shown for each query.

    Columns: user, query, item (String), time (Int64 seconds), clicked (Boolean). If `config.logs.searches.clicked` is
    empty, every row is a click. Args and errors as for `scan_events`.
    """
    return _select(config, source, "searches")


def scan_live(config: Config, source: Path | Address) -> pl.LazyFrame:
    """Scans the live log: visits of live streams.

    Columns: user, item (String), time (Int64 seconds), seconds (Float32). Args and errors as for `scan_events`.
    """
    return _select(config, source, "live")


def scan_hashtags(config: Config, source: Path | Address) -> pl.LazyFrame:
    """Scans the hashtag log: hashtags submitted for items.

    Columns: item, hashtag (String), time (Int64 seconds). Args and errors as for `scan_events`.
    """
    return _select(config, source, "hashtags")


def scan_items(config: Config, source: Path | Address) -> pl.LazyFrame:
    """Scans the item catalogue.

    Returns:
        item (String), time (Int64 seconds, null if unknown), labels (List[String], empty if there are none), summary
        (String, null if there is none). Args and errors as for `scan_events`.
    """
    return _select(config, source, "catalogue")


def check_split(config: Config) -> None:
    """Checks that events are not split by a column while other logs need a cut in time, or by users too.

    Raises:
        SailError: they are.
    """
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


def check_rows(config: Config, source: Path | Address, names: Collection[str]) -> None:
    """Checks that the rows of logs have as many cells as the header; arguments as of `check_times`.

    Raises:
        SailError: one has not, or is no row.
    """
    for name in names:
        for file in _parts(config, source, name) if has_log(config, name) else ():
            check_cells(file)


def check_times(config: Config, source: Path | Address, names: Collection[str]) -> None:
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
            check = time_check(config, name, columns_of(config, name, str(files[0]), schema), schema)
            found = scan_files(files, schema).select(**check.facts)
            with readable_rows(source):
                found = found.collect(engine="streaming").row(0, named=True)
            check.require(found, str(files[0] if len(files) == 1 else files[0].parent))


def count_rows(config: Config, source: Path | Address, name: str) -> int:
    """Counts the rows of a log, including those that its scan drops."""
    scans = [scan_files(*part).select(pl.len()) for part in by_schema(_parts(config, source, name))]
    with readable_rows(source):
        return int(pl.concat(scans).sum().collect(engine="streaming").item())


def cut_time(config: Config, source: Path | Address) -> int:
    """The last second of the train split; later events belong to the test split.

    With `config.logs.events.split`, it lies between the times that `scan_events` gives to the rows of the two.

    The time span is that of the first log that is configured, in the order events, searches, live, hashtags, catalogue.
    The cut is first + floor((last - first) * (1 - config.logs.test_share)).

    Returns:
        Seconds; 0 if the log has no rows.

    Raises:
        SailError: no log is configured.
    """
    return cut_of(config, lambda name: time_span(config, source, name))


def cut_of(config: Config, span: Callable[[str], tuple[int | None, int | None]]) -> int:
    """As `cut_time`, with the earliest and the latest time of a log by a function of its name."""
    if has_log(config, "events") and config.logs.events.split:
        return TEST_TIME
    names = [name for name in LOGS if has_log(config, name)]
    if not names:
        raise SailError("config.logs names no log: set config.logs.events.path or the path of another log.")
    for name in names:
        first, last = span(name)
        if first is not None:
            return first + int((last - first) * (1 - config.logs.test_share))
    return 0


def time_span(config: Config, source: Path | Address, name: str) -> tuple[int | None, int | None]:
    """Returns the earliest and the latest time of a log, in seconds; None where it has no rows."""
    times = _select(config, source, name).select(first=pl.col("time").min(), last=pl.col("time").max())
    with readable_rows(source):
        return times.collect(engine="streaming").row(0)


def _select(config: Config, source: Path | Address, name: str) -> pl.LazyFrame:
    """The canonical frame of a log, without the rows that have a null in a required column."""
    if name == "events":
        check_split(config)
    scans = []
    for files, schema in by_schema(_parts(config, source, name)):
        columns = canonical_columns(config, name, columns_of(config, name, str(files[0]), schema))
        scans.append(scan_files(files, schema).select(**columns).drop_nulls(required_columns(name, columns)))
    return pl.concat(scans)


def _parts(config: Config, source: Path | Address, name: str) -> list[Path]:
    path, setting = getattr(config.logs, name).path, f"config.logs.{name}.path"
    if not path:
        raise SailError(f"{setting} is empty: name the log, relative to the source folder.")
    return files_of(Path(source) / path, setting)
