"""Builds tables of sequences from a recommender's logs, with counts of what was dropped."""

from pathlib import Path
from typing import Any

import ibis

from sail_jax.config import Config
from sail_jax.config.schema import to_dict
from sail_jax.data.store import ItemStore
from sail_jax.errors import SailError
from sail_jax.logs.addresses import Address
from sail_jax.logs.canonical import SCHEMAS
from sail_jax.logs.engine import Engine
from sail_jax.logs.engines import open_build, sql_dialect
from sail_jax.logs.finished import Finished, build_identity
from sail_jax.logs.log_files import readable_rows
from sail_jax.logs.log_source import LogSource, open_source
from sail_jax.logs.reader import has_log
from sail_jax.logs.rules import Logs
from sail_jax.logs.sequences.constructions import CONSTRUCTIONS, content_codes
from sail_jax.logs.sequences.content import CLOSE, VECTORS, write_close, write_vectors
from sail_jax.logs.sequences.sequence_rows import (
    candidates_of,
    counts_of,
    event_counts,
    lengths_of,
    rows_of,
    windows_of,
)
from sail_jax.logs.table_progress import table_progress

SUMMARY = "sequences.json"
_SCRATCH, _FINISHED = ".sequences.scratch", ".sequences.finished.json"
# Log -> the columns that constructions read.
_COLUMNS = {"events": ("user", "item", "time", "positives"), "catalogue": ("item", "labels")}


def build_sequences(
    config: Config,
    source: Path | Address,
    output: Path | Address,
    *,
    embeddings: Path | None = None,
    store: ItemStore | None = None,
    engine: str = "duckdb",
) -> dict[str, Any]:
    """Writes a sequence table per construction in the settings, and `sequences.json` with counts.

    Tables that the same build finished before it was broken off are kept.

    Args:
        config: the experiment.
        source: the folder to which the paths of `config.logs` are relative; with Spark, it may be an address.
        output: the folder of the tables; with Spark, it may be an address, as of `build_pairs`.
        embeddings: content embeddings: a folder written by `embed`, or Parquet of `id` and `vector`; None for none.
        store: restricts the items; None for all items.
        engine: one of `engines.ENGINES`; the tables are the same with each.

    Returns:
        The content of sequences.json. "skipped" maps each construction that was not built to its missing input.

    Raises:
        SailError: a log, a column, a vector or a setting is wrong, no construction has its input, or the engine is not
            there, or stops.
    """
    chosen, skipped = _choose(config, embeddings is not None)
    with (
        table_progress(len(chosen)) as (show, done),
        open_build(engine, config.logs.engine, output, _SCRATCH) as (opened, out, scratch),
        readable_rows(source),
    ):
        read = LogSource(config, source, opened)
        others = [embeddings] if embeddings else []
        identity = build_identity(config, source, store, "sequences", read.versions(), others)
        finished = Finished(out, _FINISHED, identity | {"chosen": chosen})
        read.check(_columns_of(chosen), ("events",))
        cut = read.cut()
        tables = read.open(_columns_of(chosen), store, scratch, show)
        logs = Logs(config, cut, tables, opened.keep)
        events = {"rows": read.count_rows("events")} | opened.values(event_counts(logs, _least(config, chosen)))
        for name in chosen:
            show(name)
            if not out.has_table(name) or name not in finished.parts:
                if "embeddings" in CONSTRUCTIONS[name].needs:
                    _find_close(logs, name, embeddings, opened, scratch)
                out.write_sequences(name, rows_of(logs, name))
                finished.add(name, _counts(logs, name, opened))
            done()
        said = {"passed_over": read.passed_over(), "logs": read.facts(_columns_of(chosen))}
        used = {"name": opened.name, "version": opened.version}
        summary = {
            "source": str(source),
            "engine": used,
            "seed": config.seed,
            "cut": {"test_share": config.logs.test_share, "last_second_of_train": cut},
            "split": {"by": config.logs.split, "test_users": config.logs.test_users},
            "settings": to_dict(config.sequences),
            "events": events,
            "skipped": skipped,
            **said,
            "tables": {name: finished.parts[name] for name in chosen},
        }
        out.write_json(SUMMARY, summary)
        finished.remove()
    if events["rows"] and not any(of["kept"] for splits in summary["tables"].values() for of in splits.values()):
        counted = ", ".join(f"{name} {count:,}" for name, count in events.items())
        raise SailError(f"The tables have no sequence: of the events, {counted}. All counts are in {output / SUMMARY}.")
    return summary


def sql_of_sequences(
    config: Config, source: Path | Address, *, embeddings: Path | None = None, engine: str = "duckdb"
) -> dict[str, str]:
    """Returns construction -> its rule as one query, over tables with the columns of `canonical.SCHEMAS`.

    Args:
        config: the experiment.
        source: the folder of the logs, whose times give the cut.
        embeddings: as of `build_sequences`; the tables "vectors" and "close" are what is made of them.
        engine: whose SQL it is: "duckdb", "spark", or another dialect that `ibis.to_sql` knows, such as "trino".

    Raises:
        SailError: as by `build_sequences`.
    """
    chosen, _ = _choose(config, embeddings is not None)
    with open_source(config, source, engine) as read:
        read.check((), ("events",))
        cut = read.cut()
    columns = {log: {name: SCHEMAS[log][name] for name in names} for log, names in _columns_of(chosen).items()}
    schemas = columns | {"vectors": VECTORS, "close": CLOSE}
    tables = {name: ibis.table(schema, name=name) for name, schema in schemas.items()}
    logs = Logs(config, cut, tables, lambda table, _: table)
    return {name: str(ibis.to_sql(rows_of(logs, name), dialect=sql_dialect(engine))) for name in chosen}


def _columns_of(chosen: list[str]) -> dict[str, tuple[str, ...]]:
    """Returns the logs that constructions read, with the columns."""
    labels = any("labels" in CONSTRUCTIONS[name].needs for name in chosen)
    return {log: columns for log, columns in _COLUMNS.items() if log == "events" or labels}


def _least(config: Config, chosen: list[str]) -> int:
    """Returns the least number of positive behaviours with which an event counts for any construction."""
    settings = config.sequences
    least = min(CONSTRUCTIONS[name].positives(settings) for name in chosen)
    # Consumers of an item always use the multi-peak threshold.
    return min(least, settings.multi_positives) if "seq_collab_single" in chosen else least


def _find_close(logs: Logs, name: str, embeddings: Path, engine: Engine, scratch: Path) -> None:
    """Finds the pairs of a candidate and a target whose content embeddings are close; adds them to the tables."""
    rows = write_vectors(embeddings, scratch / "vectors.parquet", scratch / "vectors.f32")
    vectors = engine.read(scratch / "vectors.parquet")
    logs.tables["vectors"] = vectors.group_by("item").agg(code=vectors.code.min())
    pairs = content_codes(candidates_of(logs, name)).select(*CLOSE).distinct().order_by("target_code")
    write_close(engine.batches(pairs), rows, logs.config.sequences.cosine, scratch / "close.parquet")
    logs.tables["close"] = engine.read(scratch / "close.parquet")


def _counts(logs: Logs, name: str, engine: Engine) -> dict[str, dict[str, Any]]:
    """Returns the counts of each split of a construction."""
    windows, counts = windows_of(logs, name), {}
    for split in CONSTRUCTIONS[name].splits:
        of_split = windows.filter(windows.test == (split == "test"))
        lengths = [row for batch in engine.batches(lengths_of(of_split)) for row in batch.to_pylist()]
        counts[split] = engine.values(counts_of(of_split))
        counts[split] |= {"lengths": {str(row["number"]): row["sequences"] for row in lengths}}
    return counts


def _choose(config: Config, has_embeddings: bool) -> tuple[list[str], dict[str, str]]:
    """The constructions that can be built; and for each other one, its missing input."""
    lacks = {}
    if not has_embeddings:
        lacks["embeddings"] = "content embeddings: give --embeddings"
    if not has_log(config, "catalogue") or not config.logs.catalogue.labels:
        lacks["labels"] = "labels of items: set config.logs.catalogue.path and config.logs.catalogue.labels"
    settings = config.sequences
    asked = [name for name in CONSTRUCTIONS if name in settings.constructions]
    skipped = {name: lacks[need] for name in asked for need in CONSTRUCTIONS[name].needs if need in lacks}
    chosen = [name for name in asked if name not in skipped]
    if not chosen:
        reasons = "; ".join(f"{name} needs {reason}" for name, reason in skipped.items())
        raise SailError(f"There is no sequence table to make: {reasons or 'config.sequences.constructions is empty'}.")
    if settings.min_items > settings.length:
        raise SailError(
            f"config.sequences.min_items is {settings.min_items}, more than config.sequences.length, {settings.length}."
        )
    flags = max(1, len(config.logs.events.flags))
    for name in chosen:
        made = CONSTRUCTIONS[name]
        if made.positives(settings) > flags:
            raise SailError(
                f"{name} takes items with {made.positives(settings)} positive behaviours, but config.logs.events.flags "
                f"names {len(config.logs.events.flags)}: lower config.sequences.{made.peak}_positives, or leave {name} "
                "out of config.sequences.constructions."
            )
    return chosen, skipped
