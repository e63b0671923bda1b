"""A folder of embeddings: Parquet parts of ids and vectors, and a description of how they were made.

FOLDER/
  embeddings.json        written last: how the vectors were made and are stored
  part-00000.parquet     `id` (string), `vector` (a list of fixed length)

Axis letters: N rows, D width, W stored numbers of a row.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Float32, Int64, Shaped

from sail_jax.buckets import fetch, opened, place
from sail_jax.config.schema import to_dict
from sail_jax.config.storage import VECTOR_DTYPES
from sail_jax.errors import SailError
from sail_jax.files import commit_json, partial_file
from sail_jax.vectors.unit import unit_rows

_MARKER = "embeddings.json"
_FORMAT = {"format": "sail_jax embeddings", "version": 1}
# int8 stores entries of a unit vector as 127 from this many standard deviations, 1 / sqrt(D), on; few are larger.
_CUT = 4.0
_ROW_GROUP = 16_384


@dataclasses.dataclass(frozen=True)
class EmbeddingInfo:
    """How the embeddings of a folder were made and are stored.

    Attributes:
        model: name of the model: its run directory or export.
        fingerprint: hash of its parameters (`runs.fingerprint`); vectors of different models cannot be compared.
        dims: D, the number of leading dimensions that are kept.
        dtype: storage type, one of `VECTOR_DTYPES`.
        modalities: modalities of the items that were shown to the model.
        fields: text fields that were shown to the model.
        instruction: the system prompt.
    """

    model: str
    fingerprint: str
    dims: int
    dtype: str
    modalities: str
    fields: tuple[str, ...]
    instruction: str


def encode_vectors(z: Float[np.ndarray, "N D"], dtype: str) -> Shaped[np.ndarray, "N W"]:
    """Returns normalised vectors in a storage type.

    Args:
        z: vectors of any length, which are normalised first; rows of zeros stay zero.
        dtype: "float32"; "bfloat16"; "int8", in steps of 4 / (127 sqrt(D)); "binary", the signs, eight in a byte.

    Returns:
        float32, uint16 (the bits of bfloat16) or int8, W = D; or uint8, W = D / 8.

    Raises:
        SailError: an unknown type, or a D that is not a multiple of 8 for "binary".
    """
    unit, dims = unit_rows(z), z.shape[1]
    if dtype == "float32":
        return unit
    if dtype == "bfloat16":
        return unit.astype(ml_dtypes.bfloat16).view(np.uint16)
    if dtype == "int8":
        return np.clip(np.rint(unit * (127 * np.sqrt(dims) / _CUT)), -127, 127).astype(np.int8)
    if dtype != "binary":
        raise SailError(f"Embeddings cannot be stored as {dtype!r}; choose one of {', '.join(VECTOR_DTYPES)}.")
    if dims % 8:
        raise SailError(f"Binary embeddings need a width that is a multiple of 8, not {dims}.")
    return np.packbits(unit > 0, axis=1)


def decode_vectors(stored: Shaped[np.ndarray, "N W"], dtype: str) -> Float32[np.ndarray, "N D"]:
    """Inverts `encode_vectors` up to rounding.

    Returns:
        Unit vectors; rows of zeros stay zero, except for "binary".
    """
    if dtype == "bfloat16":
        stored = stored.view(ml_dtypes.bfloat16)
    elif dtype == "binary":
        stored = np.unpackbits(stored, axis=1).astype(np.float32) * 2 - 1
    return unit_rows(stored.astype(np.float32))


def write_part(
    path: Path,
    ids: Sequence[str],
    z: Float[np.ndarray, "N D"],
    dtype: str,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Writes one Parquet part atomically: the file appears when it is complete.

    Args:
        path: the file.
        ids: one id per row.
        z: the vectors; see `encode_vectors`.
        dtype: storage type.
        notes: further entries of the schema's metadata, for `read_notes`.
    """
    empty = encode_vectors(z[:0], dtype)
    width = empty.shape[1]
    vector = pa.list_(pa.from_numpy_dtype(empty.dtype), width)
    schema = pa.schema([("id", pa.string()), ("vector", vector)], dict(notes or {}))
    with partial_file(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        for at in range(0, len(ids), _ROW_GROUP):  # one row group at a time, to avoid a second copy of all vectors
            stored = encode_vectors(z[at : at + _ROW_GROUP], dtype)
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(stored.ravel()), width)
            some = pa.array(ids[at : at + _ROW_GROUP], pa.string())
            writer.write_table(pa.table([some, vectors], schema=schema))


def read_notes(path: Path) -> dict[str, str]:
    """Returns the notes of a part; of one in a bucket, only its footer is read."""
    with opened(path) as file:
        metadata = pq.read_schema(file).metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items()}


def part_path(folder: Path, number: int) -> Path:
    """Returns the path of part `number`."""
    return folder / f"part-{number:05d}.parquet"


def write_info(folder: Path, info: EmbeddingInfo) -> None:
    """Marks a folder as complete."""
    commit_json(folder / _MARKER, _FORMAT | to_dict(info), shared=True, ensure_ascii=False)


def is_complete(folder: Path) -> bool:
    """Returns whether a folder is marked as complete."""
    fetch(folder / _MARKER)
    return (folder / _MARKER).is_file()


class EmbeddingSet:
    """A complete folder of embeddings, opened for reading.

    Args:
        folder: the folder.

    Raises:
        SailError: it is missing, unfinished, or of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = place(folder)
        fetch(self.path)
        marker = self.path / _MARKER
        if not is_complete(self.path):
            raise SailError(
                f"{self.path} holds no complete embeddings (no {_MARKER}): "
                "name the --output of `embed`, or run it again."
            )
        fields = json.loads(marker.read_text(encoding="utf-8"))
        if {key: fields.pop(key, None) for key in _FORMAT} != _FORMAT:
            raise SailError(f"{marker} is of another format or version; embed again.")
        self.info = EmbeddingInfo(**fields | {"fields": tuple(fields["fields"])})
        # Sort by number; numbers from 100,000 on have more than five digits.
        self._parts = sorted(self.path.glob("part-*.parquet"), key=lambda part: (len(part.name), part.name))
        self._rows = sum(pq.ParquetFile(part).metadata.num_rows for part in self._parts)

    def __len__(self) -> int:
        return self._rows

    def batches(self, size: int = 16_384) -> Iterator[tuple[list[str], Float32[np.ndarray, "N D"]]]:
        """Yields all rows in order, as (ids, unit vectors) of at most `size` rows."""
        for part in self._parts:
            for batch in pq.ParquetFile(part).iter_batches(size):
                stored = batch["vector"].flatten().to_numpy(zero_copy_only=False)
                stored = stored.reshape(len(batch), -1)
                yield batch["id"].to_pylist(), decode_vectors(stored, self.info.dtype)

    def load(self) -> tuple[list[str], Float32[np.ndarray, "N D"]]:
        """Returns all ids and unit vectors."""
        ids: list[str] = []
        z = np.zeros((len(self), self.info.dims), np.float32)
        for some, part in self.batches():
            z[len(ids) : len(ids) + len(some)] = part
            ids += some
        return ids, z

    def sample(
        self, count: int, seed: int, batches: Iterable[tuple[list[str], Float32[np.ndarray, "_ D"]]] | None = None
    ) -> tuple[Int64[np.ndarray, " N"], Float32[np.ndarray, "N D"]]:
        """Draws rows without replacement, in one pass over the folder, deterministically by the seed.

        Args:
            count: number of rows to draw; all rows if there are fewer.
            seed: seed of the draw.
            batches: the batches of this folder, if the caller wraps them (for a progress bar, or to cut the width).

        Returns:
            rows: indices of the rows, ascending.
            z: vectors of these rows.
        """
        chosen = np.random.default_rng(seed).choice(len(self), min(count, len(self)), replace=False, shuffle=False)
        chosen.sort()
        drawn, start = np.zeros((0, self.info.dims), np.float32), 0
        for ids, z in self.batches() if batches is None else batches:
            if start == 0:
                drawn = np.zeros((len(chosen), z.shape[1]), np.float32)
            first, last = np.searchsorted(chosen, [start, start + len(ids)])
            drawn[first:last] = z[chosen[first:last] - start]
            start += len(ids)
        return chosen, drawn

    def require_model(self, fingerprint: str, *, what: str) -> None:
        """Raises an error unless the vectors come from the model with this fingerprint.

        Args:
            fingerprint: fingerprint of the expected model.
            what: names the model, or the files made with it, in the message.

        Raises:
            SailError: the vectors come from another model.
        """
        if fingerprint != self.info.fingerprint:
            raise SailError(
                f"{self.path} holds vectors of another model ({self.info.model}, fingerprint {self.info.fingerprint}) "
                f"than {what} (fingerprint {fingerprint}); embed the items with that model."
            )
