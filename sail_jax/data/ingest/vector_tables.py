"""Tables of vectors that are joined to items by id: Parquet of ids and vectors (`vector_columns`).

The rows may be in any order. Ingestion copies them into:

    FOLDER/
      vectors.f32       [N, D] the vectors in the order of the table
      ids-00000.msgpack the ids of each batch of rows
      index/            `store_index`: from the hash of an id to its row

All files are memory-mapped: a look-up reads only the pages it touches, and building the table holds one batch in
memory.
"""

import pathlib
import shutil
from collections.abc import Callable, Iterator

import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sail_jax.data import store_index
from sail_jax.data.ingest.cells import id_cell
from sail_jax.data.ingest.sources import RowSource, open_table
from sail_jax.data.parquet_files import readable
from sail_jax.data.vector_columns import vector_columns
from sail_jax.errors import BadRecordError, SailError
from sail_jax.items import item_key

_BATCH = 16_384


class VectorTable:
    """A table of vectors that `build_vectors` wrote, opened for look-up; safe in threads.

    Attributes:
        width: D; 0 for a table without usable rows.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._index = store_index.Index(folder) if (folder / store_index.FOLDER).is_dir() else None
        if self._index is None:
            self.width = 0
            return
        flat = np.memmap(folder / "vectors.f32", np.float32, mode="r")
        self._vectors = flat.reshape(int(self._index.starts[-1]), -1)
        self.width = self._vectors.shape[1]

    def get(self, item_id: str) -> np.ndarray | None:
        """The vector of an item, [D] float32, or None if the table has none.

        As in the item store, ids are distinguished by their 64-bit hash, and by the ids themselves if two share a hash.
        """
        if self._index is None:
            return None
        key = np.uint64(item_key(item_id))
        positions, shared = self._index.lookup(np.array([key]))
        record = self._index.record(int(positions[0])) if positions[0] >= 0 else None
        if shared[0]:
            record = next((row for row in self._index.records_of(key) if self._id_of(row) == item_id), None)
        return None if record is None else np.array(self._vectors[record])

    def _id_of(self, record: int) -> str:
        batch, row = self._index.place(record)
        return _read_ids(self._folder, batch)[row]


def open_vectors(folder: pathlib.Path, path: str, setting: str) -> RowSource:
    """Opens a table of vectors and checks its columns.

    Args:
        folder: the source folder.
        path: the Parquet file, or the folder of its parts.
        setting: the setting or flag that holds the path, for messages.

    Raises:
        SailError: the path is missing, has another format, or lacks a column.
    """
    source = open_table(folder, path, setting)
    if source.files[0].suffix.lower() != ".parquet":
        raise SailError(f"{source.files[0]} is not a Parquet file. Write the vectors as Parquet, or change {setting}.")
    for file in source.files:
        with readable(file):
            schema = pq.read_schema(file)
        vector_columns(str(file), schema, setting)
    return source


def build_vectors(
    source: RowSource,
    folder: pathlib.Path,
    on_bad: Callable[[BadRecordError], None],
    on_rows: Callable[[int], None],
) -> VectorTable:
    """Writes a table of vectors for look-up; skips rows without a vector.

    Args:
        source: the table, from `open_vectors`.
        folder: the folder to write; its old content is removed.
        on_bad: called with the error of a row without an id, a repeated id (the first one counts), a vector whose width
            differs from the first one's, or numbers that are not finite.
        on_rows: called with the number of rows read since its last call.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    batches = 0
    with (folder / "vectors.f32").open("wb") as out:
        for ids, vectors in usable_rows(source, on_bad, on_rows):
            out.write(vectors.tobytes())
            (folder / f"ids-{batches:05d}.msgpack").write_bytes(msgpack.packb(ids))
            batches += 1

    def on_duplicate(item_id: str, first: tuple[int, int], repeated: tuple[int, int]) -> None:
        on_bad(repeated_id(source, item_id))

    if batches:
        store_index.build(folder, batches, lambda batch: _read_ids(folder, batch), item_key, on_duplicate)
    return VectorTable(folder)


def usable_rows(
    source: RowSource, on_bad: Callable[[BadRecordError], None], on_rows: Callable[[int], None]
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Streams the usable rows of a table of vectors: n ids, of which one may repeat, and [n, D] float32.

    Args:
        source: the table, from `open_vectors`.
        on_bad: called with the error of each bad row; see `build_vectors`.
        on_rows: called with the number of rows read since its last call.
    """
    width = 0
    for file in source.files:
        number = 0
        with readable(file), pq.ParquetFile(file) as table:
            columns = vector_columns(str(file), table.schema_arrow)
            for batch in table.iter_batches(_BATCH, columns=list(columns)):
                ids, vectors, width = _Batch(batch, columns, str(file), number).read(width, on_bad)
                number += len(batch)
                on_rows(len(batch))
                if ids:
                    yield ids, vectors


def repeated_id(source: RowSource, item_id: str) -> BadRecordError:
    """The error of a row whose id an earlier one of the table has."""
    problem = "the table already has a vector with this id"
    error = BadRecordError(problem, remedy="Write one row for each id; the first one is used")
    ids, _ = vector_columns(source.name, pq.read_schema(source.files[0]))
    return error.at(source=source.name, record=item_id, field=ids)


class _Batch:
    """A batch of rows, and which of them are usable."""

    def __init__(self, batch: pa.RecordBatch, columns: tuple[str, str], file: str, first: int):
        self._file, self._first, (self._id_column, self._vector_column) = file, first, columns
        self._ids = [_id(cell) for cell in batch.column(self._id_column).to_pylist()]
        self._column = batch.column(self._vector_column)

    def read(self, width: int, on_bad: Callable[[BadRecordError], None]) -> tuple[list[str], np.ndarray, int]:
        """The ids and vectors of the usable rows, and their width; width 0 stands for that of the first one."""
        lengths = pc.list_value_length(self._column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        numbers = _floats(self._column.flatten())  # without the rows that have no vector
        same = len(lengths) > 0 and (lengths == (width or lengths[0])).all() and lengths[0] > 0
        if same and all(self._ids) and np.isfinite(numbers).all():
            return self._ids, numbers.reshape(len(lengths), -1), int(lengths[0])
        ends, ids, kept = np.cumsum(lengths), [], []
        for row in np.flatnonzero(lengths).tolist():
            vector = numbers[ends[row] - lengths[row] : ends[row]]
            problem = self._problem(self._ids[row], vector, width)
            if problem is None:
                width = len(vector)
                ids.append(self._ids[row])
                kept.append(vector)
            else:
                record = f"{self._ids[row] or ''} (row {self._first + row + 1})".strip()
                on_bad(problem.at(source=self._file, record=record, field=self._vector_column))
        return ids, np.stack(kept) if kept else np.zeros((0, width), np.float32), width

    def _problem(self, item_id: str | None, vector: np.ndarray, width: int) -> BadRecordError | None:
        if not item_id:
            return BadRecordError("the vector has no id", remedy="Give it that of its item", field=self._id_column)
        if not np.isfinite(vector).all():
            return BadRecordError(
                "the vector holds numbers that are not finite", remedy="Write finite numbers, or null"
            )
        if width and len(vector) != width:
            problem = f"the vector has {len(vector)} numbers, but earlier ones have {width}"
            return BadRecordError(problem, remedy="Write vectors of one width")
        return None


def _id(cell: object) -> str | None:
    try:
        return id_cell(cell)
    except BadRecordError:  # told as a missing one
        return None


def _floats(values: pa.Array) -> np.ndarray:
    """[n] float32; a null becomes NaN, and a number too large for float32 becomes infinite."""
    with np.errstate(over="ignore"):
        return values.to_numpy(zero_copy_only=False).astype(np.float32)


def _read_ids(folder: pathlib.Path, batch: int) -> list[str]:
    return msgpack.unpackb((folder / f"ids-{batch:05d}.msgpack").read_bytes())
