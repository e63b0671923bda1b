"""Reads Parquet files of vectors by item id, batch by batch."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sail_jax.data.vector_columns import vector_columns
from sail_jax.errors import SailError
from sail_jax.logs.log_files import VECTOR_SUFFIXES, files_of, readable

_VECTOR_BATCH = 8192


def scan_vector_ids(path: Path, setting: str = "") -> pl.LazyFrame:
    """Scans the ids of a Parquet file of vectors, or of a folder of such files.

    Returns:
        item (String). Args and errors as for `read_vectors`.
    """
    scans = []
    for part in files_of(path, setting, VECTOR_SUFFIXES):
        with readable(part):
            key, _ = vector_columns(str(part), pq.read_schema(part), setting)
        scans.append(pl.scan_parquet(part, glob=False).select(item=pl.col(key).cast(pl.String)).drop_nulls())
    return pl.concat(scans)


def read_vectors(path: Path, setting: str = "") -> Iterator[tuple[list[str], np.ndarray]]:
    """Streams a Parquet file of vectors, or a folder of such files in the order of their names.

    Args:
        path: the file or folder, with ids and vectors (`vector_columns`).
        setting: the setting that holds the path, for messages.

    Yields:
        Ids, and [n, D] float32, one batch at a time. Rows without a vector are skipped.

    Raises:
        SailError: the path is missing, a column is missing, or the vectors differ in width.
    """
    width = 0
    for part in files_of(path, setting, VECTOR_SUFFIXES):
        with readable(part), pq.ParquetFile(part) as file:
            key, vector = vector_columns(str(part), file.schema_arrow, setting)
            for batch in file.iter_batches(_VECTOR_BATCH, columns=[key, vector]):
                batch = batch.filter(pc.and_(pc.is_valid(batch[vector]), pc.is_valid(batch[key])))
                if not len(batch):
                    continue
                vectors = _matrix(batch[vector], str(part))
                width = width or vectors.shape[1]
                if vectors.shape[1] != width:
                    raise SailError(f"{part}: a vector has {vectors.shape[1]} numbers, and the first has {width}.")
                yield batch[key].cast(pa.string()).to_pylist(), vectors


def _matrix(column: pa.Array, file: str) -> np.ndarray:
    flat = column.flatten().cast(pa.float32())
    if len(flat) % len(column) or flat.null_count:
        raise SailError(f"{file}: vectors have gaps or differ in width; write all with the same number of numbers.")
    if not _is_fixed(column) and pc.count_distinct(pc.list_value_length(column)).as_py() > 1:
        raise SailError(f"{file}: vectors differ in width; write all with the same number of numbers.")
    return flat.to_numpy(zero_copy_only=False).reshape(len(column), -1)


def _is_fixed(column: pa.Array) -> bool:
    return pa.types.is_fixed_size_list(column.type)
