"""Opens the trackers that a config names, and continues those that know the run already."""

import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence

from sail_jax.config import Config
from sail_jax.config.schema import to_dict
from sail_jax.errors import SailError
from sail_jax.files import commit_json
from sail_jax.runs.directory import RunDirectory, read_training_log
from sail_jax.training.trackers.mlflow import MlflowTracker
from sail_jax.training.trackers.outbox import Outbox, reason, say
from sail_jax.training.trackers.tracker import TrackedRun, Tracker
from sail_jax.training.trackers.trackio import TrackioTracker
from sail_jax.training.trackers.wandb import WandbTracker

_KINDS = {"wandb": WandbTracker, "mlflow": MlflowTracker, "trackio": TrackioTracker}


def require_trackers(names: Sequence[str]) -> None:
    """Checks that the packages of trackers are installed.

    Raises:
        SailError: one is not.
    """
    for name in names:
        # A folder that only has the name, such as the wandb/ that W&B makes, has no origin.
        if getattr(importlib.util.find_spec(name), "origin", None) is None:
            raise SailError(f"The tracker {name} of config.train is not installed: pip install 'sail_jax[{name}]'.")


class Trackers:
    """Sends lines to all trackers that a config names.

    Each gets every line once: one that is named later also those before, and none what a resumed run trains again. The
    ids by which they know the run stand in WORKDIR/trackers.json; under another name it is another run. A tracker that
    can't be opened is named in a message, and left out.

    Args:
        config: the experiment.
        run: the run directory, with the training log as an earlier start left it.
        start: steps done.
    """

    def __init__(self, config: Config, run: RunDirectory, start: int) -> None:
        name = config.train.tracker_name or run.path.name
        lines = read_training_log(run) if config.train.trackers else []
        self._again = {(line["step"], key) for line in lines if line["step"] > start for key in line}
        known = _known(run, name)
        self._outboxes: list[Outbox] = []
        for kind in config.train.trackers:
            told = TrackedRun(name, config.train.tracker_group, run.path, to_dict(config), known.get(kind, ""))
            try:
                tracker = _open(kind, told)
            except Exception as error:  # whatever a package, its server or its disk may raise
                say(f"{kind} can't be opened ({reason(error)}); the run goes on without it.")
                continue
            outbox = Outbox(kind, tracker)
            self._outboxes.append(outbox)
            if kind not in known:
                known[kind] = tracker.id
                commit_json(run.trackers, {"name": name, "ids": known})
                for line in lines:
                    outbox.log(line["step"], {key: value for key, value in line.items() if key != "step"})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Sends a line."""
        new = {key: value for key, value in values.items() if (step, key) not in self._again}
        for outbox in self._outboxes if new else ():
            outbox.log(step, new)

    def finish(self) -> None:
        """Waits for the trackers, for a while; says which of them lacks lines."""
        for outbox in self._outboxes:
            outbox.finish()


def send_evaluation(config: Config, run: RunDirectory, step: int, figures: Mapping[str, float | None]) -> None:
    """Sends the figures of the evaluation of a checkpoint to the trackers, where the run is known already.

    They are named "final/TASK/METRIC", beside the "eval/TASK/METRIC" of evaluations while training.

    Args:
        config: the experiment.
        run: the run directory.
        step: step of the checkpoint.
        figures: "TASK/METRIC" -> value; None for one that is not finite.
    """
    trackers = Trackers(config, run, step)
    trackers.log(step, {f"final/{name}": value for name, value in figures.items() if value is not None})
    trackers.finish()


def _open(kind: str, run: TrackedRun) -> Tracker:
    """Opens a tracker; its package, which has the same name, is imported here alone."""
    return _KINDS[kind](importlib.import_module(kind), run)


def _known(run: RunDirectory, name: str) -> dict[str, str]:
    """Returns {tracker: id} of a run that was tracked under this name before."""
    try:
        found = json.loads(run.trackers.read_text(encoding="utf-8"))
        return dict(found["ids"]) if found["name"] == name else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
