"""Runs the arms of claims as sweeps, and reads what they found."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from experiments.reproduce.arms import Arms, own_arms, users_arms
from experiments.reproduce.bases import SCALES, Scale
from experiments.reproduce.claim import AbsentError, Claim
from experiments.reproduce.fairness import check_arms
from experiments.reproduce.launch import launch
from experiments.reproduce.prepare import Preparation
from experiments.reproduce.ranked import rank, read_ranked
from experiments.reproduce.records import declaration, declared
from experiments.reproduce.same_runs import take_over
from experiments.reproduce.verdicts import DOES_NOT_APPLY, NOT_RUN, Row, judge
from sail_jax import config as config_lib
from sail_jax.config import Config
from sail_jax.errors import SailError
from sail_jax.evaluation.report.seed_groups import SeedGroup
from sail_jax.sweeps import Sweep, SweepFolder, expand
from sail_jax.sweeps.begin import write_sweep
from sail_jax.sweeps.check import Checked, check_members
from sail_jax.sweeps.collect import collect
from sail_jax.sweeps.shared_stages import find_forks
from sail_jax.sweeps.slurm import JobRequest

FEWEST_SEEDS = 2


@dataclasses.dataclass(frozen=True)
class Study:
    """What is tested, on what, and where.

    Attributes:
        claims: the claims.
        folder: of everything that is written.
        seeds: seeds of each arm.
        scale: name of the scale.
        config: the user's config; None for the generated worlds.
        jobs: members that run at a time; None as in `launch`.
        request: what each job asks SLURM for; None runs members here.

    Raises:
        SailError: there are too few seeds for an interval.
    """

    claims: tuple[Claim, ...]
    folder: Path
    seeds: int
    scale: str
    config: Config | None
    jobs: int | None = None
    request: JobRequest | None = None

    def __post_init__(self) -> None:
        if self.seeds < FEWEST_SEEDS:
            raise SailError(f"--seeds is {self.seeds}; an interval needs at least {FEWEST_SEEDS}, and 5 are better.")

    @property
    def sizes(self) -> Scale:
        """The scale."""
        return SCALES[self.scale]

    @property
    def preparation(self) -> Preparation:
        """What makes the worlds."""
        return Preparation(self.folder / "prepared", self.sizes)

    def sweep_folder(self, claim: Claim) -> SweepFolder:
        """The folder of a claim's sweep."""
        return SweepFolder(self.folder / "claims" / claim.name)

    def base_file(self, claim: Claim) -> Path:
        """The file of the config with a claim's ingredient."""
        return self.folder / "bases" / f"{claim.name}.json"


def build_arms(study: Study) -> tuple[dict[str, Arms], list[Row]]:
    """Returns the arms of the claims that apply, and the rows of those that do not.

    Raises:
        SailError: the figures of claims are not computed; a line for each.
    """
    arms, rows, refused = {}, [], []
    for claim in study.claims:
        made = study.preparation
        try:
            if study.config is None:
                arms[claim.name] = own_arms(claim, study.sizes, made.folder, made.data(claim.world))
            else:
                arms[claim.name] = users_arms(claim, study.config)
        except AbsentError as reason:
            rows.append(Row(claim, claim.figure, DOES_NOT_APPLY, str(reason)))
        except SailError as error:
            refused.append(str(error))
    _refuse(refused)
    return arms, rows


def _refuse(reasons: Sequence[str]) -> None:
    if reasons:
        raise SailError("\n".join([*reasons, "Change that, or name the other claims alone. Nothing was started."]))


def declarations(study: Study, arms: Mapping[str, Arms]) -> dict[str, dict]:
    """Returns what is written down of each claim before it is run."""
    return {
        name: declaration(one.claim, one.base, one.changes, one.figure, study.seeds, study.folder)
        for name, one in arms.items()
    }


def write_base(study: Study, arms: Arms) -> Sweep:
    """Writes the config with a claim's ingredient; returns the sweep of both arms."""
    file = study.base_file(arms.claim)
    file.parent.mkdir(parents=True, exist_ok=True)
    config_lib.save(arms.base, file)
    return arms.sweep(file, study.seeds)


def check(arms: Arms, sweep: Sweep) -> list[Checked]:
    """Returns the members of a claim, all of which can run, and whose arms differ in the ingredient alone.

    Raises:
        SailError: they do not.
    """
    checked = check_members(sweep, expand(sweep))
    of_arm = {member.record.member.axes["variant"]: member.config for member in checked if not member.config.seed}
    check_arms(arms.claim, of_arm[arms.claim.treatment], of_arm[arms.claim.control])
    return checked


def prepare_all(study: Study, arms: Mapping[str, Arms]) -> list[Row]:
    """Makes what the claims start from; returns the rows of those for which that failed."""
    rows = []
    for one in arms.values() if study.config is None else ():
        try:
            study.preparation.make([one.claim])
        except SailError as error:
            rows.append(Row(one.claim, one.figure, NOT_RUN, str(error)))
    return rows


def check_all(study: Study, arms: Iterable[Arms]) -> dict[str, tuple[Sweep, list[Checked]]]:
    """Returns {claim: its sweep and members}, of the claims that train.

    Raises:
        SailError: claims are refused; a line for each.
    """
    checked, refused = {}, []
    for one in arms:
        if one.claim.ranking:
            continue
        try:
            sweep = write_base(study, one)
            checked[one.claim.name] = sweep, check(one, sweep)
        except SailError as error:
            refused.append(str(error))
    _refuse(refused)
    return checked


def measure(study: Study, arms: Arms, checked: tuple[Sweep, list[Checked]] | None, say: Callable[[str], None]) -> None:
    """Runs what is missing of a claim.

    Args:
        study: the study.
        arms: the arms of the claim.
        checked: its sweep and members, by `check_all`; None for a claim on ranking models.
        say: gets a line when a member starts or ends.
    """
    claim, folder = arms.claim, study.sweep_folder(arms.claim)
    if checked is None:
        rank(claim, arms.base, study.preparation.folder, folder.path, study.seeds)
        return
    write_sweep(folder, *checked)
    others = [SweepFolder(path) for path in sorted(folder.path.parent.iterdir()) if path != folder.path]
    for name in take_over(folder, others):
        say(f"{claim.name}: {name}: taken from a claim that trained the same")
    launch(folder, jobs=study.jobs, request=study.request, say=lambda line: say(f"{claim.name}: {line}"))


def row_of(study: Study, claim: Claim) -> Row:
    """Returns what the folder tells of a claim: its verdict, or why there is none yet."""
    entry = declared(study.folder).get(claim.name)
    if entry is None or not (claim.ranking or study.sweep_folder(claim).file.is_file()):
        return Row(claim, claim.figure, NOT_RUN, "not started")
    figure, seeds = (entry["declaration"][name] for name in ("figure", "seeds"))
    try:
        groups = _ranked(study, claim, seeds) if claim.ranking else _trained(study, claim)
    except SailError as error:
        return Row(claim, figure, NOT_RUN, str(error))
    return judge(claim, figure, *groups, seeds)


def _ranked(study: Study, claim: Claim, seeds: int) -> list[SeedGroup]:
    return read_ranked(claim, study.sweep_folder(claim).path, seeds)


def _trained(study: Study, claim: Claim) -> list[SeedGroup]:
    """Returns the figures of both arms of a claim.

    Raises:
        SailError: a member has none; the message says why.
    """
    found = collect(study.sweep_folder(claim).path)
    missing = [f"{outcome.state.name}: {outcome.missing}" for outcome in found.outcomes if outcome.missing]
    if missing:
        raise SailError("; ".join(missing))
    names = (claim.treatment, claim.control)  # in the order of the sweep
    return [dataclasses.replace(group, name=name) for group, name in zip(found.groups(), names, strict=True)]


class Plan:
    """What a study would run: members, steps and time.

    Args:
        study: the study.
        arms: the arms of its claims.
    """

    def __init__(self, study: Study, arms: Sequence[Arms]) -> None:
        self._study = study
        self.lines = [self._line(one) for one in arms]
        self.seconds = sum(line[-1] for line in self.lines)

    def _line(self, arms: Arms) -> tuple[str, int, int, float]:
        """Returns the claim, its members, their steps and the seconds of one core."""
        if arms.claim.ranking:
            return arms.claim.name, 0, 0, 60.0 * self._study.seeds
        sizes = self._study.sizes
        sweep = arms.sweep(self._study.base_file(arms.claim), self._study.seeds)
        words = {member.name: member.overrides for member in expand(sweep)}
        configs = {name: config_lib.build(_changed(arms.base, overrides)) for name, overrides in words.items()}
        shared = sum(fork.step for fork in find_forks(configs).values())
        steps = sum(config_lib.total_steps(config) for config in configs.values()) - shared
        seconds = steps * arms.base.data.batch_size * sizes.seconds_per_pair + len(words) * sizes.seconds_per_member
        return arms.claim.name, len(words), steps, seconds


def _changed(base: Config, overrides: Sequence[str]) -> dict:
    return config_lib.override(Config, config_lib.to_dict(base), overrides)
