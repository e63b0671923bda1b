"""The table of hard negatives: for each query, the items that a model wrongly ranks as its targets.

    NAME.parquet    one row per query, sorted by the 64-bit key of the query
    NAME.keys.npy   the keys alone, [rows] uint64, memory-mapped by readers

Training looks rows up at random. A binary search in the mapped keys touches log2(rows) of their pages, and then one row
group of the table is read, so that a reader's memory does not grow with the data set.
"""

import bisect
import functools
import json
import pathlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sail_jax.buckets import fetch, remove
from sail_jax.data.parquet_files import footer_digest, missing_column
from sail_jax.errors import SailError
from sail_jax.files import commit
from sail_jax.items import item_key

# The folder for such tables within the folder that `ingest` writes.
FOLDER = "negatives"

SCHEMA = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("query_id", pa.string()),
        pa.field("query_text", pa.string()),
        pa.field("negatives", pa.list_(pa.string()), nullable=False),
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
    ]
)
ROW_GROUP = 1024
_NEGATIVES_AT = SCHEMA.get_field_index("negatives")
_METADATA_KEY = b"sail_jax.negatives"
_CACHED_GROUPS = 32
_REMEDY = "Write it with `python -m sail_jax mine`."


def query_key(query_id: str | None, query_text: str | None) -> int:
    """A 64-bit hash of a query, the same on every machine; an id and an equal text have different hashes.

    Raises:
        ValueError: the query has neither an id nor a text.
    """
    if query_id is not None:
        return item_key(f"id:{query_id}")
    if query_text is None:
        raise ValueError("a query needs an id or a text")
    return item_key(f"text:{query_text}")


def keys_path(path: str | pathlib.Path) -> pathlib.Path:
    """The file of keys of the table at `path`."""
    return pathlib.Path(path).with_suffix(".keys.npy")


def write_negatives(
    path: str | pathlib.Path,
    rows: Iterable[tuple[str | None, str | None, Sequence[str], Sequence[float]]],
    metadata: Mapping[str, Any],
) -> int:
    """Streams hard negatives into a table, which appears under its name when it is complete.

    The keys stay in memory, 8 bytes per query.

    Args:
        path: the table, NAME.parquet.
        rows: (query id, query text, ids of the negatives, their scores), sorted by `query_key`; the id is None for a
            free-text query, the text for an item.
        metadata: facts about the mining run (lambda* and so on), stored as JSON.

    Returns:
        The number of rows.

    Raises:
        ValueError: rows are not sorted by their keys, or a row has unequal numbers of negatives and scores.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, keys_partial = (file.with_name(f"{file.name}.partial") for file in (path, keys_path(path)))
    keys = [np.zeros(0, np.uint64)]
    with pq.ParquetWriter(partial, SCHEMA.with_metadata({_METADATA_KEY: json.dumps(dict(metadata))})) as writer:
        for group in _groups(rows):
            table = pa.Table.from_arrays(
                [pa.array(column, field.type) for column, field in zip(zip(*group, strict=True), SCHEMA, strict=True)],
                schema=writer.schema,
            )
            writer.write_table(table)
            keys.append(table.column("key").to_numpy())
    everything = np.concatenate(keys)
    with keys_partial.open("wb") as file:  # np.save appends .npy to the names of files that lack it
        np.save(file, everything)
    # Commit the keys first: readers compare keys and table, and must never see a table without its keys.
    remove(path)
    commit(keys_partial, keys_path(path))
    commit(partial, path)
    return len(everything)


def _groups(rows: Iterable[tuple]) -> Iterable[list[tuple]]:
    """Yields rows with their keys, in lists of one row group each."""
    group, last = [], 0
    for query_id, query_text, negatives, scores in rows:
        key = query_key(query_id, query_text)
        if key < last:
            raise ValueError(f"the row of {query_id or query_text!r} is not sorted by its key")
        if len(negatives) != len(scores):
            raise ValueError(f"the row of {query_id or query_text!r} needs a score for each negative")
        last = key
        group.append((key, query_id, query_text, list(negatives), list(scores)))
        if len(group) == ROW_GROUP:
            yield group
            group = []
    if group:
        yield group


class NegativesTable:
    """Hard negatives by query, opened for reading.

    A few row groups are cached. The table may be pickled (a worker process reopens the files) and used by several
    threads.

    Args:
        path: the table, NAME.parquet.

    Attributes:
        metadata: what `write_negatives` was given.
        listed: at least the number of negatives of all queries.

    Raises:
        SailError: a file is missing, damaged or of another kind, or the two files do not belong together.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)
        for file in (self.path, keys_path(self.path)):
            fetch(file)
        metadata = _read_metadata(self.path)
        self.metadata: dict[str, Any] = json.loads(metadata.metadata[_METADATA_KEY])
        self._ends = np.cumsum(
            [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)], dtype=np.int64
        ).tolist()
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        self.listed = sum(group.column(_NEGATIVES_AT).num_values for group in groups)
        self._keys = _read_keys(keys_path(self.path), len(self))
        self._lock = threading.Lock()
        self._file: pq.ParquetFile | None = None
        self._columns = functools.lru_cache(_CACHED_GROUPS)(self._read_group)

    @classmethod
    def open(cls, path: str | pathlib.Path) -> "NegativesTable":
        """Opens the table at `path`."""
        return cls(path)

    def __reduce__(self):
        return NegativesTable, (self.path,)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def get(self, query_id: str | None, query_text: str | None) -> tuple[list[str], list[float]]:
        """Looks up the hard negatives of a query.

        Args:
            query_id: id of the query item, or None.
            query_text: text of a free-text query, or None.

        Returns:
            ids: of the negatives, the highest score first; empty if the table does not have the query.
            scores: their cosines to the query.

        Raises:
            SailError: a file is damaged, or the keys are those of another table.
        """
        key = query_key(query_id, query_text)
        text = query_text if query_id is None else None
        row = int(np.searchsorted(self._keys, np.uint64(key)))
        while row < len(self) and self._keys[row] == key:  # two queries may share a hash
            stored, *query, ids, scores = self._row(row)
            if stored != key:
                raise SailError(
                    f"{keys_path(self.path)} holds the keys of another table, not of {self.path}. {_REMEDY}"
                )
            if query == [query_id, text]:
                return ids, scores
            row += 1
        return [], []

    def digest(self) -> str:
        """A hash that tells tables with other negatives apart; see `footer_digest`."""
        return footer_digest([self.path])

    def iter_negatives(self) -> Iterator[tuple[pa.Array, pa.Array, pa.ListArray]]:
        """Yields ids and texts of queries, and the ids of their negatives, at most 1,024 rows at a time."""
        for group in range(len(self._ends)):
            _, query_ids, query_texts, negatives, _ = self._read_group(group)
            yield query_ids, query_texts, negatives

    def _row(self, row: int) -> list[Any]:
        group = bisect.bisect_right(self._ends, row)
        return [column[row - (self._ends[group - 1] if group else 0)].as_py() for column in self._columns(group)]

    def _read_group(self, group: int) -> list[pa.Array]:
        with self._lock:  # a ParquetFile is not safe for several threads
            try:
                self._file = self._file or pq.ParquetFile(self.path, memory_map=True)
                table = self._file.read_row_group(group, columns=SCHEMA.names, use_threads=False)
            except (OSError, pa.ArrowException) as error:
                raise SailError(f"{self.path} cannot be read ({error}). {_REMEDY}") from error
        return [table.column(name).combine_chunks() for name in SCHEMA.names]


def _read_metadata(path: pathlib.Path) -> pq.FileMetaData:
    if not path.is_file():
        raise SailError(f"There is no table of hard negatives {path}. {_REMEDY}")
    try:
        metadata = pq.read_metadata(path)
        columns = metadata.schema.to_arrow_schema()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise SailError(f"{path} is not a Parquet file, or it is damaged ({error}). {_REMEDY}") from error
    for field in SCHEMA:
        if field.name not in columns.names:
            raise SailError(f"{missing_column(str(path), field.name, columns.names)} {_REMEDY}")
        if columns.field(field.name).type != field.type:
            found = columns.field(field.name).type
            raise SailError(f"{path} has {found} in column {field.name!r}, not {field.type}. {_REMEDY}")
    if _METADATA_KEY not in (metadata.metadata or {}):
        raise SailError(f"{path} was not written by the miner. {_REMEDY}")
    return metadata


def _read_keys(path: pathlib.Path, rows: int) -> np.ndarray:
    """[rows] uint64, memory-mapped."""
    try:
        keys = np.load(path, mmap_mode="r")
    except FileNotFoundError as error:
        raise SailError(f"There is no file of keys {path} beside the table. {_REMEDY}") from error
    except (OSError, EOFError, ValueError) as error:
        raise SailError(f"{path} cannot be read ({error}). {_REMEDY}") from error
    if keys.dtype != np.uint64 or keys.shape != (rows,):
        raise SailError(f"{path} holds {keys.dtype}{list(keys.shape)} for a table of {rows} rows. {_REMEDY}")
    return keys
