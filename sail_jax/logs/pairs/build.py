"""Builds pair tables from a recommender's logs: chooses the builders, runs them and writes a summary."""

import contextlib
import datetime
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from sail_jax.buckets import fetch
from sail_jax.config import Config
from sail_jax.config.schema import nearest, to_dict
from sail_jax.data.store import ItemStore
from sail_jax.errors import SailError
from sail_jax.files import commit_json
from sail_jax.logs.finished import Finished, build_identity
from sail_jax.logs.log_files import readable_rows
from sail_jax.logs.pairs import attributes, consumption, searches, vectors
from sail_jax.logs.pairs.catalogue import Catalogue, build_catalogue
from sail_jax.logs.pairs.context import BuildContext
from sail_jax.logs.pairs.sample_page import write_sample_page
from sail_jax.logs.reader import (
    check_times,
    cut_time,
    has_log,
    passed_over_beside,
    scan_events,
    scan_hashtags,
    scan_items,
    scan_live,
    scan_results,
)
from sail_jax.logs.scratch import scratch_folder
from sail_jax.logs.vector_files import scan_vector_ids
from sail_jax.progress import Progress

SUMMARY, SAMPLE_PAGE = "pairs.json", "pairs.html"
_SCRATCH, _FINISHED = ".pairs.spool", ".pairs.finished.json"
# Builder -> the function that writes its table, and the log that it reads.
BUILDERS: dict[str, tuple[Callable[[BuildContext, Path], dict[str, int]], str]] = {
    "copair": (consumption.build_copair, "events"),
    "search": (searches.build_search, "searches"),
    "live": (consumption.build_live, "live"),
    "summary": (attributes.build_summary, "catalogue"),
    "hashtag": (attributes.build_hashtag, "hashtags"),
    "rsdf": (vectors.build_rsdf, "dense_features"),
    "id": (vectors.build_id, "id_embeddings"),
    "q2i_search": (searches.build_q2i_search, "searches"),
    "q2i_score": (searches.build_q2i_score, "searches"),
    "cls": (attributes.build_cls, "catalogue"),
}
# Builders whose pairs belong to the split in which both items were published.
_BY_PUBLICATION = {"summary", "rsdf", "id", "cls"}
_SCANS = {
    "events": scan_events,
    "searches": scan_results,
    "live": scan_live,
    "hashtags": scan_hashtags,
    "catalogue": scan_items,
}


def build_pairs(
    config: Config, source: Path, output: Path, only: Sequence[str] = (), store: ItemStore | None = None
) -> dict[str, Any]:
    """Writes a pair table per builder, `pairs.json` with counts and `pairs.html` with samples.

    Tables that the same build finished before it was broken off are kept.

    Args:
        config: the experiment.
        source: the folder to which the paths of `config.logs` are relative.
        output: the folder of the tables. Tables and counts of builders that do not run stay as they are.
        only: names of builders; empty for all builders whose log the settings name.
        store: restricts the items, and gives the sample page its pictures; None for all items and no pictures.

    Returns:
        The content of pairs.json.

    Raises:
        SailError: a builder's name, a log, a column or a vector is wrong; or no log is configured.
    """
    chosen = _choose(config, only)
    output.mkdir(parents=True, exist_ok=True)
    fetch(output / SUMMARY)
    finished = Finished(output / _FINISHED, build_identity(config, source, store, "builders"))
    with _progress(len(chosen)) as (show, done), scratch_folder(output / _SCRATCH) as scratch, readable_rows(source):
        check_times(config, source, sorted({"events", *(BUILDERS[name][1] for name in chosen)} & _SCANS.keys()))
        cut = cut_time(config, source)
        show("items")
        catalogue = _catalogue(config, source, chosen, cut, store)
        build = BuildContext(config, source, scratch, catalogue, cut, show)
        for name in chosen:
            show(name)
            table = output / f"{name}.parquet"
            if name not in finished.parts or not table.is_file():
                counts = BUILDERS[name][0](build, table)
                finished.add(name, counts | {"settings": to_dict(getattr(config.builders, name))})
            done()
    made = {name: finished.parts[name] for name in chosen}
    summary = _summary(config, source, output, catalogue, cut, made)
    commit_json(output / SUMMARY, summary)
    finished.remove()
    write_sample_page(output, list(summary["builders"]), config.builders.sheet_pairs, store)
    if empty := [_why_empty(name, of) for name, of in made.items() if of["rows_read"] and not of["train"] + of["test"]]:
        raise SailError(f"{'; '.join(empty)}. All counts are in {output / SUMMARY}.")
    return summary


def _why_empty(name: str, counts: dict[str, Any]) -> str:
    """Returns a message for a table without rows: what took most of what was read."""
    dropped = {key.removeprefix("dropped_"): of for key, of in counts.items() if key.startswith("dropped_") and of}
    said = ", ".join(f"{key} {of:,}" for key, of in sorted(dropped.items(), key=lambda item: -item[1]))
    settings = f"change config.builders.{name}, or leave it out with --only"
    return f"{name}.parquet has no row: of {counts['rows_read']:,} rows read went {said or 'none'}; {settings}"


def _choose(config: Config, only: Sequence[str]) -> list[str]:
    for name in only:
        if name not in BUILDERS:
            raise SailError(f"There is no builder {name!r}. Did you mean {nearest(name, BUILDERS)}?")
        if not _has_input(config, BUILDERS[name][1]):
            raise SailError(
                f"The builder {name!r} reads config.logs.{BUILDERS[name][1]}, which is empty: name the log there."
            )
    chosen = [name for name, (_, log) in BUILDERS.items() if (name in only if only else _has_input(config, log))]
    if not chosen:
        raise SailError("config.logs names no log to build pairs from: set config.logs.events.path or another log.")
    return chosen


def _has_input(config: Config, log: str) -> bool:
    return bool(getattr(config.logs, log)) if log not in _SCANS else has_log(config, log)


def _catalogue(config: Config, source: Path, chosen: list[str], cut: int, store: ItemStore | None) -> Catalogue:
    """The items of the logs that the chosen builders read."""
    read = {BUILDERS[name][1] for name in chosen}
    frames = [scan(config, source) for log, scan in _SCANS.items() if log in read]
    paths = {"config.logs.dense_features": config.logs.dense_features} if "dense_features" in read else {}
    if "id_embeddings" in read:
        paths |= {f"config.logs.id_embeddings.{name}": path for name, path in config.logs.id_embeddings.items()}
    frames += [scan_vector_ids(source / path, setting) for setting, path in paths.items()]
    published = None
    if _BY_PUBLICATION & set(chosen) and has_log(config, "catalogue") and config.logs.catalogue.time:
        published = scan_items(config, source).select("item", "time")
    return build_catalogue(frames, published, cut, store)


def _summary(
    config: Config, source: Path, output: Path, catalogue: Catalogue, cut: int, counts: dict[str, dict]
) -> dict[str, Any]:
    builders = {}
    if (output / SUMMARY).is_file():
        with contextlib.suppress(ValueError, KeyError):
            builders = json.loads((output / SUMMARY).read_text())["builders"]
    builders = {name: counts.get(name) or builders.get(name) for name in BUILDERS}
    until = datetime.datetime.fromtimestamp(cut, datetime.UTC).isoformat() if abs(cut) < 1 << 37 else ""
    return {
        "source": str(source),
        "polars": pl.__version__,
        "seed": config.seed,
        "cut": {"test_share": config.logs.test_share, "last_second_of_train": cut, "date": until},
        "items": len(catalogue),
        "items_not_in_store": catalogue.left_out,
        "passed_over": passed_over_beside(config, source),
        "builders": {name: entry for name, entry in builders.items() if entry},
    }


@contextlib.contextmanager
def _progress(builders: int) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    columns = (SpinnerColumn(), TextColumn("{task.completed}/{task.total} tables"), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), transient=True) as progress:
        task = progress.add_task("cut", total=builders)
        yield lambda text: progress.update(task, description=text), lambda: progress.advance(task)
