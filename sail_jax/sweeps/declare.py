"""Declares a sweep: a base config, axes of settings or variants, and seeds.

from sail_jax.sweeps import Sweep, grid

def sweep() -> Sweep:
    return Sweep(base="quickstart", axes=[grid("optimizer.peak", [1e-3, 2e-3])], seeds=range(3))
"""

import dataclasses
import difflib
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sail_jax.config import call_in_file, packaged_folder
from sail_jax.errors import SailError

# Drawn numbers are rounded to so many digits, so that a member's name tells the value it was trained with.
_DIGITS = 4
# The column of a sweep's table that names the variant.
VARIANT = "variant"


@dataclasses.dataclass(frozen=True)
class Point:
    """One choice on an axis.

    Attributes:
        values: column of the sweep's table -> value.
        overrides: the changes of the config, "a.b=value".
    """

    values: dict[str, Any]
    overrides: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Axis:
    """What varies: a sweep has a member for each combination of one point of every axis, and each seed.

    Attributes:
        columns: the settings that vary together, or the name of an axis of variants.
        points: the choices.
    """

    columns: tuple[str, ...]
    points: tuple[Point, ...]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep: all combinations of the points of the axes, once per seed.

    Attributes:
        base: experiment file, or the name of a packaged experiment.
        axes: what varies; without one there is a single config.
        overrides: changes of the config that all members have, "a.b=value".
        seeds: the seeds of each combination.
        baseline: the combination that others are compared with, as members are named, without the seed: "main".
        metric: the figure that ranks members, such as "i2i/recall@10".
        name: name of the sweep; by default that of its file.
    """

    base: str
    axes: Sequence[Axis] = ()
    overrides: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    baseline: str = ""
    metric: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        for field in ("axes", "overrides", "seeds"):
            object.__setattr__(self, field, tuple(getattr(self, field)))


Distribution = Callable[[np.random.Generator, int], list[Any]]


def grid(setting: str, values: Sequence[Any]) -> Axis:
    """Returns the axis of some values of a setting."""
    return zipped({setting: values})


def zipped(settings: Mapping[str, Sequence[Any]]) -> Axis:
    """Returns the axis of settings that change together: the first values, the second values, and so on.

    Raises:
        SailError: there is no value, or the settings have unequal numbers of them.
    """
    counts = {setting: len(values) for setting, values in settings.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise SailError(f"An axis needs equally many values for each setting, at least one; it has {counts}.")
    rows = zip(*settings.values(), strict=True)
    return _axis(tuple(settings), [dict(zip(settings, row, strict=True)) for row in rows])


def variants(choices: Mapping[str, Sequence[str]], name: str = VARIANT) -> Axis:
    """Returns the axis of named variants of the config.

    Args:
        choices: name of a variant -> its changes of the config, "a.b=value"; none for the config as it is.
        name: the name of the axis.

    Raises:
        SailError: there is no variant, or the changes of one are no sequence of words.
    """
    if not choices:
        raise SailError("An axis of variants needs at least one.")
    for choice, overrides in choices.items():
        if isinstance(overrides, str):
            raise SailError(f"The variant {choice!r} takes a sequence of changes; write ({overrides!r},).")
    return Axis((name,), tuple(Point({name: choice}, tuple(words)) for choice, words in choices.items()))


def draws(
    settings: str | Mapping[str, Distribution], how: Distribution | None = None, *, n: int, seed: int = 0
) -> Axis:
    """Returns the axis of random values of one setting, or of several that are drawn together.

    The first draws stay the same when there are more of them.

    Args:
        settings: a setting, or setting -> distribution.
        how: the distribution of a single setting: `uniform`, `log_uniform` or `integers`.
        n: the number of draws.
        seed: seed of the draws; other settings have other draws.

    Raises:
        SailError: a distribution is missing, or nothing is drawn.
    """
    by_setting = {settings: how} if isinstance(settings, str) else dict(settings)
    if n < 1 or not by_setting or None in by_setting.values():
        raise SailError("draws(setting, uniform(low, high), n=8) needs a distribution, and an n of at least 1.")
    columns = {
        setting: drawn(np.random.default_rng((seed, zlib.crc32(setting.encode()))), n)
        for setting, drawn in by_setting.items()
    }
    return zipped(columns)


def uniform(low: float, high: float) -> Distribution:
    """Returns the uniform distribution of numbers from `low` to `high`."""
    _check_order(low, high)
    return functools.partial(_drawn, low=low, high=high, to=_rounded)


def log_uniform(low: float, high: float) -> Distribution:
    """Returns the distribution whose logarithm is uniform from that of `low` to that of `high`.

    Raises:
        SailError: `low` is not above 0, or not below `high`.
    """
    if low <= 0:
        raise SailError(f"log_uniform({low}, {high}): the lower end must be above 0.")
    _check_order(low, high)
    return functools.partial(_drawn, low=np.log(low), high=np.log(high), to=lambda x: _rounded(np.exp(x)))


def integers(low: int, high: int) -> Distribution:
    """Returns the uniform distribution of whole numbers from `low` to `high`, both included."""
    _check_order(low, high)
    return functools.partial(_drawn, low=low, high=high + 1, to=lambda x: min(int(x), high))


def _check_order(low: float, high: float) -> None:
    if not low < high:
        raise SailError(f"A distribution from {low} to {high} is empty; the lower end comes first.")


def _drawn(rng: np.random.Generator, n: int, *, low: float, high: float, to: Callable[[float], float]) -> list[float]:
    return [to(low + (high - low) * share) for share in rng.random(n).tolist()]


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _axis(columns: tuple[str, ...], rows: Sequence[Mapping[str, Any]]) -> Axis:
    points = []
    for row in rows:
        values = {setting: value.item() if isinstance(value, np.generic) else value for setting, value in row.items()}
        points.append(Point(values, tuple(f"{key}={_literal(value)}" for key, value in values.items())))
    return Axis(columns, tuple(points))


def _literal(value: Any) -> str:
    """Returns a value as it stands in `a.b=value`."""
    return value if isinstance(value, str) else repr(value)


def packaged() -> list[str]:
    """Returns the names of packaged sweeps, which `load` takes instead of a path."""
    return sorted(path.stem for path in (packaged_folder() / "sweeps").glob("[!_]*.py"))


def load(path: str | Path) -> Sweep:
    """Reads a sweep file: Python with `def sweep() -> Sweep`.

    Args:
        path: the file. Where there is none, "peak", "peak.py" and "configs/sweeps/peak.py" name a packaged sweep.

    Raises:
        SailError: there is no such file, its code fails, or it returns no sweep.
    """
    file = _find(Path(path))
    found = call_in_file(file, "sweep")
    if not isinstance(found, Sweep):
        raise SailError(f"{file} has no sweep() that returns a Sweep; start from sail_jax.sweeps.Sweep.")
    return dataclasses.replace(found, name=found.name or file.stem)


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    shipped = packaged_folder() / "sweeps" / f"{path.stem}.py"
    if str(path.parent) in (".", "sweeps", "configs/sweeps") and path.suffix in ("", ".py") and shipped.is_file():
        return shipped
    near = difflib.get_close_matches(path.stem, packaged(), n=3)
    raise SailError(
        f"There is no sweep file {path}."
        + (f" Did you mean {' or '.join(near)}?" if near else "")
        + f" These sweeps come with the package: {', '.join(packaged())}."
    )
