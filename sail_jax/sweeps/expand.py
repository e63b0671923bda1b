"""Expands a sweep into its members, each a config with a seed and a name; a pure function."""

import dataclasses
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sail_jax.config.schema import nearest
from sail_jax.errors import SailError
from sail_jax.sweeps.declare import VARIANT, Axis, Point, Sweep, literal
from sail_jax.sweeps.distributions import Distribution

# Longest part of a name that stands for one value, and longest name; a file system takes 255 bytes.
_LONGEST_PART, _LONGEST = 48, 160
# The name of the only combination of a sweep without axes.
_ONLY = "main"


@dataclasses.dataclass(frozen=True)
class Member:
    """A member of a sweep: one run.

    Attributes:
        name: its name, which is that of its folder, such as "peak=0.001,seed=0".
        axes: column -> value.
        seed: its seed.
        overrides: all changes of the base config, "a.b=value".
    """

    name: str
    axes: dict[str, Any]
    seed: int
    overrides: tuple[str, ...]

    @property
    def group(self) -> str:
        """Returns the name without the seed, which the members share that differ in nothing else."""
        return self.name.rpartition(",seed=")[0]


def expand(sweep: Sweep) -> tuple[Member, ...]:
    """Returns the members of a sweep, the first seed of all combinations first.

    A name depends only on the columns and on the member's own values.

    Raises:
        SailError: there is no seed, a column or a seed comes twice, two members have one name, or the baseline is none
            of the combinations.
    """
    columns = [column for axis in sweep.axes for column in axis.columns]
    _refuse_repeated(columns, "Two axes vary {!r}; put its values into one.")
    _refuse_repeated(sweep.seeds, "The seed {!r} stands twice in `seeds`; leave one out.")
    if not sweep.seeds:
        raise SailError("A sweep needs at least one seed, such as seeds=range(3).")
    if "seed" in columns:
        raise SailError("An axis varies `seed`; name the seeds by seeds=..., so that figures are averaged over them.")
    short = _short_names(columns)
    named = [(_group(sweep.axes, points, short), points) for points in itertools.product(*_points(sweep.axes))]
    _refuse_repeated([group for group, _ in named], "Two members have the name {!r}; let their values differ in it.")
    if sweep.baseline and sweep.baseline not in dict(named):
        raise SailError(
            f"The baseline {sweep.baseline!r} is no member; it may be {nearest(sweep.baseline, dict(named))}."
        )
    return tuple(_member(sweep, group, points, seed) for seed in sweep.seeds for group, points in named)


def trial_member(sweep: Sweep, number: int, values: Mapping[str, Any]) -> Member:
    """Returns the member of a trial of a search.

    Args:
        sweep: the sweep.
        number: number of the trial.
        values: setting -> value.
    """
    return _searched(sweep, f"trial={number}", values)


def probes(sweep: Sweep) -> tuple[Member, ...]:
    """Returns members at the ends of all distributions of a search, and at each value of its lists.

    What they pass is checked before the search begins, as its trials are not known yet.

    Raises:
        SailError: the sweep has axes or several seeds beside the search, no metric, or no interval evaluation to prune
            by.
    """
    settings = sweep.search.settings
    if sweep.axes or len(sweep.seeds) != 1:
        raise SailError("A search varies settings itself and trains with one seed: leave out `axes` and further seeds.")
    if not sweep.metric:
        raise SailError("A search needs the metric that it improves, such as metric='i2i/recall@10'.")
    lists = {setting: how for setting, how in settings.items() if not isinstance(how, Distribution)}
    first = {setting: how[0] for setting, how in lists.items()}
    found = {
        end: first | {setting: getattr(how, end) for setting, how in settings.items() if setting not in lists}
        for end in ("low", "high")
    }
    for setting, how in lists.items():
        found |= {f"{_safe(setting)}={_safe(value)}": found["low"] | {setting: value} for value in how}
    return tuple(_searched(sweep, name, values) for name, values in found.items())


def _searched(sweep: Sweep, group: str, values: Mapping[str, Any]) -> Member:
    (seed,) = sweep.seeds
    words = (f"{setting}={literal(value)}" for setting, value in values.items())
    return Member(f"{group},seed={seed}", dict(values), seed, (*sweep.overrides, *words, f"seed={seed}"))


def _points(axes: Sequence[Axis]) -> list[tuple[Point, ...]]:
    return [axis.points for axis in axes]


def _refuse_repeated(values: Sequence[Any], message: str) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise SailError(message.format(repeated[0]))


def _member(sweep: Sweep, group: str, points: Sequence[Point], seed: int) -> Member:
    axes = {column: value for point in points for column, value in point.values.items()}
    changes = itertools.chain(sweep.overrides, *(point.overrides for point in points), [f"seed={seed}"])
    return Member(f"{group},seed={seed}", axes, seed, tuple(changes))


def _short_names(columns: Sequence[str]) -> dict[str, str]:
    """Returns the last part of each setting, or all of it where two settings end alike."""
    last = Counter(column.rpartition(".")[2] for column in columns)
    return {column: column if last[column.rpartition(".")[2]] > 1 else column.rpartition(".")[2] for column in columns}


def _group(axes: Sequence[Axis], points: Sequence[Point], short: dict[str, str]) -> str:
    """Returns the name of a combination, safe as a folder and in a shell."""
    parts = []
    for axis, point in zip(axes, points, strict=True):
        for column in axis.columns:
            value = _safe(point.values[column])
            parts.append(value if column == VARIANT else f"{_safe(short[column])}={value}")
    name = ",".join(parts) or _ONLY
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 9]}-{_digest(name)}"


def _safe(value: Any) -> str:
    text = re.sub(r"[^\w.+-]+", "_", str(value), flags=re.ASCII).strip("_") or _digest(str(value))
    return text if len(text) <= _LONGEST_PART else f"{text[: _LONGEST_PART - 9]}-{_digest(str(value))}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
