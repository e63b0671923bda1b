"""Checks the members of a sweep before anything starts: their configs, their data, their programs."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sail_jax import config as config_lib
from sail_jax.buckets import address, place, sizes
from sail_jax.config import Config
from sail_jax.config.schema import nearest, to_dict
from sail_jax.config.training import OptimizerConfig, TrainConfig
from sail_jax.data.parquet_files import footer_digest, parquet_parts
from sail_jax.data.pipeline import BatchSource, HostShare, open_store
from sail_jax.data.store import FOLDER
from sail_jax.errors import SailError
from sail_jax.evaluation.baselines import check_baselines
from sail_jax.evaluation.tasks import load_tasks
from sail_jax.models.describe import parameter_table
from sail_jax.objectives.matryoshka import check_widths
from sail_jax.sweeps.declare import Sweep
from sail_jax.sweeps.expand import Member
from sail_jax.sweeps.folder import Record
from sail_jax.sweeps.program import require_program
from sail_jax.training.optimizer import make_schedule
from sail_jax.training.stages import plan, without_mined
from sail_jax.training.trackers.of_run import require_trackers

# Groups and settings that no compiled train step depends on: numbers that it takes as data, and other commands' own.
_NOT_IN_PROGRAM = (
    *("seed", "init_from", "init_allow_bin", "ingest", "synthetic", "logs", "builders", "sequences", "mining"),
    *("balancing", "eval"),
)
_NOT_IN_OPTIMIZER = ("peak", "floor", "warmup_steps", "b1", "b2", "eps", "weight_decay", "clip_norm")


@dataclasses.dataclass(frozen=True)
class Checked:
    """A member that can be run.

    Attributes:
        config: its config.
        record: what sweep.json says of it.
    """

    config: Config
    record: Record


def check_members(
    sweep: Sweep, members: Sequence[Member], *, refuses: Callable[[Config], str] | None = None
) -> list[Checked]:
    """Builds the config of every member, and opens its data, its tokenizer and its tasks.

    What members have in common is opened once. Where they run a program, their configs alone are checked.

    Args:
        sweep: the sweep.
        members: its members.
        refuses: says why a config does not fit the hardware, or nothing; asked once per distinct program.

    Raises:
        SailError: members are refused; a line for each reason.
    """
    opened, fitted = _Once(lambda config: _open(config, sweep.metric)), _Once(lambda config: refuses(config))
    if sweep.program:
        require_program(sweep.program)
    checked, refused = [], {}
    for member in members:
        try:
            # A member's run directory has its name, which trackers show too.
            config = config_lib.load(sweep.base, [f"train.tracker_group={sweep.name}", *member.overrides])
            if sweep.program:
                checked.append(Checked(_placed(config), Record(member, _digest(sizes(place(config.data.dir))), "")))
                continue
            program = program_digest(config)
            opened(_digest(_what_is_opened(config)), config)
            for stage in plan(config, Path("mined")):
                make_schedule(stage.config.optimizer, stage.steps, begin=stage.begin, stage=stage.name)
            if refuses and (reason := fitted(program, config)):
                raise SailError(reason)
        except SailError as error:
            refused.setdefault(str(error), []).append(member.name)
            continue
        config = _placed(config)
        checked.append(Checked(config, Record(member, data_digest(config), program)))
    if refused:
        raise SailError("\n".join(f"{_several(names)} refused: {reason}" for reason, names in refused.items()))
    return checked


def _several(names: Sequence[str]) -> str:
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more members are"


class _Once:
    """Calls a function once per key, and gives its result or its SailError again."""

    def __init__(self, function: Callable[[Config], Any]) -> None:
        self._function = function
        self._results: dict[str, Any] = {}

    def __call__(self, key: str, config: Config) -> Any:
        if key not in self._results:
            try:
                self._results[key] = self._function(config)
            except SailError as error:
                self._results[key] = error
        if isinstance(self._results[key], SailError):
            raise self._results[key]
        return self._results[key]


def _what_is_opened(config: Config) -> dict[str, Any]:
    return to_dict(dataclasses.replace(config, seed=0, optimizer=OptimizerConfig(), init_from={}))


def _open(config: Config, metric: str) -> None:
    """Opens what a run of a config reads.

    Raises:
        SailError: something is missing or wrong, or `metric` is of no task of the config.
    """
    check_widths(config.objective.matryoshka, config.model.llm.width)
    parameter_table(config.model)  # heads that do not divide widths, and the like
    for stage in plan(config, Path("mined")):
        size = stage.config.data.batch_size
        BatchSource(without_mined(stage).config, HostShare(0, size, 1), begin=stage.begin, drawn=stage.drawn)
    check_baselines(config)
    require_trackers(config.train.trackers)
    tasks = load_tasks(config, open_store(config))
    if metric and metric.partition("/")[0] not in tasks:
        raise SailError(
            f"The sweep's metric is {metric!r}, but config.eval.tasks has no such task; write "
            f"{nearest(metric.partition('/')[0], tasks)}, a slash, and a figure such as recall@10."
        )


def data_digest(config: Config) -> str:
    """Returns a digest of the data that a config trains on, and of the tasks and tables that evaluate it.

    Of items, it has the sizes of their files; of tables, `footer_digest`.
    """
    folder = place(config.data.dir)
    items = sorted((name, size) for name, size in sizes(folder / FOLDER).items() if name.endswith(".array_record"))
    wanted = [*config.data.datasets.values(), *config.eval.tasks.values()]
    parts = {use.table: parquet_parts(folder / use.table) for use in wanted if use.table}
    tables = {table: footer_digest(found) for table, found in parts.items() if found or (folder / table).exists()}
    splits = sorted((dataset.table, dataset.split) for dataset in config.data.datasets.values())
    return _digest({"items": items, "tables": tables, "splits": splits, "tasks": to_dict(config.eval.tasks)})


def program_digest(config: Config) -> str:
    """Returns a digest of the settings on which the compiled train step depends."""
    values = {key: value for key, value in to_dict(config).items() if key not in _NOT_IN_PROGRAM}
    values["optimizer"] = {k: v for k, v in values["optimizer"].items() if k not in _NOT_IN_OPTIMIZER}
    values["data"] = values["data"] | {"dir": ""}
    values["train"] = to_dict(TrainConfig()) | {"micro_batches": config.train.micro_batches}
    rates = ("steps", "peak", "floor", "warmup_steps")
    values["stages"] = {
        name: {key: value for key, value in stage.items() if key not in rates}
        for name, stage in values["stages"].items()
    }
    return _digest(values)


def _digest(values: Any) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


def _placed(config: Config) -> Config:
    """Returns the config with a `data.dir` that is the same in every folder."""
    folder = place(config.data.dir)
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, dir=address(folder) or str(folder.absolute()))
    )
