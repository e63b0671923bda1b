"""Turns the rows of a source table into pairs of items that exist in the store."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from sail_jax.config.data import TableSourceConfig
from sail_jax.data.ingest.cells import id_cell, is_empty, list_cell, text_cell
from sail_jax.data.ingest.sources import Row, RowSource
from sail_jax.data.store import ItemStore
from sail_jax.data.tables import Pair, is_held_out
from sail_jax.errors import BadRecordError, SailError

_BATCH = 4096
TRAIN, TEST, HOLDOUT = "train", "test", "holdout"


@dataclasses.dataclass(frozen=True)
class Holdout:
    """The set of held-out items (see `tables.is_held_out`)."""

    seed: int
    share: float

    def __contains__(self, item_id: str | None) -> bool:
        return item_id is not None and self.share > 0 and is_held_out(item_id, self.seed, self.share)


def check_table(name: str, config: TableSourceConfig) -> None:
    """Checks the settings of a table.

    Raises:
        SailError: a required setting is missing, or the table's name is not a valid file name.
    """
    prefix = f"config.ingest.tables.{name}"
    if not name.replace("-", "_").replace(".", "_").isidentifier():
        raise SailError(f"{prefix}: {name!r} names a file; use letters, digits, '-', '_' and '.'.")
    columns = [key for key in ("query_id", "query_text", "target_id", "score", "split") if getattr(config, key)]
    if not config.path:
        if columns:
            raise SailError(f"{prefix}.{columns[0]} names a column, but {prefix}.path names no table. Set it.")
        return
    if not config.target_id:
        raise SailError(f"{prefix}.target_id is empty; set it to the column of the target items.")
    if not (config.query_id or config.query_text):
        raise SailError(f"{prefix} has neither query_id nor query_text; set the column of one of them.")


def table_columns(name: str, config: TableSourceConfig) -> dict[str, str]:
    """Setting -> column, for all columns that are read."""
    keys = ("query_id", "query_text", "target_id", "score", "split")
    return {f"config.ingest.tables.{name}.{key}": getattr(config, key) for key in keys}


def self_pairs(store: ItemStore, holdout: Holdout) -> Iterator[tuple[Pair, str]]:
    """Pairs every item with itself, in split 'test' for held-out items and 'train' for others."""
    for item_id in store.item_ids():
        yield Pair(item_id, None, item_id), TEST if item_id in holdout else TRAIN


def table_pairs(
    source: RowSource,
    config: TableSourceConfig,
    store: ItemStore,
    holdout: Holdout,
    on_bad: Callable[[BadRecordError], None],
    on_rows: Callable[[int], None],
) -> Iterator[tuple[Pair, str]]:
    """Streams the pairs of a table, one per target, without items that are not in the store.

    A row with both a query item and a query text counts as one with a query item. A train row with a held-out item gets
    the split 'holdout'.

    Args:
        source: the table.
        config: maps columns to the parts of a pair.
        store: the items.
        holdout: the held-out items.
        on_bad: called with the error of each bad row or target.
        on_rows: called with the number of rows read since its last call.
    """
    rows = source.read(0)
    while batch := list(itertools.islice(rows, _BATCH)):
        pairs = [pair for row in batch for pair in _row_pairs(row, config, on_bad)]
        known = _known(pairs, store, config, on_bad)
        for (_, pair, split), keep in zip(pairs, known, strict=True):
            if keep:
                touched = split == TRAIN and (pair.query_id in holdout or pair.target_id in holdout)
                yield pair, HOLDOUT if touched else split
        on_rows(len(batch))


def _row_pairs(
    row: Row, config: TableSourceConfig, on_bad: Callable[[BadRecordError], None]
) -> list[tuple[Row, Pair, str]]:
    """The pairs of a row, none if it is bad."""
    try:
        if row.problem is not None:
            raise row.problem
        query_id = id_cell(row.cells.get(config.query_id)) if config.query_id else None
        query_text = _cell(row, config.query_text)
        targets = [id_cell(target) for target in list_cell(row.cells.get(config.target_id), config.separator)]
        split = _cell(row, config.split) if config.split else TRAIN
        needed = (
            (query_id or query_text, config.query_id or config.query_text),
            (targets, config.target_id),
            (split, config.split),
        )
        for value, column in needed:
            if not value:
                raise BadRecordError("the cell is empty", remedy="Fill it in, or remove the row", field=column)
        score = _score(row, config.score)
    except BadRecordError as error:
        on_bad(error.at(source=row.file, record=f"row {row.number}"))
        return []
    return [(row, Pair(query_id, None if query_id else query_text, target, score), split) for target in targets]


def _cell(row: Row, column: str) -> str | None:
    return text_cell(row.cells.get(column)) if column else None


def _score(row: Row, column: str) -> float | None:
    value = row.cells.get(column) if column else None
    if is_empty(value):
        return None
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise BadRecordError(f"the score {value!r} is not a finite number", remedy="Correct it", field=column)
    return score


def _known(
    pairs: list[tuple[Row, Pair, str]],
    store: ItemStore,
    config: TableSourceConfig,
    on_bad: Callable[[BadRecordError], None],
) -> np.ndarray:
    """[pairs] bool, whether all items of each pair are in the store, by one look-up."""
    queries = [pair.query_id or pair.target_id for _, pair, _ in pairs]
    targets = [pair.target_id for _, pair, _ in pairs]
    known = store.positions([*queries, *targets]).reshape(2, len(pairs)) >= 0
    for i in np.flatnonzero(~known.all(0)):
        row, pair, _ = pairs[i]
        query_is_unknown = pair.query_id is not None and not known[0, i]
        item_id, column = (pair.query_id, config.query_id) if query_is_unknown else (pair.target_id, config.target_id)
        on_bad(
            BadRecordError(
                f"there is no item {item_id!r}",
                remedy="Add it to the items, or remove it here",
                source=row.file,
                record=f"row {row.number}",
                field=column,
            )
        )
    return known.all(0)
