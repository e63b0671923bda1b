"""Names the files of a run directory, and checks whether a run may be resumed with a config.

WORKDIR/
  config.json           the resolved config; `data.dir` in it may be relative to the run
  tokenizer/            a copy of the tokenizer
  checkpoints/STEP/     model, LoRA adapters, optimiser and step (orbax), state of the input pipeline, digests of all
  owners/               the process that trains there now
  mined/STAGE/          hard negatives that a stage mined
  encodings/TOWER-ID/   what frozen towers make of frames and clips (`data.tower_outputs`)
  init.txt              where the first parameters came from
  nonfinite/STEP.txt    records of a batch whose loss or gradient was not finite
  metrics.jsonl         the training log: one line per logged step, and per evaluation in between
  tensorboard/          the same for TensorBoard
  trackers.json         name and ids of the run in other trackers
  metrics.json          the evaluation: model -> figure -> value
  evaluation.json       the same, result by result, with the histograms
  report_data.json      thumbnails, map and facts, so that the report can be drawn again without the model
  report.html           the evaluation as a page
  report_files/         its charts as PNGs
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sail_jax import config as config_lib
from sail_jax.buckets import address, fetch, names, place, put_changed
from sail_jax.config import Config
from sail_jax.config.schema import fixed_values
from sail_jax.config.storage import HUB
from sail_jax.config.training import stage_order
from sail_jax.errors import SailError


class RunDirectory:
    """Gives the paths of the files of a run.

    Args:
        path: the folder; of one in a bucket (`sail_jax.buckets`), all but the checkpoints is brought up to date here.

    Raises:
        SailError: it is in a bucket that cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = place(path).absolute()
        fetch(self.path, leave_out=_is_fetched_later)
        self.config = self.path / "config.json"
        self.tokenizer = self.path / "tokenizer"
        self.checkpoints = self.path / "checkpoints"
        self.owners = self.path / "owners"
        self.mined = self.path / "mined"
        self.encodings = self.path / "encodings"
        self.init_report = self.path / "init.txt"
        self.nonfinite = self.path / "nonfinite"
        self.training_log = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.trackers = self.path / "trackers.json"
        self.metrics = self.path / "metrics.json"
        self.evaluation = self.path / "evaluation.json"
        self.report_data = self.path / "report_data.json"
        self.report = self.path / "report.html"

    def steps(self) -> list[int]:
        """Returns the steps whose checkpoints are kept, newest first; a damaged one may be among them."""
        if address(self.path):
            found = {name.partition("/")[0] for name in names(self.checkpoints)}
        else:
            found = {path.name for path in self.checkpoints.iterdir()} if self.checkpoints.is_dir() else set()
        return sorted((int(name) for name in found if name.isdecimal()), reverse=True)

    def load_config(self, path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
        """Reads the config with which the run is read: its own, with the tokenizer that it keeps.

        Args:
            path: another experiment file.
            overrides: as in `config.load`.

        Raises:
            SailError: the folder has no run, or a setting is wrong.
        """
        saved = self.saved_config()
        config = config_lib.load(path or self.config, overrides)
        if self.tokenizer.is_dir() and config.prompt.tokenizer == saved.prompt.tokenizer:
            config = _with_tokenizer(config, str(self.tokenizer))
        return config

    def saved_config(self) -> Config:
        """Reads the config with which the run was started or last resumed.

        Raises:
            SailError: the folder has no run.
        """
        if not self.config.is_file():
            raise SailError(f"{self.path} has no run (no config.json): train there first, or name another --workdir.")
        return config_lib.load(self.config)

    def save_config(self, config: Config) -> None:
        """Writes config.json.

        A `data.dir` that is relative, or within the run, is written relative to the run: both may be moved together.
        """
        place_of_data = dataclasses.replace(config.data, dir=self._saved_data_dir(config.data.dir))
        config_lib.save(self._as_saved(dataclasses.replace(config, data=place_of_data)), self.config)

    def put_logs(self) -> None:
        """Uploads what the training log has grown by, of a run in a bucket."""
        put_changed(self.training_log)
        put_changed(self.tensorboard)

    def _saved_data_dir(self, text: str) -> str:
        data = place(text).absolute()
        if not text or address(data) and not data.is_relative_to(self.path):
            return text and address(data)
        if data.is_relative_to(self.path) or not (Path(text).is_absolute() or address(self.path)):
            return os.path.relpath(data, self.path)
        return str(data)

    def _as_saved(self, config: Config) -> Config:
        """Returns a config that names the tokenizer as the one that was saved, if it names the copy of it."""
        if config.prompt.tokenizer != str(self.tokenizer) or not self.config.is_file():
            return config
        return _with_tokenizer(config, self.saved_config().prompt.tokenizer)


def _is_fetched_later(name: str) -> bool:
    """Returns whether a file of a run is one that is not read, or only where it is needed."""
    return name.startswith(("checkpoints/", "tensorboard/", "owners/", "report_files/", "mined/"))


def _with_tokenizer(config: Config, name: str) -> Config:
    return dataclasses.replace(config, prompt=dataclasses.replace(config.prompt, tokenizer=name))


def require_same_config(run: RunDirectory, config: Config) -> list[str]:
    """Checks that a run is resumed with the config with which it was started.

    Each setting declares whether it may change (`schema.setting`). Those of logging, checkpointing, workers and
    evaluation may, and those of the mesh and of memory, which change results only by rounding. A run may also grow: by
    `train.steps`, by steps of its latest stage, and by stages after it; its learning rate follows the new number of
    steps from there on.

    Returns:
        The settings by which the run grows.

    Raises:
        SailError: another setting differs; the message lists these settings.
    """
    if not run.config.is_file():
        return []
    before, config = run.saved_config(), run._as_saved(config)
    old, new = _comparable(before), _comparable(config)
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    may_grow = _growth(before, config, max(run.steps(), default=0))
    grown = [key for key in differing if may_grow(key)]
    shown = [f"{key} (was {old.get(key)!r}, is {new.get(key)!r})" for key in differing if key not in grown]
    if shown:
        raise SailError(
            f"{run.path} has a run with another config; different: {', '.join(shown[:6])}"
            f"{', ...' if len(shown) > 6 else ''}. Use another --workdir, or the config in {run.config}."
        )
    return grown


def _comparable(config: Config) -> dict[str, Any]:
    """Returns the settings that may not change; a repository of the hub once was named without its prefix."""
    return {
        key: value.removeprefix(HUB) if isinstance(value, str) else value for key, value in fixed_values(config).items()
    }


def _growth(old: Config, new: Config, done: int) -> Callable[[str], bool]:
    """Returns the function that tells of a changed setting whether the run, after `done` steps, only grows by it."""
    if not old.stages or not new.stages or not new.train.progressive:
        longer = not old.stages and not new.stages and new.train.steps > old.train.steps
        return lambda key: key == "train.steps" and longer
    before, after = stage_order(old.stages), stage_order(new.stages)
    ends = list(itertools.accumulate(old.stages[name].steps for name in before))
    begun = [name for name, end in zip(before, ends, strict=True) if end - old.stages[name].steps < done]
    last = begun[-1] if begun else ""

    def grows(key: str) -> bool:
        section, _, rest = key.partition(".")
        name, _, setting = rest.partition(".")
        if section != "stages" or after[: len(begun)] != begun:
            return False
        longer = name == last and setting == "steps" and new.stages[name].steps > old.stages[name].steps
        return name not in begun or longer

    return grows


def read_training_log(run: RunDirectory) -> list[dict[str, Any]]:
    """Reads the lines of metrics.jsonl; ignores a last line that a kill cut short."""
    if not run.training_log.is_file():
        return []
    lines = []
    for text in run.training_log.read_bytes().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
