"""Names the files of a run directory, and checks whether a run may be resumed with a config.

WORKDIR/
  config.json           the resolved config
  checkpoints/STEP/     model, LoRA adapters, optimiser and step (orbax), state of the input pipeline, digests of all
  owners/               the process that trains there now
  mined/STAGE/          hard negatives that a stage mined
  init.txt              where the first parameters came from
  nonfinite/STEP.txt    records of a batch whose loss or gradient was not finite
  metrics.jsonl         the training log: one line per logged step, and per evaluation in between
  tensorboard/          the same for TensorBoard
  metrics.json          the evaluation: model -> figure -> value
  evaluation.json       the same, result by result, with the histograms
  report_data.json      thumbnails, map and facts, so that the report can be drawn again without the model
  report.html           the evaluation as a page
  report_files/         its charts as PNGs
"""

import json
from pathlib import Path
from typing import Any

from sail_jax import config as config_lib
from sail_jax.config import Config
from sail_jax.config.schema import fixed_values
from sail_jax.errors import SailError


class RunDirectory:
    """Gives the paths of the files of a run.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.config = self.path / "config.json"
        self.checkpoints = self.path / "checkpoints"
        self.owners = self.path / "owners"
        self.mined = self.path / "mined"
        self.init_report = self.path / "init.txt"
        self.nonfinite = self.path / "nonfinite"
        self.training_log = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.metrics = self.path / "metrics.json"
        self.evaluation = self.path / "evaluation.json"
        self.report_data = self.path / "report_data.json"
        self.report = self.path / "report.html"

    def steps(self) -> list[int]:
        """Returns the steps whose checkpoints are kept, newest first; a damaged one may be among them."""
        if not self.checkpoints.is_dir():
            return []
        return sorted((int(path.name) for path in self.checkpoints.iterdir() if path.name.isdigit()), reverse=True)

    def load_config(self) -> Config:
        """Reads the config with which the run was started.

        Raises:
            SailError: the folder has no run.
        """
        if not self.config.is_file():
            raise SailError(f"{self.path} has no run (no config.json): train there first, or name another --workdir.")
        return config_lib.load(self.config)


def require_same_config(run: RunDirectory, config: Config) -> None:
    """Checks that a run is resumed with the config with which it was started.

    Each setting declares whether it may change (`schema.setting`). Those of logging, checkpointing, workers and
    evaluation may, and those of the mesh and of memory, which change results only by rounding. The number of steps may
    not, since the learning rate depends on it.

    Raises:
        SailError: another setting differs; the message lists these settings.
    """
    if not run.config.is_file():
        return
    old, new = fixed_values(run.load_config()), fixed_values(config)
    differing = [
        f"{key} (was {old.get(key)!r}, is {new.get(key)!r})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if differing:
        raise SailError(
            f"{run.path} has a run with another config; different: {', '.join(differing[:6])}"
            f"{', ...' if len(differing) > 6 else ''}. Use another --workdir, or the config in {run.config}."
        )


def read_training_log(run: RunDirectory) -> list[dict[str, Any]]:
    """Reads the lines of metrics.jsonl; ignores a last line that a kill cut short."""
    if not run.training_log.is_file():
        return []
    lines = []
    for text in run.training_log.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
