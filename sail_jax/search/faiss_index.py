"""Builds a faiss index file from a folder of embeddings, and searches it.

    FILE                 the index, as faiss writes it (`faiss.read_index`)
    FILE.ids.parquet     `id` (string) and `row` of the embedding folder (int64) of every vector, in index order
    FILE.json            written last: kind, parameters, the model that made the vectors, and a digest of both files

Scores are cosines: inner products of unit vectors. Rows of zeros, items that could not be embedded, are not indexed.

Axis letters: Q queries, N vectors, D width, K results.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sail_jax.config.schema import build_settings
from sail_jax.config.search import INDEX_KINDS
from sail_jax.errors import SailError
from sail_jax.files import commit_json, partial_file
from sail_jax.progress import Progress
from sail_jax.vectors.embedding_set import EmbeddingSet
from sail_jax.vectors.unit import unit_rows

_FORMAT = {"format": "sail_jax index", "version": 1}
_IDS = pa.schema([("id", pa.large_string()), ("row", pa.int64())])
_BITS = 8  # of a code of product quantization, so that a byte holds it
# Rows per centroid below which faiss warns that k-means has too little data.
_POINTS_PER_CENTROID = 39
_TRAINING_ROWS = 65_536
_NPROBE, _EF_SEARCH = 32, 128


@dataclasses.dataclass(frozen=True)
class IndexSettings:
    """Settings of an index; 0 takes a default that depends on the embeddings.

    Attributes:
        kind: "flat" (exact), "ivfpq" (compressed: inverted lists with product quantization) or "hnsw" (a graph).
        dims: number of leading dimensions that are indexed.
        nlist: inverted lists of "ivfpq"; by default 4 sqrt(N), at most one per 39 vectors.
        m: bytes per vector of "ivfpq", a divisor of the dims; by default the largest divisor up to dims / 4.
        hnsw_m: links per vector in the graph of "hnsw"; by default 32.
        ef_construction: candidates that "hnsw" considers when it adds a vector; by default 200.
        seed: of the training sample of "ivfpq" and of its k-means.
    """

    kind: str = "flat"
    dims: int = 0
    nlist: int = 0
    m: int = 0
    hnsw_m: int = 0
    ef_construction: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises SailError on an unknown kind, a negative value, or one that the kind does not read."""
        if self.kind not in INDEX_KINDS:
            raise SailError(f"There is no kind of index {self.kind!r}; choose one of {', '.join(INDEX_KINDS)}.")
        for name, kind in (("nlist", "ivfpq"), ("m", "ivfpq"), ("hnsw_m", "hnsw"), ("ef_construction", "hnsw")):
            if getattr(self, name) and kind != self.kind:
                raise SailError(f"{name} is a parameter of {kind} indexes, and this one is {self.kind}: leave it out.")
        negative = [name for name, value in dataclasses.asdict(self).items() if name != "kind" and value < 0]
        if negative:
            raise SailError(f"{negative[0]} of an index cannot be negative.")
        if self.hnsw_m == 1:
            raise SailError("hnsw_m is 1, which gives a disconnected graph; take 2 or more.")


@dataclasses.dataclass(frozen=True)
class IndexInfo:
    """The content of FILE.json.

    Attributes:
        kind: one of `INDEX_KINDS`.
        parameters: those of `IndexSettings` that the kind reads.
        dims: width of the indexed vectors, the leading dimensions of the embeddings.
        count: number of vectors.
        rows: number of rows of the embedding folder, rows of zeros included.
        model: name of the model.
        fingerprint: fingerprint of its parameters.
        modalities: modalities of the items that were shown.
        fields: text fields that were shown.
        instruction: the system prompt.
        digest: of the index and its ids, which are read only if they have it; empty in those of version 0.1.
    """

    kind: str
    parameters: dict[str, int]
    dims: int
    count: int
    rows: int
    model: str
    fingerprint: str
    modalities: str
    fields: tuple[str, ...]
    instruction: str
    digest: str = ""


def build_index(embeddings: EmbeddingSet, path: Path, settings: IndexSettings) -> IndexInfo:
    """Trains an index, adds the vectors part by part, and writes it, with progress.

    Memory holds the index and, for "ivfpq", its training sample.

    Args:
        embeddings: the vectors.
        path: the index file; an existing one is replaced.
        settings: kind and parameters.

    Returns:
        The content of FILE.json.

    Raises:
        SailError: too few vectors for the kind, parameters that do not fit them, or `path` is a folder.
    """
    dims = _dims(settings, embeddings)
    if path.is_dir():
        raise SailError(f"{path} is a folder; name the index file that is written, for example {path / 'items.faiss'}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    marker, ids = _marker(path), _ids_path(path)
    with partial_file(path) as partial, partial_file(ids) as partial_ids:
        with Progress() as progress, pq.ParquetWriter(partial_ids, _IDS) as writer:
            index, parameters = _empty_index(embeddings, dims, settings, progress)
            for start, names, z in _rows(embeddings, dims, progress, f"{path.name}: filling"):
                kept = np.flatnonzero(z.any(axis=1))
                index.add(z[kept])
                columns = [pa.array(names, pa.large_string()).take(kept), pa.array(start + kept)]
                writer.write_table(pa.table(columns, schema=_IDS))
        faiss.write_index(index, str(partial))
        # FILE.json goes first and comes back last, so that files of an old and a new index are never mixed.
        marker.unlink(missing_ok=True)
    of = embeddings.info
    info = IndexInfo(
        kind=settings.kind,
        parameters=parameters,
        dims=dims,
        count=index.ntotal,
        rows=len(embeddings),
        model=of.model,
        fingerprint=of.fingerprint,
        modalities=of.modalities,
        fields=of.fields,
        instruction=of.instruction,
        digest=_digest(path),
    )
    commit_json(marker, _FORMAT | dataclasses.asdict(info), ensure_ascii=False)
    return info


def _marker(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _ids_path(path: Path) -> Path:
    return path.with_name(path.name + ".ids.parquet")


def _dims(settings: IndexSettings, embeddings: EmbeddingSet) -> int:
    width = embeddings.info.dims
    if settings.dims > width:
        raise SailError(f"{embeddings.path} holds {width} dimensions; {settings.dims} of them cannot be indexed.")
    if not len(embeddings):
        raise SailError(f"{embeddings.path} holds no vectors; embed some items first.")
    return settings.dims or width


def _rows(
    embeddings: EmbeddingSet, dims: int, progress: Progress, what: str
) -> Iterator[tuple[int, list[str], np.ndarray]]:
    """(first row, ids, [n, dims] float32 of unit length), with progress."""
    task, start = progress.add_task(what, total=len(embeddings)), 0
    for ids, z in embeddings.batches(finite=True):
        yield start, ids, z if dims == z.shape[1] else unit_rows(z[:, :dims])
        start += len(ids)
        progress.update(task, completed=start)


def _empty_index(
    embeddings: EmbeddingSet, dims: int, settings: IndexSettings, progress: Progress
) -> tuple[faiss.Index, dict[str, int]]:
    """A trained index without vectors, and its parameters."""
    if settings.kind == "flat":
        return faiss.IndexFlatIP(dims), {}
    if settings.kind == "hnsw":
        links, depth = settings.hnsw_m or 32, settings.ef_construction or 200
        index = faiss.IndexHNSWFlat(dims, links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = depth
        return index, {"hnsw_m": links, "ef_construction": depth}
    return _trained_ivfpq(embeddings, dims, settings, progress)


def _trained_ivfpq(
    embeddings: EmbeddingSet, dims: int, settings: IndexSettings, progress: Progress
) -> tuple[faiss.Index, dict[str, int]]:
    count = len(embeddings)
    m = settings.m or next(size for size in range(max(dims // 4, 1), 0, -1) if dims % size == 0)
    if dims % m:
        raise SailError(f"m is {m}, which does not divide the {dims} dimensions of the vectors; choose a divisor.")
    nlist = settings.nlist or max(1, min(int(4 * count**0.5), count // _POINTS_PER_CENTROID))
    batches = ((ids, z) for _, ids, z in _rows(embeddings, dims, progress, "drawing the training sample"))
    _, sample = embeddings.sample(max(_TRAINING_ROWS, _POINTS_PER_CENTROID * nlist), settings.seed, batches)
    sample = sample[sample.any(axis=1)]
    needed = max(1 << _BITS, nlist)
    if len(sample) < needed:
        raise SailError(
            f"{embeddings.path} holds {len(sample)} vectors, and ivfpq with {nlist} lists needs {needed} to train; "
            "take a flat index, or fewer lists."
        )
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(dims), dims, nlist, m, _BITS, faiss.METRIC_INNER_PRODUCT)
    for clustering in (index.cp, index.pq.cp):
        clustering.seed = settings.seed
        clustering.min_points_per_centroid = 1  # below 39 faiss warns; the user chose so few
    progress.console.print(f"Training {nlist} lists and {m} codebooks on {len(sample):,} vectors")
    index.train(sample)
    return index, {"nlist": nlist, "m": m, "seed": settings.seed}


class FaissIndex:
    """An index file opened for searching; safe to use from several threads.

    Args:
        path: the file that `build_index` wrote.
        nprobe: inverted lists that a query visits, for "ivfpq"; 0 for 32.
        ef_search: candidates that a query keeps while it walks the graph, for "hnsw"; 0 for 128; never below K.

    Raises:
        SailError: the index is missing, unfinished, damaged or of another format, or a parameter is not of its kind.
    """

    def __init__(self, path: str | Path, *, nprobe: int = 0, ef_search: int = 0) -> None:
        self.path = Path(path)
        self.info = _read_info(self.path)
        for name, value, kind in (("nprobe", nprobe, "ivfpq"), ("ef_search", ef_search, "hnsw")):
            if value and kind != self.info.kind:
                raise SailError(f"{name} is a parameter of {kind} indexes, and {self.path} is {self.info.kind}.")
            if value < 0:
                raise SailError(f"{name} cannot be negative.")
        self._nprobe, self._ef_search = nprobe or _NPROBE, ef_search or _EF_SEARCH
        try:
            # First of all: a damaged index may crash faiss, or find what is not there.
            if self.info.digest and _digest(self.path) != self.info.digest:
                raise SailError(
                    f"The index {self.path} or {_ids_path(self.path).name} is damaged, or of another index; build it "
                    "again with `index`."
                )
            self._index = faiss.read_index(str(self.path))
            table = pq.read_table(_ids_path(self.path), schema=_IDS)
        except (RuntimeError, OSError, MemoryError, pa.ArrowException) as error:
            raise SailError(f"The index {self.path} cannot be read ({error}); build it again with `index`.") from error
        if not self._index.ntotal == len(table) == self.info.count or self._index.d != self.info.dims:
            raise SailError(f"The index {self.path} and its ids do not belong together; build it again with `index`.")
        self.ids: pa.Array = table["id"].combine_chunks()
        self.rows: np.ndarray = table["row"].to_numpy()
        self._has_direct_map = self.info.kind != "ivfpq"

    @property
    def dims(self) -> int:
        """Width D of the vectors."""
        return self.info.dims

    def __len__(self) -> int:
        return self.info.count

    def nearest(self, z: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the vectors that the index finds near each query.

        Args:
            z: [Q, D] float32, any length of rows; a row of zeros finds nothing.
            k: results per query.

        Returns:
            positions: [Q, k] int64 in the index, highest score first; -1 where there are fewer than k.
            cosines: [Q, k] float32, approximate for "ivfpq"; -inf there.
        """
        unit = unit_rows(z)
        scores, positions = self._index.search(unit, k, params=self._search_parameters(k))
        positions[~unit.any(axis=1)] = -1
        return positions, np.where(positions >= 0, scores, -np.inf).astype(np.float32)

    def position(self, item_id: str) -> int:
        """Returns the position of an item in the index, -1 if it is unknown."""
        return pc.index(self.ids, pa.scalar(item_id, pa.large_string())).as_py()

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """[n, D] float32, the vectors at some positions; approximate for "ivfpq"."""
        if not self._has_direct_map:  # 8 bytes per vector, built when it is first needed
            self._index.make_direct_map()
            self._has_direct_map = True
        return unit_rows(np.stack([self._index.reconstruct(int(position)) for position in positions]))

    def _search_parameters(self, k: int) -> Any:
        if self.info.kind == "ivfpq":
            return faiss.SearchParametersIVF(nprobe=self._nprobe)
        if self.info.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=max(self._ef_search, k))
        return None


def _digest(path: Path) -> str:
    """Returns the digest of the two files of an index."""
    both = hashlib.sha256()
    for file in (path, _ids_path(path)):
        with file.open("rb") as stream:
            both.update(hashlib.file_digest(stream, "sha256").digest())
    return both.hexdigest()


def _read_info(path: Path) -> IndexInfo:
    marker = _marker(path)
    if not marker.is_file():
        raise SailError(
            f"{path} is no complete index (no {marker.name}): name the --output of `index`, or run it again."
        )
    try:
        fields = json.loads(marker.read_text(encoding="utf-8"))
        found = {key: fields.pop(key, None) for key in _FORMAT}
        info = build_settings(IndexInfo, fields, "index") if found == _FORMAT else None
    except (SailError, ValueError, TypeError, AttributeError, RecursionError):
        info = None
    if info is None or info.kind not in INDEX_KINDS:
        raise SailError(f"{marker} is damaged, or of another format or version; build the index again.")
    return info
