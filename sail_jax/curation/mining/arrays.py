"""Mines hard negatives on arrays: finds lambda*, and each query's highest-scoring targets below it.

A pair (q_i, t_j) has the score s_ij = cos(q_i, t_j). The pairs of the set P are positives; all others are negatives,
except those known to be positive from other sources. lambda* is the threshold that best separates the two (see
`find_threshold`). Negatives with s_ij >= lambda* are assumed to be unlisted positives and left out; the hard negatives
of a query are the negatives with the highest scores below lambda*.

Source: arXiv 2510.12709, sec. 3.1.2.

Axes: Q queries, N targets, D width, P positives, E excluded or known pairs, M negatives, K hard negatives per query.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from sail_jax.config.curation import MiningConfig
from sail_jax.curation.mining.threshold import BinnedScores, SortedScores, Threshold, find_threshold
from sail_jax.errors import SailError
from sail_jax.sharding.process_group import ALONE, Processes
from sail_jax.vectors.score_blocks import BINS, ScoreBlocks, TargetBlocks, bin_of
from sail_jax.vectors.unit import unit_rows

_ROWS_CHECKED = 8192


@dataclasses.dataclass(frozen=True)
class Mined:
    """The hard negatives of all queries, and the threshold used.

    Attributes:
        rows: [Q, K] int64 rows of targets, the highest score first; -1 if a query has fewer negatives.
        scores: [Q, K] float32; -inf where `rows` is -1.
        threshold: lambda*, its figures and the curves.
    """

    rows: np.ndarray
    scores: np.ndarray
    threshold: Threshold


def mine(
    queries: np.ndarray, targets: np.ndarray, positives: np.ndarray, excluded: np.ndarray, settings: MiningConfig
) -> Mined:
    """Mines the hard negatives of all queries.

    Args:
        queries: [Q, D], rows of any length; rows of zeros (items that could not be embedded) are ignored.
        targets: [N, D], likewise.
        positives: [P, 2] int, (row of the query, row of the target).
        excluded: [E, 2] int, further pairs, which are neither mined nor counted as negatives; may repeat positives.
        settings: number of negatives, sizes of the blocks, and maximum number of scores for an exact lambda*.

    Raises:
        SailError: no positive pair has embeddings on both sides, or an embedding is not finite.
    """
    positives, excluded = (
        pair_codes(*np.asarray(pairs, np.int64).reshape(-1, 2).T, len(targets)) for pairs in (positives, excluded)
    )
    miner = Miner(queries, targets, positives, excluded, settings)
    blocks = list(miner.negatives())
    return Mined(*(np.concatenate([block[i] for block in blocks]) for i in (1, 2)), miner.threshold)


def pair_codes(rows: np.ndarray, columns: np.ndarray, targets: int) -> np.ndarray:
    """Returns pairs as codes, int64, ascending and each once: query row times `targets` plus target row."""
    return np.unique(np.asarray(rows, np.int64) * targets + columns)


class Miner:
    """Finds lambda*, and then the hard negatives of the queries, block by block.

    Up to `settings.exact_scores` scores are held in memory, and lambda* is the best of all thresholds. More scores are
    computed twice, in blocks, and lambda* is the best edge of bins of width 2^-15.

    Args:
        queries: [Q, D] as in `mine`; may be memory-mapped.
        targets: [N, D], likewise.
        positives: [P] int64 `pair_codes`.
        excluded: [E] int64 `pair_codes`.
        settings: as in `mine`.
        what: label of the progress bars; empty for none.
        processes: the processes that mine together. All of them pass the same arguments and find the same lambda*; each
            scores a part of the queries, unless all scores are held in memory, and yields the negatives of its part.

    Attributes:
        threshold: lambda*, its figures and the curves.
        positives: number of positives with embeddings on both sides.
        excluded: number of excluded pairs, other than positives, with embeddings on both sides.
        present: ([Q] bool, [N] bool), which queries and targets have an embedding.

    Raises:
        SailError: as `mine`.
    """

    def __init__(
        self,
        queries: np.ndarray,
        targets: np.ndarray,
        positives: np.ndarray,
        excluded: np.ndarray,
        settings: MiningConfig,
        what: str = "",
        processes: Processes = ALONE,
    ) -> None:
        self.present = present = _present(queries, "queries"), _present(targets, "targets")
        known = np.union1d(positives, excluded).astype(np.int64)
        known = known[present[0][known // len(targets)] & present[1][known % len(targets)]]
        is_positive = np.isin(known, positives, assume_unique=True)
        self.positives = int(is_positive.sum())
        self.excluded = len(known) - self.positives
        if not self.positives:
            raise SailError("No positive pair has embeddings on both sides, so lambda* cannot be computed.")
        self._k, self._own = settings.per_query, processes.rows(len(queries))
        if len(queries) * len(targets) <= settings.exact_scores:
            self._scores = _HeldScores(queries, targets, present, known, settings)
            scores = SortedScores(self._scores.known[is_positive], self._scores.negatives())
            self._scores.keep(self._own)
        else:
            first, last = np.searchsorted(known, [self._own.start * len(targets), self._own.stop * len(targets)])
            self._scores = ScoreBlocks(
                queries[self._own],
                TargetBlocks(targets, present[1], settings.target_block),
                present[0][self._own],
                known[first:last] - self._own.start * len(targets),
                settings.query_block,
                what if processes.first else "",
            )
            counts, known_scores = self._scores.count()
            positive_counts = np.bincount(bin_of(known_scores[is_positive[first:last]]), minlength=BINS)
            scores = BinnedScores(*np.sum(processes.gather((positive_counts, counts)), axis=0))
        self.threshold = find_threshold(scores)

    def negatives(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields the hard negatives of this process' queries, in order, block by block.

        Yields:
            start: the first query of a block.
            rows: [n, K] int64 rows of targets, the highest score first; -1 if a query has fewer.
            scores: [n, K] float32; -inf where `rows` is -1.
        """
        for start, rows, scores in self._scores.top_below(self.threshold.value, self._k):
            yield self._own.start + start, rows, scores


class _HeldScores:
    """Holds all scores of a small set in memory, and mines by the definition, in numpy.

    Attributes:
        known: [E] float32 scores of the known pairs.
    """

    def __init__(
        self,
        queries: np.ndarray,
        targets: np.ndarray,
        present: tuple[np.ndarray, np.ndarray],
        known: np.ndarray,
        settings: MiningConfig,
    ) -> None:
        self._scores = unit_rows(queries) @ unit_rows(targets).T
        self.known = self._scores.ravel()[known]
        self._scores.ravel()[known] = -np.inf
        self._scores[~present[0]] = -np.inf
        self._scores[:, ~present[1]] = -np.inf
        self._block = settings.query_block

    def negatives(self) -> np.ndarray:
        """Returns the scores of all negatives, [M] float32."""
        return self._scores[np.isfinite(self._scores)]

    def keep(self, rows: slice) -> None:
        """Drops the scores of all other queries."""
        self._scores = self._scores[rows]

    def top_below(self, limit: float, k: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields the highest scores below a limit, as `ScoreBlocks.top_below`."""
        for start in range(0, len(self._scores), self._block):
            part = self._scores[start : start + self._block]
            part = np.where(part < np.float32(limit), part, -np.inf)
            rows = np.argsort(-part, axis=1, kind="stable")[:, :k]
            scores = np.take_along_axis(part, rows, axis=1)
            room = ((0, 0), (0, k - rows.shape[1]))
            rows = np.where(np.isfinite(scores), rows, -1)
            yield start, np.pad(rows, room, constant_values=-1), np.pad(scores, room, constant_values=-np.inf)


def _present(embeddings: np.ndarray, what: str) -> np.ndarray:
    """Returns which rows are not all zeros, [n] bool.

    Raises:
        SailError: a row is not finite.
    """
    present = np.zeros(len(embeddings), bool)
    for start in range(0, len(embeddings), _ROWS_CHECKED):
        part = np.asarray(embeddings[start : start + _ROWS_CHECKED])
        if not np.isfinite(part).all():
            row = start + int(np.flatnonzero(~np.isfinite(part).all(axis=-1))[0])
            raise SailError(f"The embedding in row {row} of the {what} is not finite; the model has diverged.")
        present[start : start + len(part)] = part.any(axis=-1)
    return present
