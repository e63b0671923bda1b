"""Evaluates the model during training, at an interval, on the tasks of the config."""

from typing import Any

from jax.sharding import Mesh

from sail_jax.config import Config
from sail_jax.data.pipeline import open_store
from sail_jax.evaluation.suite import evaluate_task
from sail_jax.evaluation.tasks import load_tasks
from sail_jax.evaluation.vector_sources import ModelVectors
from sail_jax.runs.directory import RunDirectory
from sail_jax.training.stage_mining import embedder_of


class IntervalEvaluation:
    """Evaluates parameters on all tasks, under the tasks' own views and at full width.

    All processes evaluate together, and the parameters stay where training has them. The evaluation neither changes the
    training state nor draws from it.

    Args:
        config: the experiment; reads `eval` and `train.evaluate_every`.
        run: the run directory, which holds the vectors until the evaluation is done; all processes must share it.
        mesh: the mesh of the training.

    Raises:
        SailError: the config has no task, or a task is wrong.
    """

    def __init__(self, config: Config, run: RunDirectory, mesh: Mesh) -> None:
        self._config, self._run, self._mesh = config, run, mesh
        self._store = open_store(config)
        self._tasks = load_tasks(config, self._store)

    def is_due(self, done: int) -> bool:
        """Returns whether the model is evaluated after `done` steps."""
        return done % self._config.train.evaluate_every == 0

    def __call__(self, params: Any) -> dict[str, float]:
        """Evaluates the parameters of a training state; all processes must call it.

        Returns:
            "eval/TASK/METRIC" -> value.

        Raises:
            SailError: when no query of a task can be scored, or too many items cannot be loaded.
        """
        embedder = embedder_of(self._config, params, self._mesh)
        figures: dict[str, float] = {}
        with embedder.processes.scratch(self._run.path, "embeddings-") as scratch:
            source = ModelVectors("trained", embedder, self._store, scratch)
            for task in self._tasks.values():
                (result,) = evaluate_task(source, task, self._config, main_only=True)
                figures |= {f"eval/{task.name}/{name}": value for name, value in result.metrics.items()}
        return figures
