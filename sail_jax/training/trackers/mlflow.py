"""Sends the training log to MLflow."""

import re
import time
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from sail_jax.training.trackers.tracker import TrackedRun, project

_FORBIDDEN = re.compile(r"[^\w/.\- :]")  # in names of metrics
_BATCH, _LONGEST = 100, 500  # parameters of a call, and characters of one, that every store takes


class MlflowTracker:
    """A run of MLflow, at the server, in the database or in the folder that MLFLOW_TRACKING_URI names.

    MLflow has no groups: the group is a tag. Settings are parameters, "@" in names of metrics is "_at_".

    Args:
        mlflow: the package.
        run: the run.
    """

    def __init__(self, mlflow: ModuleType, run: TrackedRun) -> None:
        self._metric, self._client = mlflow.entities.Metric, mlflow.MlflowClient()
        if run.id:
            self.id = run.id
            self._client.update_run(self.id, status="RUNNING")
            return
        experiment = mlflow.set_experiment(project("MLFLOW_EXPERIMENT_NAME")).experiment_id
        tags = {"group": run.group} if run.group else {}
        self.id = self._client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
        params = [mlflow.entities.Param(key, str(value)[:_LONGEST]) for key, value in _flat(run.settings)]
        for begin in range(0, len(params), _BATCH):
            self._client.log_batch(self.id, params=params[begin : begin + _BATCH])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes a line."""
        now = int(1000 * time.time())
        named = ((_FORBIDDEN.sub("_", name.replace("@", "_at_")), value) for name, value in values.items())
        self._client.log_batch(self.id, [self._metric(name, value, now, step) for name, value in named])

    def finish(self) -> None:
        """Marks the run as finished."""
        self._client.set_terminated(self.id)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of nested settings."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield _FORBIDDEN.sub("_", f"{prefix}{key}"), value
