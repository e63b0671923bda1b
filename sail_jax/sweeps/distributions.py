"""Declares the distributions of random settings."""

import dataclasses

import numpy as np

from sail_jax.errors import SailError

# Drawn numbers are rounded to so many digits, so that a member's name tells the value it was trained with.
_DIGITS = 4


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Numbers from one end to another; `uniform`, `log_uniform` and `integers` make them.

    Attributes:
        low: the lower end.
        high: the upper end.
        log: whether it is the logarithm that is uniform.
        whole: whether the numbers are whole; both ends are among them.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise SailError(f"A distribution from {self.low} to {self.high} is empty; the lower end comes first.")

    def draw(self, rng: np.random.Generator, n: int) -> list[float]:
        """Returns n numbers."""
        low, high = (np.log(self.low), np.log(self.high)) if self.log else (self.low, self.high + self.whole)
        return [self._number(low + (high - low) * share) for share in rng.random(n).tolist()]

    def _number(self, drawn: float) -> float:
        if self.whole:
            return min(int(drawn), int(self.high))
        return float(f"{np.exp(drawn) if self.log else drawn:.{_DIGITS}g}")


def uniform(low: float, high: float) -> Distribution:
    """Returns the uniform distribution of numbers from `low` to `high`."""
    return Distribution(low, high)


def log_uniform(low: float, high: float) -> Distribution:
    """Returns the distribution whose logarithm is uniform from that of `low` to that of `high`.

    Raises:
        SailError: `low` is not above 0, or not below `high`.
    """
    if low <= 0:
        raise SailError(f"log_uniform({low}, {high}): the lower end must be above 0.")
    return Distribution(low, high, log=True)


def integers(low: int, high: int) -> Distribution:
    """Returns the uniform distribution of whole numbers from `low` to `high`, both included."""
    return Distribution(low, high, whole=True)
