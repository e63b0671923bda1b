"""Lets members that begin alike train their common stages once: the others fork from its checkpoint.

A stage begins with a fresh optimiser from the parameters at the end of the one before, and every draw is a function of
the seed and the step. So a run that starts with the checkpoint of another one, whose stages up to there were the same,
ends with the parameters of a run of its own.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import accumulate

from sail_jax.config import Config
from sail_jax.config.schema import fixed_values
from sail_jax.config.training import stage_order
from sail_jax.files import commit_bytes, commit_json, partial_folder
from sail_jax.runs.directory import RunDirectory, read_training_log
from sail_jax.sweeps.folder import SweepFolder

FILE = "forks.json"


@dataclasses.dataclass(frozen=True)
class Fork:
    """Where a member takes over the stages that it shares.

    Attributes:
        leader: the member that trains them.
        step: the last step of the last one.
        stages: their names.
        ends: the last step of each.
    """

    leader: str
    step: int
    stages: tuple[str, ...]
    ends: tuple[int, ...]


def find_forks(configs: Mapping[str, Config]) -> dict[str, Fork]:
    """Returns the members that share first stages with an earlier one, each with as many as it can.

    They have the same data, the same seed, and the same of every setting but those of later stages.

    Args:
        configs: member -> its config, in the order in which they run.
    """
    first: dict[str, str] = {}
    forks = {}
    for name, config in configs.items():
        order = stage_order(config.stages) if config.train.progressive else []
        ends = tuple(accumulate(config.stages[stage].steps for stage in order))
        keys = [_key(config, order[: count + 1]) for count in range(len(order))]
        shared = next((count for count in range(len(order), 0, -1) if keys[count - 1] in first), 0)
        if shared:
            leader = first[keys[shared - 1]]
            forks[name] = Fork(leader, ends[shared - 1], tuple(order[:shared]), ends[:shared])
        for key in keys:
            first.setdefault(key, name)
    return forks


def _key(config: Config, stages: list[str]) -> str:
    """Returns a digest of all that the first stages of a run depend on."""
    values = fixed_values(dataclasses.replace(config, stages={name: config.stages[name] for name in stages}))
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def write_forks(folder: SweepFolder, forks: Mapping[str, Fork]) -> None:
    """Writes which members fork from which, for the processes of the members."""
    folder.path.mkdir(parents=True, exist_ok=True)
    commit_json(folder.path / FILE, {name: dataclasses.asdict(fork) for name, fork in forks.items()})


def read_forks(folder: SweepFolder) -> dict[str, Fork]:
    """Returns which members fork from which."""
    try:
        values = json.loads((folder.path / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # then each trains all of its stages
        return {}
    return {
        name: Fork(fork["leader"], fork["step"], tuple(fork["stages"]), tuple(fork["ends"]))
        for name, fork in values.items()
    }


def can_fork(folder: SweepFolder, fork: Fork) -> bool:
    """Returns whether the checkpoint from which a member forks is there."""
    return fork.step in folder.run(fork.leader).steps()


def may_start(folder: SweepFolder, fork: Fork | None) -> bool:
    """Returns whether a member need not wait for the one from which it forks."""
    return fork is None or can_fork(folder, fork) or folder.status(fork.leader).state not in ("waiting", "running")


def waves(folder: SweepFolder, names: Sequence[str], forks: Mapping[str, Fork]) -> list[list[str]]:
    """Returns members in groups that start one after another: forks after those they fork from."""
    numbers: dict[str, int] = {}
    for name in names:  # a member comes after the one from which it forks
        fork = forks.get(name)
        waits = fork is not None and fork.leader in numbers and not can_fork(folder, fork)
        numbers[name] = numbers[fork.leader] + 1 if waits else 0
    return [[name for name in names if numbers[name] == number] for number in sorted(set(numbers.values()))]


def take_over(folder: SweepFolder, name: str, fork: Fork) -> bool:
    """Makes the run directory of a member begin with the stages that another one has trained.

    Returns:
        Whether it did; not if the member has begun already, or the checkpoint is not there.
    """
    run, leader = folder.run(name), folder.run(fork.leader)
    if run.checkpoints.is_dir() or not can_fork(folder, fork):
        return False
    run.path.mkdir(parents=True, exist_ok=True)
    for stage in fork.stages:
        if (leader.mined / stage).is_dir():
            shutil.copytree(leader.mined / stage, run.mined / stage, dirs_exist_ok=True)
    _copy_logs(leader, run, fork.step)
    kept = set(leader.steps())
    with partial_folder(run.checkpoints) as partial:  # last: what is begun has it
        for step in fork.ends:
            if step in kept:
                shutil.copytree(leader.checkpoints / str(step), partial / str(step))
    return True


def _copy_logs(leader: RunDirectory, run: RunDirectory, step: int) -> None:
    lines = [line for line in read_training_log(leader) if line["step"] <= step]
    commit_bytes(run.training_log, "".join(json.dumps(line) + "\n" for line in lines).encode())
    if leader.init_report.is_file():
        shutil.copy(leader.init_report, run.init_report)
