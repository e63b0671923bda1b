"""Pair tables: Parquet files of references to items, read at random without loading them."""

import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from sail_jax.data.parquet_files import missing_column
from sail_jax.data.row_groups import ROW_GROUP, SPLIT_FIELD, WEIGHT_FIELD, RowGroupTable, write_by_split
from sail_jax.data.store import ItemStore, known_positions
from sail_jax.errors import SailError
from sail_jax.items import item_key

# The tables' folder within the folder that `ingest` writes.
FOLDER = "tables"

SCHEMA = pa.schema(
    [
        pa.field("query_id", pa.string()),
        pa.field("query_text", pa.string()),
        pa.field("target_id", pa.string(), nullable=False),
        pa.field("score", pa.float32()),
        SPLIT_FIELD,
    ]
)
WEIGHTED_SCHEMA = pa.schema([*list(SCHEMA)[:-1], WEIGHT_FIELD, SPLIT_FIELD])
_PAIR_SCHEMA = pa.schema(list(SCHEMA)[:-1])


class Pair(NamedTuple):
    """One row: a query, which is an item or a free text, and a target item.

    Attributes:
        query_id: id of the query item, or None.
        query_text: text of a free-text query, or None.
        target_id: id of the target item.
        score: graded similarity, or None.
    """

    query_id: str | None
    query_text: str | None
    target_id: str
    score: float | None = None


def is_held_out(item_id: str, seed: int, share: float) -> bool:
    """Whether an item belongs to the held-out share of the items.

    The draw is a hash of seed and id: it depends neither on the other items nor on their order, and an item that is
    held out at one share is held out at every larger one.
    """
    return item_key(f"{seed}:{item_id}") < share * 2.0**64


def write_pairs(path: str | pathlib.Path, rows: Iterable[tuple[Pair, str]]) -> dict[str, int]:
    """Streams (pair, split) rows into a pair table, sorted by split and otherwise in their order.

    Rows are written to one spill file per split next to `path`; the table appears under its name when it is complete.

    Returns:
        The number of rows of each split.
    """
    return write_by_split(path, SCHEMA, _chunks(rows))


def write_pair_columns(
    path: str | pathlib.Path, splits: Mapping[str, Iterable[pa.Table]], schema: pa.Schema = SCHEMA
) -> dict[str, int]:
    """Streams columns into a pair table, split by split in the order of their names.

    Args:
        path: the table; it appears under its name when it is complete.
        splits: split -> tables with the columns of the schema except the split; missing columns are null.
        schema: `SCHEMA`, or `WEIGHTED_SCHEMA`.

    Returns:
        The number of rows of each non-empty split.
    """
    fields = pa.schema(list(schema)[:-1])
    chunks = ((split, _as_pairs(table, fields)) for split in sorted(splits) for table in splits[split] if len(table))
    return write_by_split(path, schema, chunks)


def _as_pairs(table: pa.Table, fields: pa.Schema) -> pa.Table:
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in fields
    ]
    return pa.table(columns, schema=fields)


def _chunks(rows: Iterable[tuple[Pair, str]]) -> Iterator[tuple[str, pa.Table]]:
    waiting: dict[str, list[Pair]] = {}
    for pair, split in rows:
        pairs = waiting.setdefault(split, [])
        pairs.append(pair)
        if len(pairs) == ROW_GROUP:
            yield split, _table(pairs)
            pairs.clear()
    for split, pairs in waiting.items():
        if pairs:
            yield split, _table(pairs)


def _table(pairs: list[Pair]) -> pa.Table:
    columns = zip(*pairs, strict=True)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, _PAIR_SCHEMA, strict=True)], schema=_PAIR_SCHEMA
    )


class PairTable(RowGroupTable[Pair]):
    """The rows of one split of a pair table, opened for reading; see `RowGroupTable`."""

    schema = SCHEMA
    may_lack = ("query_id", "query_text", "score")
    what = "pair table"
    made_by = "`pairs` makes such tables of logs, and `ingest` those of config.ingest.tables."
    writer = "sail_jax.data.tables.write_pairs"
    make_row = Pair

    def _check_columns(
        self, file: pathlib.Path, columns: pa.Schema, first: dict[str, pa.DataType] | None
    ) -> dict[str, pa.DataType]:
        found = super()._check_columns(file, columns, first)
        if not {"query_id", "query_text"} & found.keys():
            raise SailError(missing_column(str(file), "query_id", columns.names))
        return found


def pair_positions(pairs: Sequence[Pair], store: ItemStore, table: str) -> tuple[list[int | str], list[int]]:
    """The positions or texts of the queries of some rows, and the positions of their targets.

    Of items with equal content it is that of the first one.

    Args:
        pairs: the rows.
        store: the items.
        table: the table of the rows, for messages.

    Raises:
        SailError: an item is not in the store; the message names it and the table.
    """
    targets = store.first_positions(known_positions([pair.target_id for pair in pairs], store, table))
    ids = [pair.query_id for pair in pairs if pair.query_id is not None]
    positions = iter(store.first_positions(known_positions(ids, store, table)).tolist())
    queries = [pair.query_text if pair.query_id is None else next(positions) for pair in pairs]
    return queries, targets.tolist()
