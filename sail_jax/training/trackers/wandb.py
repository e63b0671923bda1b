"""Sends the training log to Weights & Biases."""

import uuid
from collections.abc import Mapping
from types import ModuleType

from sail_jax.training.trackers.tracker import TrackedRun, project


class WandbTracker:
    """A run of W&B, whose local files stand in WORKDIR/wandb.

    W&B's environment variables hold: WANDB_MODE=offline writes only these files, which `wandb sync` sends later.

    Args:
        wandb: the package.
        run: the run.
    """

    def __init__(self, wandb: ModuleType, run: TrackedRun) -> None:
        self.id = run.id or uuid.uuid4().hex
        self._run = wandb.init(
            project=project("WANDB_PROJECT"),
            name=run.name,
            group=run.group or None,
            dir=run.folder,
            config=dict(run.settings),
            id=self.id,
            resume="allow",
            allow_val_change=True,
        )
        # W&B's own step counts the calls, which are two where a step is evaluated too.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes a line."""
        self._run.log({"step": step, **values})

    def finish(self) -> None:
        """Waits until all lines are sent, or written if W&B is offline."""
        self._run.finish()
