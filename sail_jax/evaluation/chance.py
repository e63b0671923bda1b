"""Makes results of what a random ranking reaches on each task and view."""

from collections.abc import Sequence

from sail_jax.evaluation.suite import TaskResult

MODEL = "chance"


def chance_results(results: Sequence[TaskResult]) -> list[TaskResult]:
    """Returns a result of the model "chance" for each task and view, the cells of the matrix left out.

    Args:
        results: the results of the models. All models that show the same view search the same items.
    """
    made: dict[tuple, TaskResult] = {}
    for result in results:
        if result.chance and result.full:
            made[result.task, result.view] = result.bound(MODEL, result.chance)
    return list(made.values())
