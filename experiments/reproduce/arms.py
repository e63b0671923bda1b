"""Builds the two arms of a claim as a sweep: on its own world, or on a config of the user."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.reproduce.bases import Scale, base, scaled
from experiments.reproduce.claim import AbsentError, Claim, Words
from experiments.reproduce.prepare import SEED
from sail_jax import config as config_lib
from sail_jax.config import Config
from sail_jax.config.evaluation import EvalTaskConfig
from sail_jax.errors import SailError
from sail_jax.evaluation.report.tables import lower_is_better
from sail_jax.patterns import Pattern, parse_pattern
from sail_jax.sweeps import Sweep, variants

# First part of a figure -> the family of metrics that it is of; others are their own.
_FAMILIES = {"ndcg": "ranking", "mrr": "ranking", "map": "ranking"}


@dataclasses.dataclass(frozen=True)
class Arms:
    """The two arms of a claim.

    Attributes:
        claim: the claim.
        base: the config with the ingredient.
        changes: what takes it out, "a.b=value".
        figure: the figure that decides.
    """

    claim: Claim
    base: Config
    changes: Words
    figure: str

    def sweep(self, base: Path, seeds: int) -> Sweep:
        """Returns the sweep of both arms; `base` is the file of the config with the ingredient."""
        return Sweep(
            base=str(base),
            axes=[variants({self.claim.treatment: (), self.claim.control: self.changes})],
            seeds=range(seeds),
            metric=self.figure,
            name=self.claim.name,
        )


def own_arms(claim: Claim, scale: Scale, made: Path, data: Path) -> Arms:
    """Returns the arms of a claim on its own world.

    Args:
        claim: the claim.
        scale: how large.
        made: the folder of what is prepared.
        data: the data of the world.
    """
    config = base(claim.world, scale)
    config.seed, config.data.dir = SEED, str(data)
    claim.set_up(config, made)
    scaled(config, scale)
    built = config_lib.build(config)
    if not claim.ranking:
        check_figures(claim, built, (claim.figure, *claim.shown))
    return Arms(claim, built, claim.without(built), claim.figure)


def users_arms(claim: Claim, config: Config) -> Arms:
    """Returns the arms of a claim on a config of the user.

    Raises:
        AbsentError: the config lacks the ingredient.
        SailError: none of its tasks has the figure.
    """
    if claim.ranking:
        raise AbsentError("it compares ranking models on a generated recommender; see experiments/ranking.py")
    changes = claim.without(config)
    return Arms(claim, config, changes, _users_figure(claim, config))


def _users_figure(claim: Claim, config: Config) -> str:
    """Returns the figure of a claim on the task that it names, or on the first that has it."""
    own, _, rest = claim.figure.partition("/")
    names = [own] * (own in config.eval.tasks) + [name for name in config.eval.tasks if name != own]
    found = next((name for name in names if not lacking(config, f"{name}/{rest}")), None)
    if found is None:
        raise SailError(f"{claim.name} is decided by {rest}, which no task has: {_remedy(config, names, rest)}.")
    return f"{found}/{rest}"


def _remedy(config: Config, names: Sequence[str], rest: str) -> str:
    return lacking(config, f"{names[0]}/{rest}") if names else "add a task to eval.tasks"


def check_figures(claim: Claim, config: Config, figures: Sequence[str]) -> None:
    """Checks that the tasks of a config compute some figures.

    Raises:
        SailError: one is not computed; the message says what to change.
    """
    for figure in figures:
        if why := lacking(config, figure):
            raise SailError(f"{claim.name} asks for {figure}, which is not computed: {why}.")


def lacking(config: Config, figure: str) -> str:
    """Returns what to change for a config to compute a figure; empty if it does."""
    task, _, rest = figure.partition("/")
    settings = config.eval.tasks.get(task)
    if settings is None:
        return f"eval.tasks has no {task!r}; its tasks are {', '.join(config.eval.tasks) or 'none'}"
    view, metric = _split(rest)
    if view and view.short not in {Pattern(one, one).short for one in settings.views}:
        return f"add {view.short!r} to eval.tasks.{task}.views"
    head, _, cut_off = metric.partition("@")
    family = _FAMILIES.get(head, head.partition("/")[0])
    if family not in _families(settings):
        return f"add {family!r} to eval.tasks.{task}.metrics, if its kind ({settings.kind}) has such figures"
    if cut_off and family in ("recall", "ranking") and int(cut_off) not in config.eval.ks:
        return f"add {cut_off} to eval.ks"
    return ""


def _split(rest: str) -> tuple[Pattern | None, str]:
    """Returns the view of a figure, if it names one, and the metric."""
    first, _, others = rest.partition("/")
    if others and first.isupper():
        return parse_pattern(f"{first}->{first}", setting="figure"), others
    return None, rest


def _families(settings: EvalTaskConfig) -> tuple[str, ...]:
    """Returns the families of metrics that a task computes."""
    if settings.kind == "sequence":
        return tuple(name for name in settings.metrics if name in ("recall", "ranking", "spread"))
    return settings.metrics if settings.kind == "retrieval" else ("accuracy", "spread")


def direction(figure: str) -> str:
    """Returns which values of a figure are the better ones."""
    return "lower" if lower_is_better(figure.partition("/")[2]) else "higher"
