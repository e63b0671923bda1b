"""Reads the distinct queries and targets of a table, and the known pairs between them.

Queries and targets are numbered by the order of their keys. Tables are streamed; only pairs of a query and a target of
the data set are kept in memory, as codes of 8 bytes each.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sail_jax.buckets import fetch, place
from sail_jax.config import Config
from sail_jax.data import tables as tables_lib
from sail_jax.data.hard_negative_table import query_key
from sail_jax.data.parquet_files import parquet_parts
from sail_jax.data.row_groups import splits_of
from sail_jax.data.tables import Pair, PairTable
from sail_jax.errors import SailError

# New entries are buffered up to this number, or to the number of sorted ones, before they are merged.
_BUFFERED = 1 << 20


@dataclasses.dataclass(frozen=True)
class QueriesAndTargets:
    """The distinct queries and targets of a table, each in the order of their keys.

    Attributes:
        query_keys: [Q] uint64 `query_key` of the queries, ascending.
        queries: Q rows, `query_id` or `query_text`, the other one null.
        target_keys: [N] uint64 keys of the targets, as those of queries.
        targets: N rows, `query_id`, and `query_text` null.
    """

    query_keys: np.ndarray
    queries: pa.Table
    target_keys: np.ndarray
    targets: pa.Table

    def same_items(self) -> np.ndarray:
        """Returns the codes (see `pairs`) of the pairs of a query with itself, int64."""
        rows, columns = np.arange(len(self.query_keys)), row_of(self.target_keys, self.query_keys)
        return self._codes(rows, columns)

    def reverse(self, codes: np.ndarray) -> np.ndarray:
        """Returns the codes (see `pairs`) of reversed pairs whose target is also a query, and vice versa."""
        rows, columns = codes // len(self.target_keys), codes % len(self.target_keys)
        queries = row_of(self.query_keys, self.target_keys[columns])
        return self._codes(queries, row_of(self.target_keys, self.query_keys[rows]))

    def pairs(self, table: PairTable, *, min_score: float, both_ways: bool) -> np.ndarray:
        """Reads the pairs of a table whose query and target are in the data set.

        Args:
            table: the table.
            min_score: pairs with a lower score are left out; pairs without a score are kept.
            both_ways: whether to read each pair of items in both directions.

        Returns:
            [P] int64 codes, ascending and each once: row of the query times N plus row of the target.
        """
        gathered = _DistinctNumbers()
        for batch in table.iter_batches():
            keys = np.array([_pair_keys(pair) for pair in batch if _counts(pair, min_score)], np.uint64).reshape(-1, 2)
            for query, target in [keys.T, keys.T[::-1]][: 1 + both_ways]:
                gathered.add(self._codes(row_of(self.query_keys, query), row_of(self.target_keys, target)))
        return gathered.unique()

    def _codes(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        inside = (rows >= 0) & (columns >= 0)
        return rows[inside] * len(self.target_keys) + columns[inside]


def read_queries_and_targets(table: PairTable) -> QueriesAndTargets:
    """Reads the queries and targets of a table, each once."""
    queries, targets = _DistinctItems(), _DistinctItems()
    for batch in table.iter_batches():
        queries.add([(pair.query_id, None if pair.query_id is not None else pair.query_text) for pair in batch])
        targets.add([(pair.target_id, None) for pair in batch])
    return QueriesAndTargets(*queries.unique(), *targets.unique())


def row_of(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns the rows of the wanted keys among ascending keys, int64; -1 for those not found."""
    if not len(keys):
        return np.full(len(wanted), -1, np.int64)
    rows = np.searchsorted(keys, wanted)
    return np.where(keys[np.minimum(rows, len(keys) - 1)] == wanted, rows, -1).astype(np.int64)


def merge_equal(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merges the rows of equal keys, [n] in any order, into the first of them.

    Returns:
        first: [n] bool, whether a row is the first one of its key.
        rows: [n] int64, the position of a row's first one among all first ones.
    """
    _, index, number = np.unique(keys, return_index=True, return_inverse=True)
    first = np.zeros(len(keys), bool)
    first[index] = True
    return first, (np.cumsum(first) - 1)[index[number]]


def known_tables(config: Config) -> Iterator[tuple[PairTable, float]]:
    """Yields the pair tables of the data folder and of the config, each with its minimum score.

    Pairs below the minimum score are not positives. It is the `min_score` of the data set that reads the table, the
    lowest if there are several; in tables that no data set reads, all pairs are positives. Each file is yielded once,
    split by split, however often the config names it. Tables of the config that do not exist are skipped: a later stage
    may write them.

    Raises:
        SailError: no table has one of `config.mining.positive_splits`, or a table is damaged.
    """
    found = set()
    for path, min_score in _known_parts(config).items():
        splits = splits_of(path)
        for split in config.mining.positive_splits or ("",):
            if split and split not in splits:
                continue
            found.add(split)
            yield PairTable.open(path, split), min_score
    for split in config.mining.positive_splits:
        if split not in found:
            raise SailError(f"config.mining.positive_splits names {split!r}, a split that no table has.")


def _known_parts(config: Config) -> dict[Path, float]:
    """Returns {file of a pair table: minimum score of its positives}."""
    folder = place(config.data.dir)
    named = [
        folder / place(task.table) for task in config.eval.tasks.values() if task.table and task.kind != "sequence"
    ]
    scores = {part: -np.inf for path in [*_tables_in(folder / tables_lib.FOLDER), *named] for part in _parts(path)}
    limits: dict[Path, float] = {}
    for dataset in config.data.datasets.values():
        for part in _parts(folder / place(dataset.table)) if dataset.table and dataset.kind != "sequences" else ():
            limits[part] = min(dataset.min_score, limits.get(part, np.inf))
    return dict(sorted((scores | limits).items()))


def _tables_in(folder: Path) -> Iterator[Path]:
    """Yields the pair tables of a folder, and skips tables with other columns."""
    fetch(folder)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        parts = _parts(path) if path.is_dir() or path.suffix == ".parquet" else ()
        if parts and path.suffix != ".spool" and {"query_id", "target_id"} <= set(_schema(parts[0]).names):
            yield path


def _parts(path: Path) -> list[Path]:
    """Returns the files of a table by their resolved paths; none if there is no table."""
    return [part.resolve() for part in parquet_parts(path)]


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise SailError(f"{path} is no Parquet file, or damaged ({error}); write it again or remove it.") from error


def _pair_keys(pair: Pair) -> tuple[int, int]:
    return query_key(pair.query_id, pair.query_text), query_key(pair.target_id, None)


def _counts(pair: Pair, min_score: float) -> bool:
    return pair.score is None or not pair.score < min_score


class _DistinctNumbers:
    """Collects numbers from a stream, each once."""

    def __init__(self) -> None:
        self._parts, self._waiting = [np.zeros(0, np.int64)], 0

    def add(self, values: np.ndarray) -> None:
        self._parts.append(values)
        self._waiting += len(values)
        if self._waiting > max(_BUFFERED, len(self._parts[0])):
            self.unique()

    def unique(self) -> np.ndarray:
        self._parts, self._waiting = [np.unique(np.concatenate(self._parts))], 0
        return self._parts[0]


class _DistinctItems:
    """Collects ids and texts from a stream, each once, with their keys."""

    def __init__(self) -> None:
        self._keys, self._waiting = [np.zeros(0, np.uint64)], 0
        self._schema = pa.schema([("query_id", pa.large_string()), ("query_text", pa.large_string())])
        self._tables = [self._schema.empty_table()]

    def add(self, items: Iterable[tuple[str | None, str | None]]) -> None:
        items = list(dict.fromkeys(items))
        keys = np.array([query_key(*item) for item in items], np.uint64)
        self._keys.append(keys)
        self._tables.append(
            pa.Table.from_arrays(
                [pa.array(column, pa.large_string()) for column in zip(*items, strict=True)], schema=self._schema
            )
        )
        self._waiting += len(keys)
        if self._waiting > max(_BUFFERED, len(self._keys[0])):
            self.unique()

    def unique(self) -> tuple[np.ndarray, pa.Table]:
        keys, first = np.unique(np.concatenate(self._keys), return_index=True)
        table = pa.concat_tables(self._tables).combine_chunks().take(pa.array(first)).combine_chunks()
        self._keys, self._tables, self._waiting = [keys], [table], 0
        return keys, table
