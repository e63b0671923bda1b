"""Searches an embedding folder: exactly on the devices, or by a shortlist that is reranked.

The classes here and `faiss_index.FaissIndex` share one interface: the width `dims`, the `ids` of the vectors,
`nearest(z, k)`, `position(id)` and `vectors(positions)`.

Axis letters: Q queries, N vectors, D width, K results, S shortlist.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sail_jax.errors import SailError
from sail_jax.search.faiss_index import FaissIndex
from sail_jax.vectors.embedding_set import EmbeddingSet
from sail_jax.vectors.score_blocks import TargetBlocks, fits_on_devices
from sail_jax.vectors.top_k import top_k_of
from sail_jax.vectors.unit import unit_rows


class ExactSearch:
    """Exact search on the devices, block by block.

    The host holds the vectors as float32. The first search copies them to the devices, where they stay if they fit
    (`fits_on_devices`); otherwise every search copies them again.

    Args:
        embeddings: the vectors that are searched.
        block: vectors scored at a time.
    """

    def __init__(self, embeddings: EmbeddingSet, *, block: int) -> None:
        ids, self._z = embeddings.load(finite=True)
        self.ids: pa.Array = pa.array(ids, pa.large_string())
        self.dims, self._block = embeddings.info.dims, block
        self._blocks: dict[int, TargetBlocks] = {}  # keyed by the number of leading dimensions

    def __len__(self) -> int:
        return len(self._z)

    def nearest(self, z: np.ndarray, k: int, *, dims: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns the vectors with the highest cosine to each query; ties go to the lower row.

        Args:
            z: [Q, D] float32, of any norm; a row of zeros finds nothing.
            k: results per query.
            dims: number of leading dimensions that are compared; None for all.

        Returns:
            rows: [Q, k] int64, highest cosine first; -1 where there are fewer than k.
            cosines: [Q, k] float32; -inf there.
        """
        dims = self.dims if dims is None else dims
        if dims not in self._blocks:
            cut = self._z[:, :dims]
            self._blocks[dims] = TargetBlocks(cut, cut.any(axis=-1), self._block, held=fits_on_devices(cut))
        return top_k_of(z[:, :dims], self._blocks[dims], k)

    def position(self, item_id: str) -> int:
        """Returns the row of an item, -1 if it is unknown."""
        return pc.index(self.ids, pa.scalar(item_id, pa.large_string())).as_py()

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """Returns the unit vectors of some rows, [n, D] float32."""
        return self._z[positions]


class ShortlistSearch:
    """A shortlist from a cheap search, reranked by the full vectors.

    The shortlist comes from an exact search by the leading dimensions, or from an index, possibly of fewer dimensions.
    Source: adaptive retrieval, arXiv 2205.13147, sec. 4.3.

    Args:
        exact: the full vectors.
        size: S, length of the shortlist; at least the number of results that are asked for.
        dims: number of leading dimensions that the shortlist is searched by; 0 with an index.
        index: index that the shortlist is searched by instead.

    Raises:
        SailError: the dims do not fit the vectors, or the index was built from other embeddings.
    """

    def __init__(self, exact: ExactSearch, size: int, *, dims: int = 0, index: FaissIndex | None = None) -> None:
        if size < 1:
            raise SailError("A shortlist must hold at least one item.")
        if index is None and not 0 < dims <= exact.dims:
            raise SailError(f"A shortlist by {dims} dimensions cannot be made of vectors with {exact.dims}.")
        if index is not None and dims:
            raise SailError(
                "A shortlist is made by an index or by the first dimensions of the vectors: name one of them."
            )
        if index is not None and not (index.dims <= exact.dims and _same_ids(index, exact)):
            raise SailError(f"The index {index.path} is not of these embeddings; build it again with `index`.")
        self._exact, self._size, self._dims, self._index = exact, size, dims, index
        self.ids, self.dims = exact.ids, exact.dims
        self.position, self.vectors = exact.position, exact.vectors

    def __len__(self) -> int:
        return len(self._exact)

    def nearest(self, z: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the vectors of the shortlist with the highest cosines; see `ExactSearch.nearest`."""
        z = unit_rows(z)
        rows = self._shortlist(z, min(max(self._size, k), len(self)))
        cosines = np.full(rows.shape, -np.inf, np.float32)
        for query, found, scores in zip(z, rows, cosines, strict=True):
            there = found >= 0
            scores[there] = self._exact.vectors(found[there]) @ query
        order = np.lexsort((rows, -cosines))[:, :k]  # ties go to the lower row
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(cosines, order, axis=1)

    def _shortlist(self, z: np.ndarray, size: int) -> np.ndarray:
        """Returns [Q, S] int64 rows in any order; -1 where there are fewer."""
        if self._index is None:
            return self._exact.nearest(z, size, dims=self._dims)[0]
        positions, _ = self._index.nearest(z[:, : self._index.dims], size)
        return np.where(positions >= 0, self._index.rows[positions], -1)


def _same_ids(index: FaissIndex, exact: ExactSearch) -> bool:
    return index.info.rows == len(exact) and index.ids.equals(exact.ids.take(pa.array(index.rows)))
