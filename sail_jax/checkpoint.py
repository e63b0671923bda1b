"""What a run directory holds, and saving and restoring it on any mesh.

WORKDIR/
  config.json           the resolved config
  checkpoints/STEP/     model, LoRA adapters, optimiser and step (orbax), and the state of the input pipeline
  mined/STAGE/          hard negatives that a stage mined
  init.txt              where the first parameters came from
  metrics.jsonl         one line per logged step, and per evaluation in between
  tensorboard/          the same for TensorBoard
  metrics.json          the evaluation: model -> figure -> value
  evaluation.json       the same, result by result, with the histograms
  report_data.json      thumbnails, map and facts, so that the report can be drawn again without the model
  report.html           the evaluation as a page
  report_files/         its charts as PNGs
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from sail_jax import config as config_lib
from sail_jax.config import Config
from sail_jax.errors import SailError
from sail_jax.parallel.rules import path_name
from sail_jax.schema import to_dict


class RunDirectory:
    """The files of a run.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.config = self.path / "config.json"
        self.checkpoints = self.path / "checkpoints"
        self.mined = self.path / "mined"
        self.init_report = self.path / "init.txt"
        self.training_log = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.metrics = self.path / "metrics.json"
        self.evaluation = self.path / "evaluation.json"
        self.report_data = self.path / "report_data.json"
        self.report = self.path / "report.html"

    def load_config(self) -> Config:
        """The config that the run was started with.

        Raises:
            SailError: when the folder holds no run.
        """
        if not self.config.is_file():
            raise SailError(f"{self.path} holds no run (no config.json): train there first, or name another --workdir.")
        return config_lib.load(self.config)


class Checkpoints:
    """Asynchronous checkpoints of a run.

    Args:
        run: the run directory.
        keep: how many checkpoints are kept, the latest.
        always: steps that are kept besides.
    """

    def __init__(self, run: RunDirectory, *, keep: int = 1, always: Sequence[int] = ()) -> None:
        policy = preservation_policy.AnyPreservationPolicy(
            [preservation_policy.LatestN(keep), preservation_policy.CustomSteps(list(always))]
        )
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, create=True)
        handlers = {name: ocp.StandardCheckpointHandler() for name in _ITEMS}
        handlers["pipeline"] = ocp.JsonCheckpointHandler()
        self._manager = ocp.CheckpointManager(run.checkpoints, options=options, item_handlers=handlers)
        self._run = run

    def latest(self) -> int | None:
        """Steps done at the latest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, items: dict[str, Any], pipeline: dict[str, Any]) -> None:
        """Starts to save; returns before it is written. A step that is saved already is left alone.

        Args:
            step: steps done.
            items: "model", the model's parameters; "lora", its adapters, where it has any; "training", the rest of
                the training state.
            pipeline: the state of the input pipeline, as JSON values.
        """
        if step == self._manager.latest_step():
            return
        arguments = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        self._manager.save(step, args=ocp.args.Composite(**arguments, pipeline=ocp.args.JsonSave(pipeline)), force=True)

    def restore(self, items: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The latest (items, pipeline).

        Args:
            items: those to restore, of abstract arrays that say with which shardings; the mesh may be another than when
                saving. "lora" must be among them where it was saved: without its adapters the model is another one.

        Raises:
            SailError: when there is no checkpoint, or when its arrays do not fit.
        """
        step = self.latest()
        if step is None:
            raise SailError(f"{self._run.path} holds no checkpoint: train there first, or name another --workdir.")
        saved = self._manager.item_metadata(step)
        for name in {*items, "lora"}:
            self._check_shapes(step, saved.get(name), items.get(name))
        arguments = {name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**arguments, pipeline=ocp.args.JsonRestore()))
        return {name: restored[name] for name in items}, restored["pipeline"]

    def _check_shapes(self, step: int, saved: Any, abstract: Any) -> None:
        have, want = _shapes(saved), _shapes(abstract)
        wrong = [name for name in sorted(have.keys() | want.keys()) if have.get(name) != want.get(name)]
        if wrong:
            shown = "; ".join(f"{n}: saved {have.get(n, 'absent')}, config {want.get(n, 'absent')}" for n in wrong[:5])
            raise SailError(
                f"The checkpoint {self._run.checkpoints / str(step)} is of another config: {len(wrong)} arrays differ "
                f"({shown}{', ...' if len(wrong) > 5 else ''}). Use the config of that run ({self._run.config}) or "
                "another --workdir."
            )

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


_ITEMS = ("model", "lora", "training")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every array; named tuples, lists and mappings of the same content give the same paths."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def require_same_config(run: RunDirectory, config: Config) -> None:
    """Checks that a run is continued with the config that it was started with.

    Logging, checkpointing, workers and evaluation may change, and so may the mesh and what fits a step to it, which change results by
    rounding alone; the number of steps may not, as the learning rate follows it.

    Raises:
        SailError: when another setting differs; the message lists the settings.
    """
    if not run.config.is_file():
        return
    old, new = (_flat(to_dict(c)) for c in (run.load_config(), config))
    differing = [
        f"{key} (was {old.get(key)!r}, is {new.get(key)!r})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(_FREE) and not key.endswith(_FREE_ENDS)
    ]
    if differing:
        raise SailError(
            f"{run.path} holds a run of another config; different: {', '.join(differing[:6])}"
            f"{', ...' if len(differing) > 6 else ''}. Use another --workdir, or the config in {run.config}."
        )


_FREE = (
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.evaluate_every",
    "eval.",
    "ingest.",
    "synthetic.",
    "balancing.",
    "mesh.",
    "train.micro_batches",
    "model.remat",
    "model.media_chunk",
    "model.perceiver.attention_block",
    "objective.score_block",
    "data.dir",
    "data.workers",
    "data.prefetch",
    "data.max_bad",
)
# Where the examples of a data set are read from; their table and order are compared when they are opened.
_FREE_ENDS = ".materialized"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value)
    return flat
