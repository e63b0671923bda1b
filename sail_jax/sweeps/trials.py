"""Keeps the trials of a search in Optuna's own storage: asks for values, reports figures, ends trials."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sail_jax.errors import SailError
from sail_jax.sweeps.declare import Search, literal
from sail_jax.sweeps.distributions import Distribution

# Attribute of a trial that has no member.
_REFUSED = "refused"


class Trials:
    """The trials of a search; the same file continues them.

    Args:
        file: Optuna's journal; it is written.
        name: name of the study.
        search: the search.

    Raises:
        SailError: Optuna is missing.
    """

    def __init__(self, file: Path, name: str, search: Search) -> None:
        self._optuna, self._search = _package(), search
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        backend = self._optuna.storages.journal.JournalFileBackend(str(file))
        self._storage = self._optuna.storages.JournalStorage(backend)
        self._study = self._optuna.create_study(
            storage=self._storage,
            study_name=name,
            direction=search.direction,
            pruner=self._pruner(),
            load_if_exists=True,
        )
        self._distributions = {setting: self._distribution(how) for setting, how in search.settings.items()}

    def begun(self) -> dict[int, dict[str, Any]]:
        """Returns {number: {setting: value}} of the trials that have members."""
        trials = self._study.get_trials(deepcopy=False)
        return {trial.number: self._values(trial.params) for trial in trials if _REFUSED not in trial.user_attrs}

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        """Begins a trial, and returns its number and {setting: value}; None if there are enough.

        Its random numbers are those of the seed and its number, so that a search that was interrupted repeats none.
        """
        number = len(self._study.get_trials(deepcopy=False))
        if number >= self._search.trials:
            return None
        self._study.sampler = self._sampler(number)
        trial = self._study.ask(self._distributions)
        return trial.number, self._values(trial.params)

    def report(self, number: int, figures: Mapping[int, float]) -> bool:
        """Notes the figures of a trial at some steps, {step: figure}; returns whether it should end."""
        if not self._is_open(number):
            return False
        known = self._study.get_trials(deepcopy=False)[number].intermediate_values
        trial, prune = self._trial(number), False
        for step in sorted(figures.keys() - known.keys()):
            trial.report(figures[step], step)
            prune = prune or (bool(self._search.pruner) and trial.should_prune())
        return prune

    def end(self, number: int, figure: float | None, *, pruned: bool = False) -> None:
        """Ends a trial with its figure, unless it has ended.

        Without one it was pruned, or has failed.
        """
        if not self._is_open(number):
            return
        states = self._optuna.trial.TrialState
        if pruned:
            self._study.tell(number, state=states.PRUNED)
        elif figure is None or not np.isfinite(figure):
            self._study.tell(number, state=states.FAIL)
        else:
            self._study.tell(number, figure)

    def refuse(self, number: int, reason: str) -> None:
        """Ends a trial that gets no member."""
        self._trial(number).set_user_attr(_REFUSED, reason)
        self.end(number, None)

    def _is_open(self, number: int) -> bool:
        return not self._study.get_trials(deepcopy=False)[number].state.is_finished()

    def _trial(self, number: int) -> Any:
        study = self._storage.get_study_id_from_name(self._study.study_name)
        return self._optuna.Trial(self._study, self._storage.get_trial_id_from_study_id_trial_number(study, number))

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Returns values as they were declared: Optuna has the words of those that are chosen from a list."""
        values = {}
        for setting, how in self._search.settings.items():
            chosen = params[setting]
            values[setting] = (
                chosen if isinstance(how, Distribution) else {literal(value): value for value in how}[chosen]
            )
        return values

    def _distribution(self, how: Distribution | Sequence[Any]) -> Any:
        kinds = self._optuna.distributions
        if not isinstance(how, Distribution):
            return kinds.CategoricalDistribution([literal(value) for value in how])
        if how.whole:
            return kinds.IntDistribution(int(how.low), int(how.high))
        return kinds.FloatDistribution(how.low, how.high, log=how.log)

    def _sampler(self, number: int) -> Any:
        seed = int(np.random.SeedSequence((self._search.seed, number)).generate_state(1)[0])
        if self._search.sampler == "random":
            return self._optuna.samplers.RandomSampler(seed=seed)
        return self._optuna.samplers.TPESampler(seed=seed, n_startup_trials=self._search.startup)

    def _pruner(self) -> Any:
        pruners = self._optuna.pruners
        if self._search.pruner == "median":
            return pruners.MedianPruner(n_startup_trials=self._search.startup)
        return pruners.SuccessiveHalvingPruner() if self._search.pruner == "halving" else pruners.NopPruner()


def _package() -> Any:
    try:
        return importlib.import_module("optuna")  # of an extra
    except ImportError as error:
        raise SailError("A search needs Optuna: pip install 'sail_jax[optuna]'.") from error
