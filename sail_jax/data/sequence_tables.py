"""Sequence tables: Parquet files of users' histories with the item that came next."""

import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sail_jax.data.parquet_files import missing_column, parquet_parts, readable, require_column
from sail_jax.data.row_groups import SPLIT_FIELD, RowGroupTable, write_by_split
from sail_jax.data.tables import Pair, PairTable
from sail_jax.errors import SailError

_IDS = pa.list_(pa.field("element", pa.string(), nullable=False))
SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_ids", _IDS, nullable=False),
        pa.field("target_id", pa.string(), nullable=False),
        pa.field("seen_ids", _IDS, nullable=False),
        SPLIT_FIELD,
    ]
)
_SEQUENCE_SCHEMA = pa.schema(list(SCHEMA)[:-1])
_HISTORY = ("item_ids", "target_id")
_MADE_BY = "`sequences` makes such tables of logs; of histories of your own, write item_ids and target_id as Parquet."


class Sequence(NamedTuple):
    """One row: items of a user's history, and the item that came next.

    Attributes:
        user_id: id of the user.
        item_ids: ids of the items, the oldest first; at least one.
        target_id: id of the target item.
        seen_ids: ids of items that the user has seen, the oldest first; they are not used as negatives of the history.
    """

    user_id: str
    item_ids: tuple[str, ...]
    target_id: str
    seen_ids: tuple[str, ...] = ()


def write_sequences(path: str | pathlib.Path, batches: Iterable[pa.Table | pa.RecordBatch]) -> dict[str, int]:
    """Streams batches of rows into a sequence table, sorted by split and otherwise in their order.

    Rows are written to one spill file per split next to `path`; the table appears under its name when it is complete.

    Args:
        path: the file that is written.
        batches: rows with the columns user_id, item_ids (a list of strings, the oldest first), target_id, split, in any
            order of splits, and optionally seen_ids; other columns are ignored.

    Returns:
        The number of rows of each split; empty if there are no rows, and the table is then empty too.

    Raises:
        SailError: a column is missing or of another type, or a row lacks a user, an item, a target or a split.
    """
    return write_by_split(path, SCHEMA, _by_split(path, batches))


def _by_split(path: str | pathlib.Path, batches: Iterable[pa.Table | pa.RecordBatch]) -> Iterator[tuple[str, pa.Table]]:
    for batch in batches:
        if "seen_ids" not in batch.schema.names:
            batch = batch.append_column("seen_ids", pa.array([[]] * len(batch), _IDS))
        names = batch.schema.names
        for name in SCHEMA.names:
            if name not in names:
                raise SailError(missing_column(f"A batch for {path}", name, names))
        try:
            columns = [pc.cast(batch[field.name], field.type) for field in _SEQUENCE_SCHEMA]
            splits = pc.cast(batch["split"], pa.string())
        except pa.ArrowException as error:
            raise SailError(f"A batch for {path} has a column of another type ({error}).") from error
        rows = pa.table(columns, schema=_SEQUENCE_SCHEMA)
        _check(rows, splits, path)
        for split in pc.unique(splits).to_pylist():
            yield split, rows.filter(pc.equal(splits, split))


def _check(rows: pa.Table, splits: pa.Array | pa.ChunkedArray, path: str | pathlib.Path) -> None:
    nulls = sum(column.null_count for column in (*rows.columns, splits)) + pc.list_flatten(rows["item_ids"]).null_count
    if nulls or (len(rows) and pc.min(pc.list_value_length(rows["item_ids"])).as_py() == 0):
        raise SailError(
            f"A batch for {path} has a row without a user, an item, a target or a split; fill it in, or leave it out."
        )


def _make_sequence(user_id: str, item_ids: list[str], target_id: str, seen_ids: list[str]) -> Sequence:
    return Sequence(user_id, tuple(item_ids), target_id, tuple(seen_ids))


class SequenceTable(RowGroupTable[Sequence]):
    """The rows of one split of a sequence table, opened for reading; see `RowGroupTable`.

    Example:
        >>> table = SequenceTable.open("data/tables/seq_content_multi.parquet", "train")  # doctest: +SKIP
        >>> table[0].item_ids  # doctest: +SKIP
        ('a', 'b', 'c')
    """

    schema = SCHEMA
    what = "sequence table"
    made_by = _MADE_BY
    writer = "sail_jax.data.sequence_tables.write_sequences"
    make_row = staticmethod(_make_sequence)


def stream_sequences(path: pathlib.Path, split: str) -> Iterator[tuple[list[list[str]], list[str]]]:
    """Streams the rows of a split, from any table with the columns `item_ids` and `target_id`.

    A table without the column `split` gives all its rows. Unlike `SequenceTable`, this reads tables that were not
    written by `write_sequences`, and has no random access.

    Args:
        path: a Parquet file, or a folder of parts that are read in the order of their names.
        split: the split; the empty string stands for all rows.

    Yields:
        The items of some histories, the oldest first, and their targets.

    Raises:
        SailError: there is no table, it is damaged, it lacks a column, or a row lacks an item or its target.
    """
    parts = parquet_parts(path)
    if not parts:
        raise SailError(f"There is no sequence table {path}. {_MADE_BY}")
    for part in parts:
        with readable(part):
            file = pq.ParquetFile(part)
        for column in _HISTORY:
            require_column(str(part), file.schema_arrow, SCHEMA.field(column))
        chosen = bool(split) and "split" in file.schema_arrow.names
        for batch in _batches(file, part, [*_HISTORY, "split"] if chosen else list(_HISTORY)):
            rows = [row for row in batch.to_pylist() if not chosen or row["split"] == split]
            for row in rows:
                if not row["item_ids"] or None in row["item_ids"] or row["target_id"] is None:
                    raise SailError(
                        f"{part} has a row without items or without a target ({row}); fill in item_ids and target_id, "
                        "or leave it out."
                    )
            if rows:
                yield [row["item_ids"] for row in rows], [row["target_id"] for row in rows]


def _batches(file: pq.ParquetFile, part: pathlib.Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with readable(part):
        for batch in file.iter_batches(columns=columns):
            batch.validate(full=True)
            yield batch


class LatestItems:
    """A sequence table as pairs of the latest item and the target, for displays and samples.

    Args:
        path: the table.
        split: its split.
    """

    def __init__(self, path: pathlib.Path, split: str) -> None:
        self.path, self._table = path, SequenceTable.open(path, split)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, i: int) -> Pair:
        row = self._table[i]
        return Pair(row.item_ids[-1], None, row.target_id)


def open_pairs(path: pathlib.Path, split: str, kind: str) -> PairTable | LatestItems:
    """Opens the table of a training set as pairs, whatever its kind."""
    return LatestItems(path, split) if kind == "sequences" else PairTable.open(path, split)
