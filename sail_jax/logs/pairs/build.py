"""Builds pair tables from a recommender's logs: chooses the builders, runs them and writes a summary."""

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ibis

from sail_jax.config import Config
from sail_jax.config.schema import nearest, to_dict
from sail_jax.data.store import ItemStore
from sail_jax.data.tables import SCHEMA, WEIGHTED_SCHEMA
from sail_jax.errors import SailError
from sail_jax.logs.addresses import Address
from sail_jax.logs.canonical import SCANS
from sail_jax.logs.engine import Engine
from sail_jax.logs.engines import open_build, sql_dialect
from sail_jax.logs.finished import Finished, build_identity
from sail_jax.logs.log_files import readable_rows
from sail_jax.logs.log_source import LogSource, open_source
from sail_jax.logs.outputs import Output
from sail_jax.logs.pairs import attributes, consumption, searches, vectors
from sail_jax.logs.pairs.inputs import (
    count_items,
    logs_read,
    open_tables,
    unbound_tables,
    vector_files,
    write_near,
)
from sail_jax.logs.pairs.rules import Made
from sail_jax.logs.pairs.sample_page import sample_page
from sail_jax.logs.reader import has_log
from sail_jax.logs.rules import Logs
from sail_jax.logs.table_progress import table_progress

SUMMARY, SAMPLE_PAGE = "pairs.json", "pairs.html"
_SCRATCH, _FINISHED = ".pairs.scratch", ".pairs.finished.json"
# Builder -> its rule, and what it reads: a log or vectors.
BUILDERS: dict[str, tuple[Callable[[Logs], Made], str]] = {
    "copair": (consumption.copair, "events"),
    "search": (searches.search, "searches"),
    "live": (consumption.live, "live"),
    "summary": (attributes.summary, "catalogue"),
    "hashtag": (attributes.hashtag, "hashtags"),
    "rsdf": (vectors.rsdf, "dense_features"),
    "id": (vectors.id_pairs, "id_embeddings"),
    "q2i_search": (searches.q2i_search, "searches"),
    "q2i_score": (searches.q2i_score, "searches"),
    "cls": (attributes.cls, "catalogue"),
}
# Builder -> the column without which it makes nothing of its log.
_COLUMNS = {"summary": "summary", "cls": "labels"}


def build_pairs(
    config: Config,
    source: Path | Address,
    output: Path | Address,
    only: Sequence[str] = (),
    store: ItemStore | None = None,
    engine: str = "duckdb",
    *,
    strict: bool = True,
) -> dict[str, Any]:
    """Writes a pair table per builder, `pairs.json` with counts and `pairs.html` with samples.

    Tables that the same build finished before it was broken off are kept.

    Args:
        config: the experiment.
        source: the folder to which the paths of `config.logs` are relative; with Spark, it may be an address.
        output: the folder of the tables; with Spark, it may be an address, to which Spark's machines write them as
            folders of parts. Tables and counts of builders that do not run stay as they are.
        only: names of builders; empty for all builders whose log the settings name.
        store: restricts the items, and gives the sample page its pictures; None for all items and no pictures.
        engine: one of `engines.ENGINES`; the tables are the same with each.
        strict: whether a table without a row is an error, once all are written.

    Returns:
        The content of pairs.json.

    Raises:
        SailError: a builder's name, a log, a column or a vector is wrong; no log is configured; or the engine is not
            there, or stops.
    """
    chosen = _choose(config, only)
    with (
        table_progress(len(chosen)) as (show, done),
        open_build(engine, config.logs.engine, output, _SCRATCH) as (opened, out, scratch),
        readable_rows(source),
    ):
        read = LogSource(config, source, opened)
        finished = Finished(out, _FINISHED, build_identity(config, source, store, "builders", read.versions()))
        cut = _checked_cut(config, read, chosen)
        tables = open_tables(config, read, chosen, store, opened, scratch, show)
        logs = Logs(config, cut, tables, opened.keep)
        items = opened.values(count_items(logs, tables.keys() - {"store"}))
        for name, log in chosen.items():
            show(name)
            if not out.has_table(name) or name not in finished.parts:
                if log in SCANS:
                    rows = {"rows_read": read.count_rows(log)}
                else:
                    rows = write_near(logs, read, log, opened, scratch, show)
                show(name)
                made = BUILDERS[name][0](logs)
                counts = rows | _write_table(name, made, rows["rows_read"], opened, out, config.builders.weight)
                finished.add(name, counts | {"settings": to_dict(getattr(config.builders, name))})
            done()
        said = {"passed_over": read.passed_over(), "logs": read.facts(logs_read(config, chosen))}
        counted = {name: finished.parts[name] for name in chosen}
        summary = _summary(config, source, out, opened, cut, items | said, counted)
        out.write_json(SUMMARY, summary)
        finished.remove()
        samples = {name: out.local_part(name) for name in summary["builders"]}
        out.write(SAMPLE_PAGE, sample_page(samples, config.builders.sheet_pairs, store).encode())
    if strict and (empty := [why for name, of in counted.items() if of["rows_read"] and (why := why_empty(name, of))]):
        raise SailError(f"{'; '.join(empty)}. All counts are in {output / SUMMARY}.")
    return summary


def sql_of_builders(
    config: Config, source: Path | Address, only: Sequence[str] = (), engine: str = "duckdb"
) -> dict[str, str]:
    """Returns builder -> its rule as one query, over tables with the columns of `canonical.SCHEMAS`.

    Args:
        config: the experiment.
        source: the folder of the logs, whose times give the cut.
        only: names of builders; empty for all builders whose log the settings name.
        engine: whose SQL it is: "duckdb", "spark", or another dialect that `ibis.to_sql` knows, such as "trino".

    Raises:
        SailError: as by `build_pairs`.
    """
    chosen = _choose(config, only)
    with open_source(config, source, engine) as read:
        logs = Logs(config, _checked_cut(config, read, chosen), unbound_tables(config, chosen), lambda table, _: table)
    return {name: str(ibis.to_sql(BUILDERS[name][0](logs).rows, dialect=sql_dialect(engine))) for name in chosen}


def _checked_cut(config: Config, source: LogSource, chosen: dict[str, str]) -> int:
    names = sorted({"events", *logs_read(config, chosen)})
    source.check(names, names, chosen.values())
    return source.cut()


def _write_table(name: str, made: Made, rows_read: int, engine: Engine, output: Output, weight: str) -> dict[str, int]:
    """Writes the pair table of a rule, with the weights of `config.builders.weight`; returns its counts."""
    found = {key: value for counts in made.counts for key, value in engine.values(counts).items()}
    rows, schema = made.rows, WEIGHTED_SCHEMA if weight else SCHEMA
    if weight:
        # Mutual information and cosines may be below 0, and a weight is not.
        value = rows[made.weights[weight]].cast("float32") if weight in made.weights else ibis.literal(1.0)
        rows = rows.mutate(weight=ibis.greatest(value, 0.0).cast("float32"))
    rows = rows.mutate(split=ibis.ifelse(rows.test, "test", "train"))
    names = [name for name in schema.names if name in rows.columns]
    rows = rows.select(*dict.fromkeys([*names, *made.order]))
    return _dropped(found, rows_read, made.last_rule) | {"rows": output.write_pairs(name, rows, made.order, schema)}


def _dropped(found: dict[str, int], rows_read: int, last_rule: str) -> dict[str, int]:
    """Turns what the rules left, in their order (see `Made.counts`), into what each of them dropped."""
    counts, before = {}, rows_read
    for name, value in found.items():
        if name == "usable" or name.startswith("passed_"):
            rule = "rows_unusable" if name == "usable" else name.removeprefix("passed_")
            counts[f"dropped_{rule}"], before = before - value, value
        else:
            counts[name], before = value, value if name == "candidates" else before
    return counts | {f"dropped_{last_rule}": before - counts["train"] - counts["test"]}


def why_empty(name: str, counts: dict[str, Any]) -> str:
    """Returns what took the rows of a table that has none, as a message; empty for a table with rows."""
    if counts["train"] + counts["test"]:
        return ""
    dropped = {key.removeprefix("dropped_"): of for key, of in counts.items() if key.startswith("dropped_") and of}
    said = ", ".join(f"{key} {of:,}" for key, of in sorted(dropped.items(), key=lambda item: -item[1]))
    rows = f"of {counts['rows_read']:,} rows read " + (f"went {said}" if said else "came no candidate")
    return f"{name}.parquet has no row: {rows}; change config.builders.{name}, or leave it out with --only"


def _choose(config: Config, only: Sequence[str]) -> dict[str, str]:
    """Returns builder -> what it reads, of the builders that run."""
    for name in only:
        if name not in BUILDERS:
            raise SailError(f"There is no builder {name!r}. Did you mean {nearest(name, BUILDERS)}?")
        if lacks := _lacks(config, name):
            raise SailError(f"The builder {name!r} reads {lacks}, which is empty: name it there.")
    if config.builders.weight == "multiplicity" and config.builders.copair.repeat:
        raise SailError(
            "config.builders.weight is 'multiplicity', and config.builders.copair.repeat writes a pair once for each "
            "user too, which would count twice. Set one of them to its default."
        )
    logs = {name: log for name, (_, log) in BUILDERS.items()}
    chosen = {name: log for name, log in logs.items() if (name in only if only else not _lacks(config, name))}
    if not chosen:
        raise SailError("config.logs names no log to build pairs from: set config.logs.events.path or another log.")
    return chosen


def _lacks(config: Config, name: str) -> str:
    """Returns the setting without which a builder has nothing to read; empty if it is set."""
    log = BUILDERS[name][1]
    if not (has_log(config, log) if log in SCANS else vector_files(config, log)):
        return f"config.logs.{log}"
    column = _COLUMNS.get(name)
    return f"config.logs.{log}.{column}" if column and not getattr(getattr(config.logs, log), column) else ""


def _summary(
    config: Config,
    source: Path | Address,
    output: Output,
    engine: Engine,
    cut: int,
    items: dict[str, Any],
    counts: dict[str, dict],
) -> dict[str, Any]:
    before = output.read_json(SUMMARY)
    builders = before.get("builders", {}) if isinstance(before, dict) else {}
    builders = {name: counts.get(name) or builders.get(name) for name in BUILDERS}
    until = datetime.datetime.fromtimestamp(cut, datetime.UTC).isoformat() if abs(cut) < 1 << 37 else ""
    return {
        "source": str(source),
        "engine": {"name": engine.name, "version": engine.version},
        "seed": config.seed,
        "cut": {"test_share": config.logs.test_share, "last_second_of_train": cut, "date": until},
        "weight": config.builders.weight,
        "split": {"by": config.logs.split, "test_users": config.logs.test_users},
        **items,
        "builders": {name: entry for name, entry in builders.items() if entry},
    }
