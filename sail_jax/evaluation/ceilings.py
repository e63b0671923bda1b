"""Makes results of what a perfect model reaches on each task and view of a generated world."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sail_jax.buckets import place
from sail_jax.config import Config
from sail_jax.config.evaluation import EvalTaskConfig
from sail_jax.data.ceilings import read_ceilings
from sail_jax.evaluation.suite import TaskResult

MODEL = "ceiling"
# Settings of a task for which the ceilings hold.
_HOLD = ("kind", "split", "query_fields", "target_fields", "both_ways", "min_score")


def ceiling_results(config: Config, results: Sequence[TaskResult]) -> list[TaskResult]:
    """Returns a result of the model "ceiling" for each task and view whose ceiling is known.

    A ceiling holds for the targets that the world counted: a result that searched other items, or had other queries,
    gets none.

    Args:
        config: the experiment; its data folder may hold ceilings.
        results: the results of the models.
    """
    known = read_ceilings(place(config.data.dir))
    made: dict[tuple, TaskResult] = {}
    for result in results:
        settings = config.eval.tasks[result.task]
        table = known["tables"].get(Path(settings.table).stem, {})
        counted = (result.corpus, result.queries + result.skipped) == (table.get("corpus"), table.get("queries"))
        if result.model == "tfidf" or not result.full or not counted or not _holds(settings):
            continue
        if ceilings := table.get(result.view.short):
            metrics = {f"recall@{k}": ceilings.get(f"recall@{k}", np.nan) for k in config.eval.ks}
            made[result.task, result.view] = result.bound(MODEL, metrics)
    return list(made.values())


def _holds(settings: EvalTaskConfig) -> bool:
    return all(getattr(settings, name) == getattr(EvalTaskConfig(), name) for name in _HOLD)
