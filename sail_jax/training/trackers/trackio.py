"""Sends the training log to trackio."""

import uuid
from collections.abc import Mapping
from types import ModuleType

from sail_jax.training.trackers.tracker import TrackedRun, project


class TrackioTracker:
    """A run of trackio, in the folder TRACKIO_DIR, or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL says.

    Args:
        trackio: the package.
        run: the run.
    """

    def __init__(self, trackio: ModuleType, run: TrackedRun) -> None:
        # trackio continues a run by its name, which therefore has to be the only one of its kind.
        self.id = run.id or f"{run.name}-{uuid.uuid4().hex[:6]}"
        self._run = trackio.init(
            project=project("TRACKIO_PROJECT"),
            name=self.id,
            group=run.group or None,
            config=dict(run.settings),
            resume="allow",
            embed=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes a line."""
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        """Waits until all lines are written."""
        self._run.finish()
