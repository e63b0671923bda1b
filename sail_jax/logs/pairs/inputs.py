"""Writes what the rules read to the scratch folder of a build, and opens it as tables of the engine."""

from collections.abc import Callable, Collection
from pathlib import Path

import ibis
import ibis.expr.types as ir

from sail_jax.config import Config
from sail_jax.data.store import ItemStore
from sail_jax.logs.canonical import SCANS, SCHEMAS
from sail_jax.logs.engine import Engine
from sail_jax.logs.log_source import LogSource
from sail_jax.logs.pairs.vectors import (
    CANDIDATES,
    collect_items,
    near_in_clusters,
    near_items,
    store_vectors,
    write_candidates,
)
from sail_jax.logs.reader import has_log
from sail_jax.logs.rules import Logs, draw
from sail_jax.logs.vector_files import scan_vector_ids

# Builders whose pairs belong to the split in which both items were published.
_BY_PUBLICATION = {"summary", "rsdf", "id", "cls"}


def logs_read(config: Config, chosen: dict[str, str]) -> list[str]:
    """Returns the logs that builders read, and the catalogue where they ask when items were published.

    Args:
        config: the experiment.
        chosen: builder -> what it reads: a log, "dense_features" or "id_embeddings".
    """
    published = bool(_BY_PUBLICATION & chosen.keys() and has_log(config, "catalogue") and config.logs.catalogue.time)
    return [log for log in SCANS if log in chosen.values() or (published and log == "catalogue")]


def vector_files(config: Config, log: str) -> dict[str, str]:
    """Returns the settings of "dense_features" or "id_embeddings" with their paths, by name."""
    if log == "dense_features":
        named = {"config.logs.dense_features": config.logs.dense_features}
    else:
        named = {f"config.logs.id_embeddings.{name}": path for name, path in sorted(config.logs.id_embeddings.items())}
    return {setting: path for setting, path in named.items() if path}


def unbound_tables(config: Config, chosen: dict[str, str]) -> dict[str, ir.Table]:
    """Returns the tables that rules read without rows, to show their SQL."""
    tables = {log: ibis.table(SCHEMAS[log], name=log) for log in logs_read(config, chosen)}
    near = {"dense_features": "rsdf", "id_embeddings": "id"}
    return tables | {near[log]: ibis.table(CANDIDATES, name=near[log]) for log in chosen.values() if log in near}


def open_tables(
    config: Config,
    source: LogSource,
    chosen: dict[str, str],
    store: ItemStore | None,
    engine: Engine,
    scratch: Path,
    show: Callable[[str], None],
) -> dict[str, ir.Table]:
    """Writes the logs in canonical columns, and the ids of vectors and store; returns the tables."""
    tables = source.open({log: SCHEMAS[log] for log in logs_read(config, chosen)}, store, scratch, show)
    for log in {"dense_features", "id_embeddings"} & set(chosen.values()):
        ids = scratch / f"ids-{log}"
        ids.mkdir()
        for number, (setting, path) in enumerate(vector_files(config, log).items()):
            scan_vector_ids(source.vectors(path), setting).sink_parquet(ids / f"{number}.parquet", engine="streaming")
        tables[log] = engine.read(ids)
    return tables


def count_items(logs: Logs, read: Collection[str]) -> ir.Table:
    """Counts the items of logs: items, and those that are not in the store."""
    together = ibis.union(*(logs.tables[log].select("item") for log in read), distinct=True)
    items = logs.known(together)
    return items.aggregate(items=items.known.sum(), items_not_in_store=(~items.known).sum())


def write_near(
    logs: Logs, source: LogSource, log: str, engine: Engine, scratch: Path, show: Callable
) -> dict[str, int]:
    """Finds the near pairs of vectors and adds them to the tables; returns counts of rows."""
    name = {"dense_features": "rsdf", "id_embeddings": "id"}[log]
    known = logs.known(logs.tables[log])
    ids = logs.published(known.filter(known.known).select("item").distinct())
    ordered = ids.select("item", "test", draw=draw(logs.config.seed, ids["item"])).order_by("item")
    items, rules, seed = collect_items(engine.batches(ordered)), getattr(logs.config.builders, name), logs.config.seed
    folder, counts = scratch / f"near-{name}", dict[str, int]()
    folder.mkdir()
    write_candidates(folder / "none.parquet", items)  # where nothing is near, the table has no rows
    for number, (setting, path) in enumerate(vector_files(logs.config, log).items()):
        show(f"{name}: reading {path}")
        vectors = store_vectors(items, source.vectors(path), setting, scratch / f"vectors-{name}-{number}.f32")
        counts = {key: counts.get(key, 0) + value for key, value in vectors.counts.items()}
        if name == "rsdf":
            near_items(items, vectors, rules, seed, folder, show)
        else:
            show(f"id: clusters of {path}")
            near_in_clusters(items, vectors, rules, seed, folder, number)
    logs.tables[name] = engine.read(folder)
    return counts
