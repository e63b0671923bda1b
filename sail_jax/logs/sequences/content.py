"""Finds the pairs of items whose content embeddings are close, with numpy.

The engine gives pairs of codes, the rows of the embeddings in a scratch file, and gets those that are close. What is in
memory does not grow with items or pairs.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sail_jax.errors import SailError
from sail_jax.logs.vector_files import read_vectors
from sail_jax.vectors.embedding_set import EmbeddingSet, is_complete
from sail_jax.vectors.unit import unit_rows

# The columns of the tables "vectors" and "close", as types of Ibis.
VECTORS = {"item": "string", "code": "int64"}
CLOSE = {"item_code": "int64", "target_code": "int64"}
_AT_ONCE = 8192  # pairs whose vectors are in memory


def write_vectors(path: Path, ids: Path, numbers: Path) -> np.ndarray:
    """Writes content embeddings in a form that can be looked up by code.

    Args:
        path: a folder written by `embed`, or Parquet of `id` (or `item_id`) and `vector`, or a folder of its parts.
        ids: the Parquet file of `VECTORS`; items without a vector, or with one of zeros, are not in it.
        numbers: the file of the vectors.

    Returns:
        [N, D] float32 unit vectors, on disk; the code of an item is its row.

    Raises:
        SailError: there are no vectors, or they cannot be read.
    """
    batches = EmbeddingSet(path).batches(finite=True) if is_complete(path) else read_vectors(path, "--embeddings")
    schema, start, width = pa.schema([("item", pa.string()), ("code", pa.int64())]), 0, 0
    with numbers.open("wb") as file, pq.ParquetWriter(ids, schema) as writer:
        for names, vectors in batches:
            width = vectors.shape[1]
            known = np.flatnonzero(vectors.any(1))
            named = [pa.array(names, pa.string()).take(pa.array(known)), pa.array(start + known)]
            writer.write_table(pa.table(named, schema=schema))
            file.write(np.ascontiguousarray(unit_rows(vectors), np.float32).tobytes())
            start += len(names)
    if not start:
        raise SailError(f"{path} holds no vectors: embed the items, or leave out --embeddings.")
    return np.memmap(numbers, np.float32, mode="r", shape=(start, width))


def write_close(pairs: Iterable[pa.Table], rows: np.ndarray, cosine: float, path: Path) -> None:
    """Writes the pairs of codes whose cosine is at least `cosine`, a Parquet file of `CLOSE`."""
    schema = pa.schema([(name, pa.int64()) for name in CLOSE])
    with pq.ParquetWriter(path, schema) as writer:
        for table in pairs:
            for start in range(0, len(table), _AT_ONCE):
                some = table.select(list(CLOSE)).slice(start, _AT_ONCE)
                items, targets = (column.to_numpy() for column in some.columns)
                found = np.einsum("pd,pd->p", rows[items], rows[targets], dtype=np.float64)
                writer.write_table(some.filter(pa.array(found >= cosine)).cast(schema))
