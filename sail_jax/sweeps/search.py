"""Runs a search here: a trial that ends makes room for the next, whose values are chosen then."""

import dataclasses
import json
from collections.abc import Callable, Sequence

from sail_jax import config as config_lib
from sail_jax.config import Config
from sail_jax.config.schema import nearest
from sail_jax.errors import SailError
from sail_jax.sweeps.begin import add_member
from sail_jax.sweeps.check import Checked, check_members
from sail_jax.sweeps.declare import Search, Sweep
from sail_jax.sweeps.expand import probes, trial_member
from sail_jax.sweeps.folder import MemberState, SweepFolder, SweepState, read
from sail_jax.sweeps.local import Pool
from sail_jax.sweeps.trials import Trials
from sail_jax.sweeps.watch import last_log_lines

NO_QUEUE = (
    "The trials of a search are chosen while others run, so they can't be queued at once: use `sweep run` with "
    "--launcher local, for example within one job with several GPUs."
)


def checked_search(
    sweep: Sweep, folder: SweepFolder, *, refuses: Callable[[Config], str] | None = None
) -> list[Checked]:
    """Checks the ends of what a search may choose, and returns the members of the trials that have begun.

    Args:
        sweep: the sweep.
        folder: its folder, which need not exist yet.
        refuses: as in `check_members`.

    Raises:
        SailError: as `probes` and `check_members`; or nothing evaluates while training, though trials shall be pruned.
    """
    found = check_members(sweep, probes(sweep), refuses=refuses)
    if sweep.search.pruner and not all(member.config.train.evaluate_every for member in found):
        raise SailError("A search that prunes needs evaluations while training: set config.train.evaluate_every.")
    if not folder.trials.is_file():
        return []
    begun = Trials(folder.trials, sweep.name, sweep.search).begun()
    return check_members(sweep, [trial_member(sweep, number, values) for number, values in begun.items()])


def run_search(
    folder: SweepFolder,
    names: Sequence[str],
    sweep: Sweep | None,
    *,
    jobs: int | None = None,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Runs members of a search, then new trials until there are enough; returns the names of all.

    A trial that fails leaves the others alone, and stays open until it is retried.

    Args:
        folder: the folder of the sweep.
        names: members that have begun.
        sweep: the sweep, which new trials are made of; None for none.
        jobs: members that run at a time, as in `local.shares`.
        say: gets a line when a member starts or ends.

    Raises:
        SailError: Optuna is missing; or as `shares`.
    """
    state = read(folder.path)
    trials = Trials(folder.trials, state.record.name, Search.from_json(state.record.search))
    for member in state.members:  # what has ended while nobody told Optuna
        _end_trial(state, trials, member.name)
    waiting, ran, pruned = list(names), [], set()
    with Pool(folder, jobs, say) as pool:
        while True:
            while pool.has_room and (name := waiting.pop(0) if waiting else _next(folder, trials, sweep, say)):
                ran.append(name)
                pool.start(name)
            if not pool.running:
                return ran
            for name in pool.wait():
                _should_end(folder, trials, name, state.record.metric)  # what it evaluated since the last look
                if name in pruned and folder.status(name).state in ("stopped", "preempted"):
                    folder.write_status(name, dataclasses.replace(folder.status(name), state="pruned"))
                    say(f"{name}: pruned")
                _end_trial(read(folder.path), trials, name)
            for name in pool.running:
                if name not in pruned and _should_end(folder, trials, name, state.record.metric):
                    pruned.add(name)
                    pool.tell_to_end(name)


def _number(name: str) -> int:
    """Returns the number of the trial of a member."""
    return int(name.removeprefix("trial=").partition(",")[0])


def _next(folder: SweepFolder, trials: Trials, sweep: Sweep | None, say: Callable[[str], None]) -> str | None:
    """Adds the next trial to the sweep, and returns its name; None if there is none."""
    while sweep and (asked := trials.ask()):
        number, values = asked
        member = trial_member(sweep, number, values)
        try:
            (checked,) = check_members(sweep, [member])
        except SailError as error:
            trials.refuse(number, str(error))
            say(str(error))
            continue
        add_member(folder, checked)
        say(f"{member.name}: {' '.join(member.overrides)}")
        return member.name
    return None


def _should_end(folder: SweepFolder, trials: Trials, name: str, metric: str) -> bool:
    """Reports the interval evaluations of a member; returns whether it is pruned."""
    key = f"eval/{metric}"
    figures = {line["step"]: line[key] for line in last_log_lines(folder.run(name)) if key in line}
    if not figures or not trials.report(_number(name), figures):
        return False
    return max(figures) < config_lib.total_steps(config_lib.load(folder.config(name)))


def _end_trial(sweep: SweepState, trials: Trials, name: str) -> None:
    """Tells Optuna how a member has ended, if it is done or pruned."""
    member = next(member for member in sweep.members if member.name == name)
    if member.status.state == "pruned":
        trials.end(_number(name), None, pruned=True)
    elif member.status.state == "done":
        trials.end(_number(name), _figure(member, sweep.record.metric))


def _figure(member: MemberState, metric: str) -> float | None:
    """Returns the metric of a member that is done; None if it is not finite, or the file is damaged."""
    try:
        figures = json.loads(member.run.metrics.read_text(encoding="utf-8"))["trained"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if metric not in figures:
        raise SailError(
            f"The metric of the search is {metric!r}, which {member.name} does not have. Did you mean "
            f"{nearest(metric, list(figures))}? Search for that in another --workdir."
        )
    return figures[metric]
