"""A folder of embeddings: Parquet parts of ids and vectors, and a description of how they were made.

FOLDER/
  embeddings.json        written last: how the vectors were made and are stored
  part-00000.parquet     `id` (string), `vector` (a list of fixed length), with a checksum of every page

Axis letters: N rows, D width, W stored numbers of a row.
"""

import contextlib
import dataclasses
import fnmatch
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Float32, Int64, Shaped

from sail_jax.buckets import fetch, names, opened, place
from sail_jax.config.schema import build_settings, to_dict
from sail_jax.config.storage import VECTOR_DTYPES
from sail_jax.errors import SailError
from sail_jax.files import commit_json, partial_file
from sail_jax.vectors.unit import unit_rows

_MARKER, _PARTS = "embeddings.json", "part-*.parquet"
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
    vector = _vector_type(z.shape[1], dtype)
    schema = pa.schema([("id", pa.string()), ("vector", vector)], dict(notes or {}))
    with partial_file(path) as partial, pq.ParquetWriter(partial, schema, write_page_checksum=True) as writer:
        for at in range(0, len(ids), _ROW_GROUP):  # one row group at a time, to avoid a second copy of all vectors
            stored = encode_vectors(z[at : at + _ROW_GROUP], dtype)
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(stored.ravel()), type=vector)
            some = pa.array(ids[at : at + _ROW_GROUP], pa.string())
            writer.write_table(pa.table([some, vectors], schema=schema))


def _vector_type(dims: int, dtype: str) -> pa.DataType:
    """Returns the type of a column of stored vectors."""
    empty = encode_vectors(np.zeros((0, dims), np.float32), dtype)
    return pa.list_(pa.from_numpy_dtype(empty.dtype), empty.shape[1])


@contextlib.contextmanager
def _readable(part: Path) -> Iterator[None]:
    """Turns errors of reading a part into messages that name it."""
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise SailError(f"{part} is damaged ({reason}); copy it again, or remove it and embed again.") from error


def read_notes(path: Path) -> dict[str, str]:
    """Returns the notes of a part; of one in a bucket, only its footer is read.

    Raises:
        SailError: the part is damaged.
    """
    with _readable(path), opened(path) as file:
        metadata = pq.read_schema(file).metadata or {}
        return {key.decode(): value.decode() for key, value in metadata.items()}


def part_path(folder: Path, number: int) -> Path:
    """Returns the path of part `number`."""
    return folder / f"part-{number:05d}.parquet"


def write_info(folder: Path, info: EmbeddingInfo) -> None:
    """Marks a folder with all its parts as complete."""
    values = _FORMAT | to_dict(info) | {"parts": len(fnmatch.filter(names(folder), _PARTS))}
    commit_json(folder / _MARKER, values, shared=True, ensure_ascii=False)


def read_info(fields: Any) -> EmbeddingInfo:
    """Returns the description in some values of a JSON file.

    Raises:
        SailError: a value is missing or wrong; the message names no file.
    """
    try:
        info = build_settings(EmbeddingInfo, fields, "embeddings")
        if info.dims < 1:
            raise ValueError(f"dims is {info.dims}")
        encode_vectors(np.zeros((0, info.dims), np.float32), info.dtype)
    except (TypeError, ValueError) as error:
        raise SailError(f"A value is missing or wrong ({error}).") from error
    return info


def is_complete(folder: Path) -> bool:
    """Returns whether a folder is marked as complete."""
    fetch(folder / _MARKER)
    return (folder / _MARKER).is_file()


class EmbeddingSet:
    """A complete folder of embeddings, opened for reading.

    Args:
        folder: the folder.

    Raises:
        SailError: it is missing, unfinished, damaged, or of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = place(folder)
        fetch(self.path)
        marker = self.path / _MARKER
        if not is_complete(self.path):
            raise SailError(
                f"{self.path} holds no complete embeddings (no {_MARKER}). `sail-jax embed --workdir RUN --output "
                f"{self.path}` writes them, or goes on where it was stopped; or name the --output of another `embed`."
            )
        try:
            fields = json.loads(marker.read_text(encoding="utf-8"))
            found = {key: fields.pop(key, None) for key in _FORMAT}
            count = fields.pop("parts", None)  # version 0.1 did not write it
            info = read_info(fields) if found == _FORMAT else None
        except (SailError, ValueError, TypeError, AttributeError, RecursionError):
            info = None
        if info is None:
            raise SailError(f"{marker} is damaged, or of another format or version; embed again.")
        self.info = info
        # Sort by number; numbers from 100,000 on have more than five digits.
        self._parts = sorted(self.path.glob(_PARTS), key=lambda part: (len(part.name), part.name))
        if count is not None and count != len(self._parts):
            raise SailError(
                f"{self.path} holds {len(self._parts)} parts, and {marker.name} says {count}; copy the folder again, "
                "or embed again, which writes what is missing."
            )
        self._rows = sum(map(self._count, self._parts))

    def __len__(self) -> int:
        return self._rows

    def _count(self, part: Path) -> int:
        """Returns the number of rows of a part, whose columns are checked."""
        with _readable(part):
            metadata = pq.read_metadata(part)
            schema = metadata.schema.to_arrow_schema()
        wanted = {"id": pa.string(), "vector": _vector_type(self.info.dims, self.info.dtype)}
        for name, dtype in wanted.items():
            place = schema.get_field_index(name)  # -1 also for a name that comes twice
            if place < 0 or schema.field(place).type != dtype:
                found = f"is {schema.field(place).type}" if place >= 0 else "is missing, or there twice"
                raise SailError(
                    f"{part}: the column {name!r} {found}, and {self.path / _MARKER} says {dtype}; embed again."
                )
        return metadata.num_rows

    def batches(
        self, size: int = 16_384, *, finite: bool = False
    ) -> Iterator[tuple[list[str], Float32[np.ndarray, "N D"]]]:
        """Yields all rows in order, as (ids, unit vectors) of at most `size` rows.

        Args:
            size: most rows at once.
            finite: whether all vectors must be finite; otherwise the caller looks itself.

        Raises:
            SailError: a part is damaged, or a row has no id, no vector, or one that is not finite.
        """
        for part in self._parts:
            start = 0
            with _readable(part), pq.ParquetFile(part, page_checksum_verification=True) as file:
                for batch in file.iter_batches(size, columns=["id", "vector"]):
                    ids, numbers = batch["id"].to_pylist(), batch["vector"].flatten()
                    if batch["id"].null_count or batch["vector"].null_count or numbers.null_count:
                        raise SailError(f"{part} has rows without an id or with gaps in the vector; embed again.")
                    z = decode_vectors(numbers.to_numpy().reshape(len(batch), -1), self.info.dtype)
                    if finite and not np.isfinite(z).all():
                        row = int(np.flatnonzero(~np.isfinite(z).all(axis=1))[0])
                        raise SailError(
                            f"{part}: the vector of row {start + row + 1} ({ids[row]!r}) is not finite; embed again."
                        )
                    start += len(ids)
                    yield ids, z

    def load(self, *, finite: bool = False) -> tuple[list[str], Float32[np.ndarray, "N D"]]:
        """Returns all ids and unit vectors; arguments and errors as of `batches`."""
        ids: list[str] = []
        z = np.zeros((len(self), self.info.dims), np.float32)
        for some, part in self.batches(finite=finite):
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
                f"than {what} (fingerprint {fingerprint}); embed the items with that model. A run has another "
                "fingerprint at each step."
            )
