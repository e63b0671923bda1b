"""Collects the figures of a sweep's members into one table, and draws its report.

SWEEP/
  results.parquet   a row a member: axes, seed, state, cost, figures
  results.csv       the same
  report.html       means and intervals over seeds, differences, curves, effects of the axes, cost
  report_files/     its charts as PNGs
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from sail_jax.config.evaluation import GRADED, METRIC_FAMILIES
from sail_jax.config.schema import nearest
from sail_jax.errors import SailError
from sail_jax.evaluation.report.seed_groups import SeedGroup
from sail_jax.evaluation.report.tables import headline_metric
from sail_jax.files import partial_file
from sail_jax.runs.directory import read_training_log
from sail_jax.sweeps.folder import MemberState, SweepState, read

# What keys of interval evaluations begin with in a training log.
_INTERVAL = "eval/"
_COUNTS = ("queries", "skipped", "corpus")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A member and what its evaluation found.

    Attributes:
        state: the member, and where it stands.
        figures: model -> "TASK[/VIEW][/dWIDTH]/METRIC" -> value, as metrics.json has them.
        log: the lines of its training log.
        missing: why it is not compared; empty if it is.
    """

    state: MemberState
    figures: Mapping[str, Mapping[str, float | None]]
    log: Sequence[Mapping[str, Any]]
    missing: str = ""

    @property
    def trained(self) -> Mapping[str, float | None]:
        """Returns the figures of the trained model."""
        return self.figures.get("trained", {})


@dataclasses.dataclass(frozen=True)
class Collected:
    """The figures of a sweep.

    Attributes:
        sweep: the sweep.
        outcomes: all its members.
        metric: the figure that ranks them, "TASK/METRIC"; empty if no member is finished.
        baseline: the combination that others are compared with; empty for none.
    """

    sweep: SweepState
    outcomes: tuple[Outcome, ...]
    metric: str
    baseline: str

    @property
    def compared(self) -> list[Outcome]:
        """Returns the members that are compared: the finished ones, all of the same data and tasks."""
        return [outcome for outcome in self.outcomes if not outcome.missing]

    @property
    def device_seconds(self) -> float:
        """Returns what all members cost so far, finished or not."""
        return sum(outcome.state.status.device_seconds for outcome in self.outcomes)

    def groups(self) -> list[SeedGroup]:
        """Returns the compared members by combination, in the order of the sweep."""
        by_group: dict[str, dict[int, Outcome]] = {}
        for outcome in self.compared:
            member = outcome.state.record.member
            by_group.setdefault(member.group, {})[member.seed] = outcome
        return [
            SeedGroup(
                name,
                {seed: outcome.trained for seed, outcome in of_seeds.items()},
                {seed: outcome.log for seed, outcome in of_seeds.items()},
                sum(outcome.state.status.device_seconds for outcome in of_seeds.values()),
            )
            for name, of_seeds in by_group.items()
        ]

    def shown_figures(self) -> list[str]:
        """Returns the figures to show first: the ranking one, then one of each task."""
        tasks = _tasks(self.compared[0].trained) if self.compared else []
        heads = [_headline(self.compared[0].trained, task) for task in tasks]
        return list(dict.fromkeys([self.metric, *heads] if self.metric else heads))


def collect(folder: str | Path, *, metric: str = "", baseline: str = "", data: str = "") -> Collected:
    """Reads the figures of a sweep's members.

    Args:
        folder: the folder of the sweep.
        metric: the figure that ranks members, such as "i2i/recall@10"; by default that of the sweep.
        baseline: the combination that others are compared with; by default that of the sweep.
        data: beginning of the digest of the data whose members are compared, where members differ in their data.

    Raises:
        SailError: the folder has no sweep, members differ in their data or tasks, or no member has such a figure, data
            or combination.
    """
    sweep = read(folder)
    outcomes = [_outcome(state, data) for state in sweep.members]
    compared = [outcome for outcome in outcomes if not outcome.missing]
    if data and not any(outcome.state.record.data.startswith(data) for outcome in outcomes):
        digests = sorted({outcome.state.record.data for outcome in outcomes})
        raise SailError(f"No member of {folder} has the data {data!r}; there are {', '.join(digests)}.")
    _require_same_data(folder, compared)
    _require_same_tasks(folder, compared)
    combinations = list(dict.fromkeys(state.record.member.group for state in sweep.members))
    baseline = baseline or sweep.record.baseline
    if baseline and baseline not in combinations:
        raise SailError(f"{folder} has no combination {baseline!r}. Did you mean {nearest(baseline, combinations)}?")
    return Collected(sweep, tuple(outcomes), _metric(metric or sweep.record.metric, compared), baseline)


def _outcome(state: MemberState, data: str) -> Outcome:
    status = state.status
    if status.state == "pruned":
        log = read_training_log(state.run)
        last = next((line for line in reversed(log) if any(key.startswith(_INTERVAL) for key in line)), {})
        figures = {key.removeprefix(_INTERVAL): value for key, value in last.items() if key.startswith(_INTERVAL)}
        return Outcome(state, {"trained": figures}, log, f"pruned; its figures are those of step {last.get('step', 0)}")
    if status.state != "done":
        return Outcome(state, {}, (), f"{status.state}{f': {status.error}' if status.error else ''}")
    again = f"evaluate it: sail-jax evaluate --workdir {state.run.path}"
    try:
        figures = json.loads(state.run.metrics.read_text(encoding="utf-8"))
        figures = {model: dict(values) for model, values in figures.items()}
    except FileNotFoundError:
        return Outcome(state, {}, (), f"done, but there is no {state.run.metrics.name}; {again}")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return Outcome(state, {}, (), f"done, but its {state.run.metrics.name} can't be read ({error}); {again}")
    log = read_training_log(state.run)
    if not figures.get("trained"):
        return Outcome(state, figures, log, f"done, but without figures of the trained model; {again}")
    other = "" if state.record.data.startswith(data) else f"done, on other data ({state.record.data})"
    return Outcome(state, figures, log, other)


def _require_same_data(folder: str | Path, compared: Sequence[Outcome]) -> None:
    of_data: dict[str, list[str]] = {}
    for outcome in compared:
        of_data.setdefault(outcome.state.record.data, []).append(outcome.state.name)
    if len(of_data) > 1:
        shown = "; ".join(f"{digest} of {_several(names)}" for digest, names in of_data.items())
        raise SailError(
            f"The members of {folder} differ in their data, and their figures can't be compared: {shown}. Choose one "
            f"with --data {next(iter(of_data))}."
        )


def _several(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _require_same_tasks(folder: str | Path, compared: Sequence[Outcome]) -> None:
    sizes = {outcome.state.name: _sizes(outcome.trained) for outcome in compared}
    common, _ = Counter(json.dumps(of_member) for of_member in sizes.values()).most_common(1)[0] if sizes else ("", 0)
    for name, of_member in sizes.items():
        usual = json.loads(common)
        for task in {**usual, **of_member} if json.dumps(of_member) != common else ():
            if of_member.get(task) != usual.get(task):
                raise SailError(
                    f"The member {name} of {folder} was evaluated on other tasks than the rest: {task} has "
                    f"{_size(of_member.get(task))}, not {_size(usual.get(task))}. Evaluate it again as the others: "
                    f"sail-jax evaluate --workdir {Path(folder) / 'members' / name}."
                )


def _sizes(figures: Mapping[str, float | None]) -> dict[str, list[float]]:
    """Returns {task: [queries, with those left out, and items of the corpus]}."""
    return {
        task: [sum(figures.get(f"{task}/{name}") or 0 for name in names) for names in (_COUNTS[:2], _COUNTS[2:])]
        for task in _tasks(figures)
    }


def _size(size: Sequence[float] | None) -> str:
    return f"{size[0]:,.0f} queries in {size[1]:,.0f} items" if size else "no figures"


def _tasks(figures: Mapping[str, float | None]) -> list[str]:
    """Returns the tasks; what has the counts of queries but begins with a task is a view or a width of it."""
    found = [name.removesuffix("/queries") for name in figures if name.endswith("/queries")]
    return [one for one in found if not any(one.startswith(f"{other}/") for other in found)]


def own_metrics(figures: Mapping[str, float | None], task: str) -> list[str]:
    """Returns the metrics of a task under its own view and at full width."""
    names = [name.removeprefix(f"{task}/") for name in figures if name.startswith(f"{task}/")]
    families = (*METRIC_FAMILIES, GRADED)
    return [name for name in names if name not in _COUNTS and ("/" not in name or name.partition("/")[0] in families)]


def _metric(metric: str, compared: Sequence[Outcome]) -> str:
    if not compared:
        return metric
    figures = compared[0].trained
    if metric and metric not in figures:
        raise SailError(f"No member has the figure {metric!r}. Did you mean {nearest(metric, list(figures))}?")
    tasks = _tasks(figures)
    return metric or (_headline(figures, tasks[0]) if tasks else "")


def _headline(figures: Mapping[str, float | None], task: str) -> str:
    """Returns the figure of a task to show first."""
    return f"{task}/{headline_metric(own_metrics(figures, task), int(figures.get(f'{task}/corpus') or 0))}"


# ------------------------------------------------------------------------------------------------------------- table


def table(collected: Collected) -> pl.DataFrame:
    """Returns a row for each member, finished or not: axes, seed, state, cost, figures."""
    columns: dict[str, list[Any]] = {}
    outcomes = collected.outcomes
    members = [outcome.state.record.member for outcome in outcomes]
    columns["member"], columns["combination"] = [m.name for m in members], [m.group for m in members]
    fixed = _fixed_columns(outcomes)
    for axis in collected.sweep.record.axes:
        name = f"axis.{axis}" if axis in fixed or axis in columns else axis
        columns[name] = _plain([member.axes.get(axis) for member in members])
    columns |= {"seed": [member.seed for member in members]} | fixed
    for name in dict.fromkeys(name for outcome in outcomes for name in outcome.trained):
        columns[name] = [outcome.trained.get(name) for outcome in outcomes]
    return pl.DataFrame(columns, strict=False)


def _fixed_columns(outcomes: Sequence[Outcome]) -> dict[str, list[Any]]:
    statuses = [outcome.state.status for outcome in outcomes]
    names = ("state", "attempts", "exit_code", "started", "ended", "host", "devices", "error")
    columns: dict[str, list[Any]] = {name: [getattr(status, name) for status in statuses] for name in names}
    columns["device_hours"] = [status.device_seconds / 3600 for status in statuses]
    columns["step"] = [outcome.log[-1]["step"] if outcome.log else None for outcome in outcomes]
    columns["not_compared"] = [outcome.missing for outcome in outcomes]
    columns |= {name: [getattr(outcome.state.record, name) for outcome in outcomes] for name in ("data", "program")}
    return columns


def _plain(values: Sequence[Any]) -> list[Any]:
    """Returns the values of an axis as numbers where all are, and as texts otherwise."""
    kinds = {type(value) for value in values}
    if kinds <= {int, float} or kinds == {bool} or kinds == {str}:
        return list(values)
    return [value if isinstance(value, str) else json.dumps(value) for value in values]


def write_table(collected: Collected, folder: Path) -> tuple[Path, Path]:
    """Writes results.parquet and results.csv; returns their paths."""
    frame = table(collected)
    parquet, csv = folder / "results.parquet", folder / "results.csv"
    with partial_file(parquet) as partial:
        frame.write_parquet(partial)
    with partial_file(csv) as partial:
        frame.write_csv(partial)
    return parquet, csv
