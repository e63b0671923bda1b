"""The useful work of a training step: items, tokens, and operations."""

from typing import Any, NamedTuple

from jax.sharding import Mesh

from sail_jax.batch import Batch, RowLayout, TokenType, Views
from sail_jax.config import Config
from sail_jax.data.pipeline import LoadedBatch
from sail_jax.data.tower_outputs import NO_ENCODINGS, Encodings
from sail_jax.models.media import TYPES
from sail_jax.objectives.matching import Recipe
from sail_jax.patterns import shown_modalities
from sail_jax.sharding.chips import chip_of
from sail_jax.sharding.mesh import data_shards
from sail_jax.training.model_flops import model_flops
from sail_jax.training.time_spent import TimeSpent


class Work(NamedTuple):
    """The useful work of a step, over all devices.

    Attributes:
        items: items with anything to show.
        tokens: tokens that the fusion reads, over all views, without padding; in a dual tower those of the text tower.
        ideal_seconds: time of the model's operations at the peak rate of the devices; None if that is unknown.
    """

    items: float
    tokens: float
    ideal_seconds: float | None


class WorkCounter:
    """Counts the work of the steps of a stage.

    Args:
        config: the experiment, or a stage of it.
        mesh: the devices.
        params: the parameters of the training state, or their shapes.
        spent: gets the time of tracing, as time of compiling.
        encodings: outputs that batches hold; the towers that made them do not count.
    """

    def __init__(
        self, config: Config, mesh: Mesh, params: Any, spent: TimeSpent, encodings: Encodings = NO_ENCODINGS
    ) -> None:
        self._config, self._params, self._shards, self._spent = config, params, data_shards(mesh), spent
        self._encodings = encodings
        chip = chip_of(mesh.devices.flat[0])
        self._peak = chip.flops * mesh.size if chip else None
        self._seconds: dict[tuple[tuple[int, ...], Recipe], float] = {}

    def __call__(self, loaded: LoadedBatch, recipe: Recipe) -> Work:
        """Counts the work of a step; the other hosts' parts of the batch count like this one's.

        The first batch of a kind takes the time of tracing its gradient, unless the peak rate is unknown.
        """
        here = sum(len(part.tokens) for part in loaded.parts) / self._config.data.batch_size
        items = sum(int((part.token_types != TokenType.PAD).any(axis=-1).sum()) for part in loaded.parts)
        tokens = sum(self._tokens(part, recipe.views) for part in loaded.parts)
        return Work(items / here, tokens / here, self._ideal_seconds(loaded.datasets, recipe))

    def _tokens(self, batch: Batch, views: Views) -> int:
        counts = {kind: (batch.token_types == kind).sum(axis=(0, 2)) for kind in TokenType}  # each [S]
        if self._config.model.kind != "fusion":
            return int((counts[TokenType.PROMPT] + counts[TokenType.TEXT]).sum())
        return sum(
            int(counts[kind][side])
            for side, view in RowLayout(views, batch.token_types.shape[1]).rows
            for kind in (TokenType.PROMPT, *(TYPES[letter] for letter in shown_modalities((view,))))
        )

    def _ideal_seconds(self, datasets: tuple[int, ...], recipe: Recipe) -> float | None:
        if self._peak is None:
            return None
        if (datasets, recipe) not in self._seconds:
            every = list(self._config.data.datasets)
            names = [every[dataset] for dataset in datasets]
            with self._spent.on("compile"):
                flops = model_flops(self._config, names, self._params, recipe, self._shards, self._encodings)
            self._seconds[datasets, recipe] = flops / self._peak
        return self._seconds[datasets, recipe]
