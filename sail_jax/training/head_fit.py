"""Fits the heads of the distillation to the model, on the batches that the stage is going to train on.

Axis letters: C candidates of the regularisation.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sail_jax.batch import Batch
from sail_jax.config import Config
from sail_jax.data.pipeline import BatchSource
from sail_jax.data.training_set import dataset_weights
from sail_jax.data.views import teacher_widths
from sail_jax.models.model import make_model
from sail_jax.objectives.distill import Head, Places, coordinates
from sail_jax.objectives.matching import Recipe
from sail_jax.objectives.objective import TaughtRows, taught_rows
from sail_jax.objectives.ridge_heads import HeadSums, cosines, solve, sums_of
from sail_jax.progress import track
from sail_jax.sharding.mesh import data_shards, shard_batch
from sail_jax.training.setup import TrainSetup
from sail_jax.training.stages import Stage
from sail_jax.training.state import TrainState
from sail_jax.training.step import make_encode

# One batch in so many is held out: it chooses the regularisation and measures the ceiling.
_HELD_OUT = 5

Rows = Callable[[Any, Batch, Recipe], TaughtRows]


def fits_heads(stages: Sequence[Stage], stage: Stage) -> bool:
    """Returns whether a stage is the first that distils, with heads or statistics found from data."""
    objective = stage.config.objective
    wanted = objective.distill_heads == "ridge" or objective.teacher_statistics != "none"
    return bool(wanted) and stage is next((each for each in stages if _distils(each.config)), None)


def _distils(config: Config) -> bool:
    drawn = [name for name, weight in dataset_weights(config).items() if weight > 0]
    return bool(teacher_widths(config, drawn))


def fit_heads(setup: TrainSetup, stage: Stage, source: BatchSource, state: TrainState) -> TrainState:
    """Returns the state with heads and statistics of the ID embeddings fitted to the frozen model.

    Two passes over the first batches that distil: one sums what the regression needs, and the other, over batches that
    were held out, chooses the regularisation and measures the cosine that the heads reach. Sums are split over the mesh
    like a training batch, so that memory does not grow with the items.

    Args:
        setup: the setup of the stage.
        stage: the stage, which begins.
        source: the batches of the stage.
        state: the state as the stage begins.

    Raises:
        SailError: an ID embedding is missing from all these items, or is the same for all of them.
    """
    settings, steps = stage.config.objective, _steps(stage, source)
    held_out = steps[_HELD_OUT - 1 :: _HELD_OUT] or steps
    fitted = [step for step in steps if step not in set(held_out)] or steps
    objective = state.params["objective"]
    heads: dict[str, Head] = objective["distill"]
    places = coordinates(heads)
    with jax.set_mesh(setup.mesh):
        rows = _make_rows(setup)
        total: dict[str, HeadSums] | None = None
        for found in _taught(setup, source, state, fitted, rows, "fit the heads"):
            total = _add_sums(total, found, places)
        candidates = {
            name: _stacked(solve(jax.device_get(sums), name=name, statistics=settings.teacher_statistics))
            for name, sums in total.items()
        }
        reached: dict[str, jax.Array] | None = None
        for found in _taught(setup, source, state, held_out, rows, "measure the heads"):
            reached = _add_cosines(reached, candidates, found, places)
    best = {name: _best(candidates[name], np.asarray(reached[name])) for name in heads}
    if settings.distill_heads == "random":
        best = {name: head | _kept(heads[name]) for name, head in best.items()}
    placed = jax.device_put(best, setup.shardings.params["objective"]["distill"])
    return state._replace(params=state.params | {"objective": objective | {"distill": placed}})


def _steps(stage: Stage, source: BatchSource) -> list[int]:
    """Returns the first steps that distil, as many as hold about `objective.distill_fit_items` items."""
    config, names = stage.config, list(stage.config.data.datasets)
    most = max(2, -(-config.objective.distill_fit_items // config.data.batch_size))

    def distils(step: int) -> bool:
        return bool(teacher_widths(config, [names[at] for at in source.datasets(step)]))

    return list(itertools.islice(filter(distils, range(stage.begin, stage.end)), most))


def _make_rows(setup: TrainSetup) -> Rows:
    encode = make_encode(make_model(setup.config.model, groups=data_shards(setup.mesh)), setup.config.lora)
    weights = setup.values.losses.weights["distill"]

    @functools.partial(jax.jit, static_argnums=2)
    def rows(params: Any, batch: Batch, recipe: Recipe) -> TaughtRows:
        return taught_rows(*encode(params, batch, recipe), batch, recipe, weights)

    return rows


def _taught(
    setup: TrainSetup, source: BatchSource, state: TrainState, steps: list[int], rows: Rows, what: str
) -> Iterator[TaughtRows]:
    """Yields the embedded rows of the batches of some steps."""
    for step in track(steps, what, disable=jax.process_index() != 0):
        loaded = source[step]
        recipe = setup.objective.recipe(loaded.datasets, loaded.room)
        for part in loaded.parts:
            yield rows(state.params, shard_batch(part, setup.mesh), recipe)


@functools.partial(jax.jit, static_argnums=2)
def _add_sums(total: dict[str, HeadSums] | None, rows: TaughtRows, places: Places) -> dict[str, HeadSums]:
    found = {
        name: sums_of(rows.z, rows.teachers[:, begin:end], rows.has[:, at] & (rows.weight > 0))
        for at, (name, begin, end) in enumerate(places)
    }
    return found if total is None else jax.tree.map(jnp.add, total, found)


@functools.partial(jax.jit, static_argnums=3)
def _add_cosines(total: dict | None, heads: dict[str, Head], rows: TaughtRows, places: Places) -> dict[str, jax.Array]:
    """Adds, for each ID embedding, the cosines of all candidates and the number of items, [C + 1]."""
    found = {}
    for at, (name, begin, end) in enumerate(places):
        counts = rows.has[:, at] & (rows.weight > 0)
        reached = cosines(heads[name], rows.z, rows.teachers[:, begin:end], counts)
        found[name] = jnp.append(reached, counts.sum().astype(jnp.float32))
    return found if total is None else jax.tree.map(jnp.add, total, found)


def _stacked(heads: list[Head]) -> Head:
    return {part: np.stack([head[part] for head in heads]) for part in heads[0]}


def _best(candidates: Head, reached: np.ndarray) -> Head:
    """Returns the candidate of the highest mean cosine on the items that were held out, with that as its ceiling."""
    *sums, count = reached.tolist()
    best = int(np.argmax(sums))
    ceiling = np.float32(sums[best] / count if count else np.nan)
    return {part: values[best] for part, values in candidates.items()} | {"ceiling": ceiling}


def _kept(head: Head) -> Head:
    """Returns the parts of a random head that a fit of the statistics alone leaves as they were."""
    return {part: head[part] for part in ("kernel", "bias")}
