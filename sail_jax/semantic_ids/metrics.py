"""Measures semantic IDs batch by batch: use of codes, collisions, reconstruction, neighbours.

Axes: N rows, D width, L levels, U distinct IDs, A anchors, k neighbours.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import faiss
import numpy as np


class IdTally:
    """Counts items by ID; memory grows with the number of distinct IDs.

    Args:
        levels: L.
    """

    def __init__(self, levels: int) -> None:
        self._levels = levels
        self._counts: dict[bytes, int] = {}

    def add(self, codes: np.ndarray) -> np.ndarray:
        """Counts items by codes [N, L] int32; returns how many earlier items have equal codes, [N] int64."""
        earlier, counts = np.zeros(len(codes), np.int64), self._counts
        for row, key in enumerate(map(bytes, np.ascontiguousarray(codes, np.int32))):
            earlier[row] = counts.get(key, 0)
            counts[key] = earlier[row].item() + 1
        return earlier

    def distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the distinct IDs [U, L] int32, by first item, and their numbers of items [U] int64."""
        codes = np.frombuffer(b"".join(self._counts), np.int32).reshape(-1, self._levels)
        return codes, np.fromiter(self._counts.values(), np.int64, len(self._counts))


def code_counts(codes: np.ndarray, counts: np.ndarray, size: int, level: int) -> np.ndarray:
    """Counts the items of each code of a level, [size] int64.

    Args:
        codes: [U, L] distinct IDs.
        counts: [U] number of items of each.
        size: number of codes of the level.
        level: the level, from 0.
    """
    # float64 weights count exactly up to 2^53 items.
    return np.bincount(codes[:, level], weights=counts, minlength=size).astype(np.int64)


def level_figures(of_code: np.ndarray) -> dict[str, Any]:
    """Returns how a level uses its codes.

    Args:
        of_code: number of items of each code.

    Returns:
        "codes", "used", "utilisation" (the share of codes that are used), "entropy_bits" (of the distribution of items
        over codes), "perplexity" (2 to the power of the entropy: the number of equally frequent codes of that entropy).
    """
    used, bits = int(np.sum(of_code > 0)), _entropy(of_code)
    figures = {"codes": len(of_code), "used": used, "utilisation": used / len(of_code)}
    return figures | {"entropy_bits": bits, "perplexity": 2.0**bits}


def prefix_figures(codes: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    """Returns how well IDs distinguish items.

    Args:
        codes: [U, l] IDs, cut to a prefix; they need not differ.
        counts: [U] number of items of each.

    Returns:
        "distinct_ids"; "collision_rate", the share of items whose ID another item shares; "largest", the number of
        items of the most frequent ID; "entropy_bits" of the distribution of items over IDs; "purity_by_chance", the
        share of pairs of two items drawn at random that have the same ID.
    """
    _, row = np.unique(codes, axis=0, return_inverse=True)
    items = np.bincount(row.ravel(), weights=counts)
    total = items.sum()
    return {
        "distinct_ids": len(items),
        "collision_rate": float(items[items > 1].sum() / total),
        "largest": int(items.max()),
        "entropy_bits": _entropy(items),
        "purity_by_chance": float(np.sum(items * (items - 1)) / max(total * (total - 1), 1)),
    }


def _entropy(items: np.ndarray) -> float:
    share = items[items > 0] / items.sum()
    return float(max(0.0, -np.sum(share * np.log2(share))))


class Reconstruction:
    """Measures the error and the cosine of reconstructed vectors.

    Args:
        dims: D.
        prefixes: number of reconstructions of each vector.
    """

    def __init__(self, dims: int, prefixes: int) -> None:
        self._rows, self._sum, self._square = 0, np.zeros(dims), 0.0
        self._error, self._cosine = np.zeros(prefixes), np.zeros(prefixes)

    def add(self, z: np.ndarray, reconstructed: Sequence[np.ndarray]) -> None:
        """Adds vectors [N, D] and their reconstruction [N, D] from each prefix."""
        self._rows += len(z)
        self._sum += z.sum(axis=0, dtype=np.float64)
        self._square += float(np.sum(np.square(z), dtype=np.float64))
        norm = np.linalg.norm(z, axis=1)
        for prefix, other in enumerate(reconstructed):
            self._error[prefix] += np.sum(np.square(z - other), dtype=np.float64)
            norms = norm * np.linalg.norm(other, axis=1)
            self._cosine[prefix] += np.sum(np.sum(z * other, axis=1) / np.where(norms > 0, norms, 1), dtype=np.float64)

    def figures(self, prefix: int) -> dict[str, float]:
        """Returns "relative_error" and "cosine" of a prefix.

        The relative error is the squared error over the variance: 1 if all vectors are reconstructed as their mean.
        """
        variance = self._square - np.sum(self._sum**2) / max(self._rows, 1)
        error = self._error[prefix] / variance if variance > 0 else 0.0
        return {"relative_error": float(error), "cosine": float(self._cosine[prefix] / max(self._rows, 1))}


class Neighbourhoods:
    """Finds the exact nearest neighbours of anchors by cosine, with their codes, batch by batch.

    Args:
        anchors: [A, D] float32 of unit length.
        rows: [A] their row numbers; no anchor is its own neighbour.
        k: number of neighbours of each.
        levels: L.
    """

    def __init__(self, anchors: np.ndarray, rows: np.ndarray, k: int, levels: int) -> None:
        self._anchors, self._rows, self._k = np.ascontiguousarray(anchors, np.float32), rows, k
        self._scores = np.full((len(anchors), k), -np.inf, np.float32)
        self._codes = np.full((len(anchors), k, levels), -1, np.int32)

    def add(self, rows: np.ndarray, z: np.ndarray, codes: np.ndarray) -> None:
        """Adds vectors with row numbers [N], [N, D] float32 of unit length, and codes [N, L]."""
        if not len(self._anchors) or not len(z):
            return
        # One more than k, since an anchor may find itself.
        found, which = faiss.knn(self._anchors, z, min(self._k + 1, len(z)), metric=faiss.METRIC_INNER_PRODUCT)
        found[rows[which] == self._rows[:, None]] = -np.inf
        scores = np.concatenate([self._scores, found], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self._k]
        self._scores = np.take_along_axis(scores, best, axis=1)
        self._codes = np.take_along_axis(np.concatenate([self._codes, codes[which]], axis=1), best[:, :, None], axis=1)

    def purity(self, codes: np.ndarray) -> list[float | None]:
        """Returns, for each prefix length, the share of neighbours that have the prefix of their anchor.

        It is None if no anchor has a neighbour.

        Args:
            codes: [A, L] codes of the anchors.
        """
        there = np.isfinite(self._scores)
        same = np.logical_and.accumulate(self._codes == codes[:, None, :], axis=2)
        return [float(same[there, level].mean()) if there.any() else None for level in range(codes.shape[1])]


@dataclasses.dataclass(frozen=True)
class Anchors:
    """Items whose nearest neighbours are compared by their IDs.

    Attributes:
        rows: [A] row numbers.
        z: [A, D] float32 of unit length.
        codes: [A, L] int32.
        neighbours: k.
    """

    rows: np.ndarray
    z: np.ndarray
    codes: np.ndarray
    neighbours: int


class Meter:
    """Computes all figures of the IDs of vectors, batch by batch.

    Args:
        sizes: L sizes of codebooks.
        dims: D.
        decode: codes [N, l] of any prefix -> vectors [N, D].
        anchors: items whose nearest neighbours are compared.
    """

    def __init__(
        self, sizes: Sequence[int], dims: int, decode: Callable[[np.ndarray], np.ndarray], anchors: Anchors
    ) -> None:
        self._sizes, self._decode, self._anchors = sizes, decode, anchors
        self._tally = IdTally(len(sizes))
        self._reconstruction = Reconstruction(dims, len(sizes))
        self._neighbourhoods = Neighbourhoods(anchors.z, anchors.rows, anchors.neighbours, len(sizes))

    def add(self, rows: np.ndarray, z: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Adds rows [N], vectors [N, D], codes [N, L]; returns how many earlier items have equal codes, [N]."""
        self._reconstruction.add(z, [self._decode(codes[:, : level + 1]) for level in range(len(self._sizes))])
        self._neighbourhoods.add(rows, z, codes)
        return self._tally.add(codes)

    def code_counts(self) -> list[np.ndarray]:
        """Returns the number of items of each code, for each level."""
        codes, counts = self._tally.distinct()
        return [code_counts(codes, counts, size, level) for level, size in enumerate(self._sizes)]

    def figures(self) -> dict[str, Any]:
        """Returns all figures, of each level and of each length of prefix, as plain values."""
        codes, counts = self._tally.distinct()
        purity = self._neighbourhoods.purity(self._anchors.codes)
        prefixes = [
            {"levels": length, **prefix_figures(codes[:, :length], counts)}
            | self._reconstruction.figures(length - 1)
            | {"purity": purity[length - 1]}
            for length in range(1, len(self._sizes) + 1)
        ]
        levels = [{"level": n, **level_figures(of_code)} for n, of_code in enumerate(self.code_counts(), 1)]
        looked_at = {"anchors": len(self._anchors.rows), "neighbours": self._anchors.neighbours}
        return {"items": int(counts.sum()), **looked_at, "levels": levels, "prefixes": prefixes}
