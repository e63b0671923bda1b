"""Fits codebooks that turn vectors into short sequences of codes (arXiv 2510.12709, sec. 4.4.6).

FOLDER/
  codebooks.safetensors  `level_0`, `level_1`, ... [K, W] float32; the parameters of encoder and decoder, if any
  semantic_ids.json      written last: settings of the fit, and the model of the vectors
  utilisation.png        how often each code is used

Axes: N rows, D width of the vectors, W width that is quantised, K codes of a level, L levels.
"""

import dataclasses
import hashlib
import json
import operator
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from sail_jax.config.schema import to_dict
from sail_jax.config.semantic_ids import ANCHORS, METHODS, SAMPLES, VQSettings
from sail_jax.errors import SailError
from sail_jax.files import commit_bytes, commit_json, written_before
from sail_jax.progress import Progress, track
from sail_jax.semantic_ids.metrics import Anchors, Meter
from sail_jax.semantic_ids.report import draw_frequencies
from sail_jax.semantic_ids.residual_kmeans import quantize, reconstruct, residual_kmeans
from sail_jax.semantic_ids.residual_vq import Autoencoder, apply, fit_residual_vq
from sail_jax.vectors.embedding_set import EmbeddingInfo, EmbeddingSet, read_info
from sail_jax.vectors.kmeans import residual_kmeans as kmeans_on_devices
from sail_jax.vectors.unit import unit_rows

NEIGHBOURS = 10
KMEANS_ROUNDS = 25
_BATCH = 16_384
_MARKER, _CODEBOOKS, _PICTURE = "semantic_ids.json", "codebooks.safetensors", "utilisation.png"
_FORMAT = {"format": "sail_jax semantic IDs", "version": 1}
_PARAMS = "params/"


@dataclasses.dataclass(frozen=True)
class CodebookInfo:
    """How codebooks were fitted, and for which vectors.

    Attributes:
        method: one of `METHODS`.
        levels: L sizes of codebooks.
        seed: seed of the fit.
        rows: number of vectors used in the fit.
        settings: settings of the method.
        fingerprint: fingerprint of the codebooks; IDs of different codebooks cannot be compared.
        vectors: the vectors that they quantise; vectors of another model are refused.
    """

    method: str
    levels: tuple[int, ...]
    seed: int
    rows: int
    settings: dict[str, Any]
    fingerprint: str
    vectors: EmbeddingInfo


class SemanticIds:
    """Codebooks that turn vectors into codes and codes into vectors. Any prefix of codes is a coarser ID.

    Args:
        info: how they were fitted.
        codebooks: L arrays [K, W] float32.
        params: parameters of encoder and decoder; empty if there are none.
        path: the folder they were read from, for messages.
    """

    def __init__(
        self, info: CodebookInfo, codebooks: Sequence[np.ndarray], params: dict[str, Any], path: Path | None = None
    ) -> None:
        self.info, self.path = info, path
        self._codebooks, self._params = list(codebooks), params
        width = codebooks[0].shape[1]
        self._autoencoder = Autoencoder(info.vectors.dims, width if params else 0)

    @property
    def levels(self) -> tuple[int, ...]:
        """Returns the L sizes of the codebooks."""
        return self.info.levels

    @property
    def codebooks(self) -> list[np.ndarray]:
        """Returns the codebooks, L arrays [K, W] float32."""
        return list(self._codebooks)

    @classmethod
    def load(cls, folder: str | Path) -> "SemanticIds":
        """Reads codebooks from a folder.

        Raises:
            SailError: they are missing, unfinished, damaged, or of another format.
        """
        path = Path(folder)
        marker = path / _MARKER
        if not marker.is_file():
            raise SailError(
                f"{path} has no complete codebooks (no {_MARKER}): name the --output of `semantic-ids fit`, or run it "
                "again."
            )
        info = _read_info(marker)
        try:
            arrays = load_file(path / _CODEBOOKS)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise SailError(f"{path / _CODEBOOKS} cannot be read ({error}); fit again.") from error
        sizes = {f"level_{level}": size for level, size in enumerate(info.levels)}
        found = {name: len(array) for name, array in arrays.items() if not name.startswith(_PARAMS)}
        if _fingerprint(arrays) != info.fingerprint or found != sizes:
            raise SailError(f"{path / _CODEBOOKS} does not match {marker}; fit again.")
        codebooks = [arrays.pop(f"level_{level}") for level in range(len(info.levels))]
        flat = {name.removeprefix(_PARAMS): array for name, array in arrays.items()}
        return cls(info, codebooks, traverse_util.unflatten_dict(flat, sep="/"), path)

    def save(self, folder: str | Path, figures: dict[str, Any], request: dict[str, Any] | None = None) -> None:
        """Writes the codebooks to a folder.

        Args:
            folder: the folder.
            figures: figures to store with them, under "figures".
            request: what was asked for, to store with them; see `files.written_before`.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        commit_bytes(path / _CODEBOOKS, save(_arrays(self._codebooks, self._params)))
        everything = _FORMAT | (request or {}) | to_dict(self.info) | {"figures": figures}
        commit_json(path / _MARKER, everything, ensure_ascii=False, allow_nan=False)
        self.path = path

    def assign(self, z: np.ndarray) -> np.ndarray:
        """Returns the codes of vectors.

        Args:
            z: [N, D], any float type; normalised to unit length first.

        Returns:
            [N, L] int32.

        Raises:
            SailError: the width is wrong, or a row is not finite or all zeros.
        """
        if z.ndim != 2 or z.shape[1] != self.info.vectors.dims:
            raise SailError(
                f"The codebooks take vectors of shape (N, {self.info.vectors.dims}), not {z.shape}; embed at that "
                "width."
            )
        bad = np.flatnonzero(~usable(z))
        if len(bad):
            raise SailError(f"Vector {bad[0]} is not finite or all zeros, so it has no semantic ID; leave it out.")
        unit = unit_rows(z)
        return quantize(self._apply(unit, "encode"), self._codebooks)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Returns the vectors of codes, [N, D] float32, not of unit length.

        Args:
            codes: [N, l] integers, codes of the first l levels.

        Raises:
            SailError: there are no levels or too many, or a code is outside its codebook.
        """
        if codes.ndim != 2 or not 1 <= codes.shape[1] <= len(self.levels):
            raise SailError(f"Codes have the shape (N, 1 to {len(self.levels)}), not {codes.shape}.")
        for level in range(codes.shape[1]):
            if np.any((codes[:, level] < 0) | (codes[:, level] >= self.levels[level])):
                raise SailError(f"Level {level + 1} has the codes 0 to {self.levels[level] - 1}; one is outside.")
        return self._apply(reconstruct(codes, self._codebooks), "decode")

    def _apply(self, x: np.ndarray, method: str) -> np.ndarray:
        return np.asarray(apply(self._autoencoder, self._params, x, method)) if self._params else x

    def require(self, embeddings: EmbeddingSet) -> None:
        """Checks that embeddings have the model and the width that the codebooks were fitted on.

        Raises:
            SailError: the model or the width differs.
        """
        place = str(self.path or "unsaved")
        embeddings.require_model(self.info.vectors.fingerprint, what=f"the codebooks in {place}")
        if embeddings.info.dims != self.info.vectors.dims:
            raise SailError(
                f"{embeddings.path} has vectors of {embeddings.info.dims} dimensions, but the codebooks in {place} "
                f"were fitted on {self.info.vectors.dims}; embed the items at that width, or fit codebooks on these."
            )

    def meter(self, anchors: Anchors) -> Meter:
        """Returns a meter that measures the IDs of vectors, which are added in batches."""
        return Meter(self.levels, self.info.vectors.dims, self.decode, anchors)


def _read_info(marker: Path) -> CodebookInfo:
    """Returns how codebooks were fitted, by the JSON file beside them."""
    try:
        fields = json.loads(marker.read_text(encoding="utf-8"))
        if {key: fields.get(key) for key in _FORMAT} != _FORMAT:
            raise SailError(f"{marker} has another format or version; fit again.")
        given = {field.name: fields[field.name] for field in dataclasses.fields(CodebookInfo)}
        levels, vectors = tuple(map(operator.index, given["levels"])), read_info(given["vectors"])
        return CodebookInfo(**given | {"levels": levels, "vectors": vectors})
    except (SailError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, SailError) and str(marker) in str(error):
            raise
        raise SailError(f"{marker} is damaged ({error}); fit again.") from error


def usable(z: np.ndarray) -> np.ndarray:
    """Returns which rows are finite and not all zeros, [N] bool."""
    return np.isfinite(z).all(axis=1) & z.any(axis=1)


def draw_rows(embeddings: EmbeddingSet, count: int, seed: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Draws usable rows in one pass over the parts; the same rows for the same seed.

    Args:
        embeddings: the folder.
        count: number of rows to draw, of which those that are not `usable` are then left out.
        seed: seed of the draw.
        what: label of the progress bar.

    Returns:
        rows: [n] int64, ascending.
        z: [n, D] float32 of unit length.
    """
    rows, z = embeddings.sample(count, seed, track_parts(embeddings, what))
    kept = usable(z)
    return (rows, z) if kept.all() else (rows[kept], z[kept])


def track_parts(embeddings: EmbeddingSet, what: str) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yields the batches of a folder, with a progress bar of its vectors."""
    with Progress() as progress:
        task = progress.add_task(what, total=len(embeddings))
        for ids, z in embeddings.batches(_BATCH):
            yield ids, z
            progress.advance(task, len(ids))


def fit(
    z: np.ndarray,
    levels: Sequence[int],
    vectors: EmbeddingInfo,
    *,
    method: str = "kmeans",
    seed: int = 0,
    vq: VQSettings | None = None,
) -> SemanticIds:
    """Fits codebooks on vectors.

    Args:
        z: [N, D] float32 of unit length.
        levels: L sizes of codebooks.
        vectors: description of the vectors.
        method: "kmeans", residual k-means on the CPU (faiss); "device-kmeans", the same on the local devices
            (`vectors.kmeans`); or "vq", a learned residual VQ (`residual_vq`).
        seed: seed of all draws.
        vq: settings of "vq".

    Raises:
        SailError: there are fewer vectors than codes of a level, or the settings are wrong.
    """
    if not levels or min(levels) < 2:
        raise SailError(f"Codebooks need at least two codes, not {tuple(levels)}; give sizes such as 256,256,256.")
    if method == "kmeans":
        codebooks, params = residual_kmeans(z, levels, rounds=KMEANS_ROUNDS, seed=seed), {}
    elif method == "device-kmeans":
        codebooks, params = kmeans_on_devices(z, levels, rounds=KMEANS_ROUNDS, seed=seed)[0], {}
    elif method == "vq":
        codebooks, params = fit_residual_vq(z, levels, vq or VQSettings(), seed=seed)
    else:
        raise SailError(f"Unknown method {method!r} of fitting codebooks; choose one of {', '.join(METHODS)}.")
    fingerprint = _fingerprint(_arrays(codebooks, params))
    info = CodebookInfo(method, tuple(levels), seed, len(z), _settings_of(method, vq), fingerprint, vectors)
    return SemanticIds(info, codebooks, params)


def fit_folder(
    embeddings: EmbeddingSet,
    outputs: dict[Path, Sequence[int]],
    *,
    method: str = "kmeans",
    seed: int = 0,
    samples: int = SAMPLES,
    anchors: int = ANCHORS,
    vq: VQSettings | None = None,
) -> dict[Path, dict[str, Any]]:
    """Fits codebooks on a sample of a folder of embeddings, and writes them with their figures.

    The figures are those of the sample.

    Args:
        embeddings: the folder.
        outputs: folder to write -> sizes of its codebooks; all are fitted on the same sample.
        method: as in `fit`.
        seed: seed of all draws.
        samples: maximum size of the sample, which is held in memory.
        anchors: number of items whose nearest neighbours are compared.
        vq: as in `fit`.

    Returns:
        folder -> figures, as written to semantic_ids.json; those that are there, if the same command wrote them before.

    Raises:
        SailError: an output is of another command, or as for `fit`.
    """
    requests = {
        output: {"embeddings": str(embeddings.path), "of": len(embeddings), "samples": samples, "anchors": anchors}
        | {"method": method, "levels": list(levels), "seed": seed, "vectors": to_dict(embeddings.info)}
        | {"settings": _settings_of(method, vq)}
        for output, levels in outputs.items()
    }
    figures = {
        output: written_before(output / _MARKER, request, output)["figures"]
        for output, request in requests.items()
        if (output / _MARKER).exists() or output.is_file()
    }
    missing = [output for output in outputs if output not in figures]
    if missing:
        _, z = draw_rows(embeddings, samples, seed, "reading a sample")
    for output in missing:
        sids = fit(z, outputs[output], embeddings.info, method=method, seed=seed, vq=vq)
        figures[output] = _measure_and_save(sids, z, output, anchors, requests[output])
    return {output: figures[output] for output in outputs}


def _settings_of(method: str, vq: VQSettings | None) -> dict[str, Any]:
    return dataclasses.asdict(vq or VQSettings()) if method == "vq" else {"rounds": KMEANS_ROUNDS}


def _measure_and_save(
    sids: SemanticIds, z: np.ndarray, output: Path, anchors: int, request: dict[str, Any]
) -> dict[str, Any]:
    """Measures codebooks on the vectors [N, D] of the fit, writes them, and returns the figures."""
    rows = np.sort(np.random.default_rng(sids.info.seed).choice(len(z), min(anchors, len(z)), replace=False))
    meter = sids.meter(Anchors(rows, z[rows], sids.assign(z[rows]), NEIGHBOURS))
    for start in track(range(0, len(z), _BATCH), "measuring"):
        part = z[start : start + _BATCH]
        meter.add(np.arange(start, start + len(part)), part, sids.assign(part))
    figures = meter.figures()
    output.mkdir(parents=True, exist_ok=True)
    title = f"{sids.info.method} {'-'.join(map(str, sids.levels))}, {len(z):,} vectors of the fit"
    draw_frequencies(output / _PICTURE, title, meter.code_counts())
    sids.save(output, figures, request)
    return figures


def parse_levels(text: str) -> tuple[int, ...]:
    """Parses sizes of codebooks, such as "256,256,64".

    Raises:
        SailError: the text has another form.
    """
    if not re.fullmatch(r"\d{1,18}(,\d{1,18})*", text):
        raise SailError(f"--levels takes the sizes of codebooks, such as 256,256,256, not {text!r:.200}.")
    return tuple(map(int, text.split(",")))


def _arrays(codebooks: Sequence[np.ndarray], params: dict[str, Any]) -> dict[str, np.ndarray]:
    flat = {_PARAMS + name: np.asarray(array) for name, array in traverse_util.flatten_dict(params, sep="/").items()}
    return {f"level_{level}": codebook for level, codebook in enumerate(codebooks)} | flat


def _fingerprint(arrays: dict[str, np.ndarray]) -> str:
    """Returns a hash of the names, shapes, types and bytes of arrays."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape} {arrays[name].dtype}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
