"""Stochastic specialization: draws the data set of each step or row (arXiv 2510.12709, sec. 3.3.3).

A draw is a pure function of (seed, draw number), so that a resumed run continues the same draws and hosts agree without
communication. In the specialized mode a step is one draw for the whole global batch; in the mixed mode (the ablation)
every row of the batch is a draw.
"""

from collections.abc import Sequence

import numpy as np

from sail_jax.errors import SailError

_BLOCK = 4096
_STREAM = 0x5A11  # separates the sampler's draws from others with the same seed


class Sampler:
    """Draws data sets in proportion to their weights.

    Args:
        weights: one non-negative weight per data set, not all zero; they need not sum to one.
        seed: the experiment's seed.

    Raises:
        SailError: a weight is negative or not finite, or all are zero.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        values = np.asarray(weights, np.float64)
        if values.ndim != 1 or not np.all(np.isfinite(values)) or np.any(values < 0) or values.sum() <= 0:
            raise SailError(
                f"The weights of the training sets (config.data.datasets.*.weight) are {list(weights)}; they must be "
                "finite, not negative and not all zero."
            )
        self._probabilities = values / values.sum()
        self._seed = seed
        self._totals = np.zeros((1, len(values)), np.int64)  # row b: draws per data set in the blocks before block b
        self._cached: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def dataset(self, draw: int) -> int:
        """The data set of a draw."""
        return int(self._block(draw // _BLOCK)[draw % _BLOCK])

    def counts(self, draw: int) -> np.ndarray:
        """How often each data set was drawn before `draw`: [data sets] int64."""
        block, offset = divmod(draw, _BLOCK)
        while len(self._totals) <= block:
            drawn = np.bincount(self._block(len(self._totals) - 1), minlength=len(self._probabilities))
            self._totals = np.concatenate([self._totals, self._totals[-1:] + drawn])
        head = np.bincount(self._block(block)[:offset], minlength=len(self._probabilities))
        return self._totals[block] + head

    def _block(self, block: int) -> np.ndarray:
        number, draws = self._cached  # read once, because another thread may replace it
        if number != block:
            rng = np.random.default_rng([self._seed, _STREAM, block])
            draws = rng.choice(len(self._probabilities), size=_BLOCK, p=self._probabilities)
            self._cached = (block, draws)
        return draws
