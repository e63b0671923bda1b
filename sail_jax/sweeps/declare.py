"""Declares a sweep: a base config, axes of settings or variants, and seeds.

from sail_jax.sweeps import Sweep, grid

def sweep() -> Sweep:
    return Sweep(base="quickstart", axes=[grid("optimizer.peak", [1e-3, 2e-3])], seeds=range(3))
"""

import dataclasses
import difflib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sail_jax.config import call_in_file, packaged_folder
from sail_jax.errors import SailError
from sail_jax.sweeps.distributions import Distribution

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


SAMPLERS, PRUNERS, DIRECTIONS = ("tpe", "random"), ("", "median", "halving"), ("maximize", "minimize")


@dataclasses.dataclass(frozen=True)
class Search:
    """Has Optuna choose the values of settings, trial by trial; each trial is a member.

    Attributes:
        settings: setting -> its distribution, or the values of which one is chosen.
        trials: number of trials; more of them extend the search.
        direction: whether to "maximize" or "minimize" the sweep's metric.
        sampler: how values are chosen: "tpe", by Optuna's TPESampler, or "random".
        seed: seed of the sampler.
        pruner: which trials end early, by the metric at the evaluations that `train.evaluate_every` asks for: "median",
            those below the median of earlier trials at the same step; "halving", all but the best quarter at each of
            some steps, by Optuna's SuccessiveHalvingPruner; "" for none.
        startup: trials that are drawn at random before "tpe" has learned, and before "median" ends any.
    """

    settings: Mapping[str, Distribution | Sequence[Any]]
    trials: int
    direction: str = "maximize"
    sampler: str = "tpe"
    seed: int = 0
    pruner: str = ""
    startup: int = 5

    def __post_init__(self) -> None:
        for field, among in (("sampler", SAMPLERS), ("pruner", PRUNERS), ("direction", DIRECTIONS)):
            if getattr(self, field) not in among:
                shown = " or ".join(map(repr, among))
                raise SailError(f"The {field} of a search is {getattr(self, field)!r}; it may be {shown}.")
        empty = [setting for setting, how in self.settings.items() if not isinstance(how, Distribution | list | tuple)]
        empty += [setting for setting, how in self.settings.items() if how in ([], ())]
        if self.trials < 1 or self.startup < 1 or not self.settings or empty:
            raise SailError(
                "A search needs at least one trial and one setting, each with a distribution or a list of values"
                f"{f'; {empty[0]} has none' if empty else ''}."
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Search":
        """Returns the search of an entry of sweep.json, which `dataclasses.asdict` made."""
        settings = {
            setting: Distribution(**how) if isinstance(how, Mapping) else how
            for setting, how in values["settings"].items()
        }
        return cls(**{**values, "settings": settings})


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep: all combinations of the points of the axes, once per seed; or a search.

    Attributes:
        base: experiment file, or the name of a packaged experiment.
        axes: what varies; without one there is a single config.
        overrides: changes of the config that all members have, "a.b=value".
        seeds: the seeds of each combination.
        baseline: the combination that others are compared with, as members are named, without the seed: "main".
        metric: the figure that ranks members, such as "i2i/recall@10".
        name: name of the sweep; by default that of its file.
        search: the search, in place of axes.
        program: Python file whose `member(config, values, folder)` a member calls in place of training and evaluating,
            with its config, {column: value} and its run directory; it returns {"TASK/METRIC": figure}. Empty to train.
    """

    base: str
    axes: Sequence[Axis] = ()
    overrides: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    baseline: str = ""
    metric: str = ""
    name: str = ""
    search: Search | None = None
    program: str = ""

    def __post_init__(self) -> None:
        for field, example in (("axes", "[grid(...)]"), ("overrides", "('train.steps=100',)"), ("seeds", "range(3)")):
            value = getattr(self, field)
            if isinstance(value, str) or not isinstance(value, Iterable):
                raise SailError(f"`{field}` of a sweep takes a sequence, such as {example}, not {value!r}.")
            object.__setattr__(self, field, tuple(value))
        if not isinstance(self.search, Search | None):
            raise SailError(f"`search` of a sweep takes Search({{setting: values}}, trials=N), not {self.search!r}.")


def grid(setting: str, values: Sequence[Any]) -> Axis:
    """Returns the axis of some values of a setting."""
    return zipped({setting: values})


def zipped(settings: Mapping[str, Sequence[Any]]) -> Axis:
    """Returns the axis of settings that change together: the first values, the second values, and so on.

    Raises:
        SailError: there is no value, or the settings have unequal numbers of them.
    """
    for setting, values in settings.items():
        if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
            raise SailError(f"The axis of {setting} takes a list of values, not {values!r}.")
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
        setting: distribution.draw(np.random.default_rng((seed, zlib.crc32(setting.encode()))), n)
        for setting, distribution in by_setting.items()
    }
    return zipped(columns)


def _axis(columns: tuple[str, ...], rows: Sequence[Mapping[str, Any]]) -> Axis:
    points = []
    for row in rows:
        values = {setting: value.item() if isinstance(value, np.generic) else value for setting, value in row.items()}
        points.append(Point(values, tuple(f"{key}={literal(value)}" for key, value in values.items())))
    return Axis(columns, tuple(points))


def literal(value: Any) -> str:
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
