"""Evaluates the model during training, at an interval, on the tasks of the config."""

import tempfile
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from sail_jax.config import Config
from sail_jax.config.training import MeshConfig
from sail_jax.data.pipeline import make_extractor, open_store
from sail_jax.embedding.embedder import Embedder
from sail_jax.evaluation.suite import evaluate_task
from sail_jax.evaluation.tasks import load_tasks
from sail_jax.evaluation.vector_sources import ModelVectors
from sail_jax.runs.directory import RunDirectory
from sail_jax.sharding.mesh import make_mesh
from sail_jax.training.stage_mining import on_local_devices


class IntervalEvaluation:
    """Evaluates parameters on all tasks, under the tasks' own views and at full width.

    The first process computes, the others wait. The evaluation neither changes the training state nor draws from it.

    Args:
        config: the experiment; reads `eval` and `train.evaluate_every`.
        run: the run directory, which holds the vectors until the evaluation is done.

    Raises:
        SailError: the config has no task, or a task is wrong.
    """

    def __init__(self, config: Config, run: RunDirectory) -> None:
        self._config, self._run = config, run
        self._store = open_store(config)
        self._tasks = load_tasks(config, self._store)

    def is_due(self, done: int) -> bool:
        """Returns whether the model is evaluated after `done` steps."""
        return done % self._config.train.evaluate_every == 0

    def __call__(self, params: Any) -> dict[str, float]:
        """Evaluates the parameters of a training state on any mesh; all processes must call it.

        Returns:
            "eval/TASK/METRIC" -> value; empty on all processes but the first.

        Raises:
            SailError: when no query of a task can be scored, or too many items cannot be loaded.
        """
        mesh = make_mesh(MeshConfig(), jax.local_devices())
        model = on_local_devices(self._config, params, mesh)
        figures: dict[str, float] = {}
        if jax.process_index() == 0:
            embedder = Embedder(self._config, model, make_extractor(self._config), mesh)
            with tempfile.TemporaryDirectory(prefix="embeddings-", dir=self._run.path) as scratch:
                source = ModelVectors("trained", embedder, self._store, Path(scratch))
                for task in self._tasks.values():
                    (result,) = evaluate_task(source, task, self._config, main_only=True)
                    figures |= {f"eval/{task.name}/{name}": value for name, value in result.metrics.items()}
        multihost_utils.sync_global_devices("evaluated")
        return figures
