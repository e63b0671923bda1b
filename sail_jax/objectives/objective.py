"""The objective: the weighted losses of all patterns, with learnable temperatures.

Axis letters: V views, B pairs, S sides or training sets, K = S - 1 targets of a pair (its target and its hard
negatives), D width.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float32, Int32, Shaped

from sail_jax.batch import Batch, BySide, Outputs, RowLayout
from sail_jax.config import Config
from sail_jax.config.schema import to_dict, unknown_key
from sail_jax.config.training import LossWeights, ObjectiveConfig
from sail_jax.errors import SailError
from sail_jax.objectives.contrast import Contrast, ContrastLoss, ContrastSettings, plain_contrast
from sail_jax.objectives.cosent import cosent
from sail_jax.objectives.distill import TaughtRows, distill, init_heads
from sail_jax.objectives.info_nce import Correction
from sail_jax.objectives.late_fusion import init_gate, late_fusion
from sail_jax.objectives.matching import Recipe, both_show
from sail_jax.objectives.micl import Part, micl
from sail_jax.objectives.spread import spread
from sail_jax.patterns import Pattern, parse_patterns, shown_modalities

Params = dict[str, Any]
Metrics = dict[str, Shaped[Array, ""]]
# Embeddings of the query views and, where there are targets, of the target views.
Embeddings = tuple[Float32[Array, "V B D"], Float32[Array, "_ B K D"]] | tuple[Float32[Array, "V B D"]]
LOSSES = tuple(field.name for field in dataclasses.fields(LossWeights))
# Losses of those patterns alone that show some modalities.
_OF_MODALITIES = ("micl", "late_fusion")
_LOSSES_OF_KIND = {"pairs": LOSSES, "sequences": ("nce",), "items": ("distill",)}


@dataclasses.dataclass(frozen=True)
class SetRules:
    """The patterns and loss weights of one training set.

    Attributes:
        patterns: pairs of views that are matched.
        weights: loss -> weight; zero for losses that do not apply to the kind.
        min_score: the contrastive losses ignore pairs with a lower score.
        kind: "pairs", "sequences" or "items".
        correct_popularity: strength of the sampling-bias correction.
    """

    patterns: tuple[Pattern, ...]
    weights: Mapping[str, float]
    min_score: float
    kind: str = "pairs"
    correct_popularity: float = 0.0


class LossValues(NamedTuple):
    """The numbers of an objective, which a compiled step takes as data.

    Attributes:
        weights: loss -> weight in each training set, [S] float32; the `Recipe` says which losses are computed at all.
        min_score: `SetRules.min_score` of each training set, [S] float32.
        correct_popularity: `SetRules.correct_popularity` of each training set, [S] float32; read where a batch has
            frequencies.
        fits: pattern -> whether each training set has it, [S] bool.
        temperature: initial temperature, [] float32, as the others.
        min_temperature: lower bound of the temperatures.
        max_temperature: upper bound of the temperatures.
        cosent_temperature: temperature of COSENT.
        distill_temperature: temperature of the contrastive distillation.
    """

    weights: dict[str, ArrayLike]
    min_score: ArrayLike
    correct_popularity: ArrayLike
    fits: dict[str, ArrayLike]
    temperature: ArrayLike
    min_temperature: ArrayLike
    max_temperature: ArrayLike
    cosent_temperature: ArrayLike
    distill_temperature: ArrayLike


def set_rules(config: Config) -> tuple[SetRules, ...]:
    """Returns the rules of each training set of a config, in the order of the config.

    Raises:
        SailError: a wrong pattern, an unknown loss, a negative weight, a set of sequences or items without a weight, or
            a correction of popularity in a set of items.
    """
    rules = []
    for name, dataset in config.data.datasets.items():
        where = f"config.data.datasets.{name}"
        patterns = parse_patterns(dataset.patterns, setting=f"{where}.patterns")
        weights = to_dict(config.objective.weights) | check_loss_weights(dataset.loss_weights, f"{where}.loss_weights")
        weights = {loss: weight * (loss in _LOSSES_OF_KIND[dataset.kind]) for loss, weight in weights.items()}
        if dataset.kind != "pairs" and not any(weights.values()):
            raise SailError(
                f"{where} is of kind {dataset.kind!r} and teaches nothing: "
                f"give one of {', '.join(_LOSSES_OF_KIND[dataset.kind])} a weight in its loss_weights."
            )
        if dataset.kind == "items" and dataset.correct_popularity:
            raise SailError(
                f"{where} is of kind 'items', which has no negatives whose popularity could be corrected: set its "
                "correct_popularity to 0."
            )
        rules.append(SetRules(patterns, weights, dataset.min_score, dataset.kind, dataset.correct_popularity))
    return tuple(rules)


def check_loss_weights(weights: Mapping[str, float], setting: str) -> dict[str, float]:
    """Checks loss weights and returns them as a dict.

    Raises:
        SailError: an unknown loss or a negative weight; the message names `setting`.
    """
    for name, weight in weights.items():
        if name not in LOSSES:
            raise SailError(unknown_key(f"{setting}.{name}", name, LOSSES))
        if not weight >= 0:
            raise SailError(f"{setting}.{name} is {weight}; it must be at least 0.")
    return dict(weights)


@dataclasses.dataclass(frozen=True)
class Objective:
    """The weighted sum of all losses of a batch.

        L = nce L_nce-mrl + cosent L_cosent + micl L_micl + late_fusion L_lf + distill L_distill

    (arXiv 2510.12709, sec. 3.3.2 and 3.3.5). Each loss is the mean over all (pattern, pair) that count, weighted by the
    data set of the pair. So a batch with one pattern has the plain mean over its pairs, and a mixed batch has the mean
    of the losses of its data sets, weighted by their pairs. There is one temperature per training set.

    Attributes:
        config: the loss settings.
        sets: the rules of each training set.
        width: D.
        gated: whether there is a late-fusion gate; it is kept in stages where its loss has weight 0.
        contrast: computes the contrastive losses.
        groups: data-parallel shards of a batch.

    Raises:
        SailError: the initial temperature is outside its bounds.
    """

    config: ObjectiveConfig
    sets: tuple[SetRules, ...]
    width: int
    gated: bool = False
    contrast: ContrastLoss = plain_contrast
    groups: int = 1

    def __post_init__(self) -> None:
        low, start, high = self.config.min_temperature, self.config.temperature, self.config.max_temperature
        if not low <= start <= high:
            raise SailError(
                f"config.objective.temperature is {start}; choose it between min_temperature, {low}, and "
                f"max_temperature, {high}."
            )

    @property
    def values(self) -> LossValues:
        """Returns the numbers that a compiled step takes as data."""

        def of_sets(values: Sequence[float]) -> np.ndarray:
            return np.asarray(values, np.float32)

        patterns = sorted({pattern for rules in self.sets for pattern in rules.patterns})
        bounds = ("temperature", "min_temperature", "max_temperature")
        numbers = (*bounds, "cosent_temperature", "distill_temperature")
        return LossValues(
            {loss: of_sets([rules.weights[loss] for rules in self.sets]) for loss in LOSSES},
            of_sets([rules.min_score for rules in self.sets]),
            of_sets([rules.correct_popularity for rules in self.sets]),
            {str(pattern): np.array([pattern in rules.patterns for rules in self.sets]) for pattern in patterns},
            **{name: np.float32(getattr(self.config, name)) for name in numbers},
        )

    def init(self, seed: int | Int32[Array, ""] = 0, values: LossValues | None = None) -> Params:
        """Returns initial parameters.

        Args:
            seed: seed of the draws.
            values: numbers as data; None takes those of this objective.

        Returns:
            "log_temperature" [training sets] float32; "late_fusion", the gate, if `gated`; "distill", the heads of
            the ID embeddings, if the config has teachers.
        """
        start = jnp.log((values or self.values).temperature)
        params: Params = {"log_temperature": jnp.full(len(self.sets), start, jnp.float32)}
        if self.gated:
            params["late_fusion"] = init_gate(self.width)
        if self.config.teachers:
            params["distill"] = init_heads(self.config.teachers, self.width, seed)
        return params

    def project(self, params: Params, values: LossValues | None = None) -> Params:
        """Clips the temperatures to their bounds; called after every update.

        Clipping inside the loss would make the gradient zero at the bound, and a temperature could never return.
        """
        values = values or self.values
        low, high = jnp.log(values.min_temperature), jnp.log(values.max_temperature)
        return params | {"log_temperature": jnp.clip(params["log_temperature"], low, high)}

    def recipe(self, datasets: Sequence[int], room: int | None = None) -> Recipe:
        """Returns the recipe of batches of some training sets; sets that are trained alike have the same.

        Args:
            datasets: indices of the training sets that may occur in the batch.
            room: see `Recipe`; that of a batch is `LoadedBatch.room`.
        """
        patterns = sorted({pattern for d in datasets for pattern in self.sets[d].patterns})
        losses = [loss for loss in LOSSES if any(self.sets[d].weights[loss] > 0 for d in datasets)]
        one_sided = all(self.sets[d].kind == "items" for d in datasets)
        return Recipe(tuple(patterns), tuple(losses), room, one_sided)

    def __call__(
        self,
        params: Params,
        z: Embeddings,
        out: Outputs,
        batch: Batch,
        recipe: Recipe,
        values: LossValues | None = None,
    ) -> tuple[Float32[Array, ""], Metrics]:
        """Computes the loss of a global batch.

        Args:
            params: see `init`.
            z: embeddings of the query views and of the target views of `recipe.views`.
            out: intermediates of the model; only `filled` and `parts` are read.
            batch: provides keys, validity, scores and data sets.
            recipe: patterns and losses that are computed.
            values: numbers as data; None takes those of this objective.

        Returns:
            The loss, and metrics: each loss by its name, and metrics of each pattern, named "PATTERN/..." if there
            are several.
        """
        values, total, metrics = values or self.values, jnp.zeros(()), {}
        if "distill" in recipe.losses:
            total, metrics = self._distill(params, z, out, batch, recipe, values)
        patterns = () if recipe.one_sided else recipe.patterns
        scored = {pattern: self._score_pattern(params, z, out, batch, recipe, values, pattern) for pattern in patterns}
        for loss in [loss for loss in recipe.losses if loss != "distill"]:
            parts = [(losses[loss], counts.get(loss)) for losses, counts, _ in scored.values() if loss in losses]
            _check_parts(loss, parts, recipe)
            metrics[loss] = _mean_by_count(parts)
            total += metrics[loss]
        for pattern, (_, _, details) in scored.items():
            prefix = f"{pattern}/" if len(recipe.patterns) > 1 else ""
            metrics |= {f"{prefix}{name}": value for name, value in details.items()}
        metrics["temperature"] = self._temperature(params, batch).mean()
        return total, metrics

    def _distill(
        self, params: Params, z: BySide, out: Outputs, batch: Batch, recipe: Recipe, values: LossValues
    ) -> tuple[jax.Array, Metrics]:
        """Computes distillation over all views of all sides."""
        loss, count, details = distill(
            params["distill"],
            *taught_rows(z, out, batch, recipe, values.weights["distill"]),
            kind=self.config.distill,
            groups=self.groups,
            temperature=values.distill_temperature,
        )
        return loss, {"distill": loss, "taught_items": count} | details

    def _temperature(self, params: Params, batch: Batch) -> jax.Array:
        log_temperature = params["log_temperature"]
        if not self.config.learn_temperature:
            log_temperature = jax.lax.stop_gradient(log_temperature)
        return jnp.exp(log_temperature)[batch.dataset]

    def _score_pattern(
        self,
        params: Params,
        z: BySide,
        out: Outputs,
        batch: Batch,
        recipe: Recipe,
        values: LossValues,
        pattern: Pattern,
    ) -> tuple[Metrics, Metrics, Metrics]:
        """Returns the weighted losses of one pattern, the number of pairs that count in each, and metrics."""
        at = recipe.view_indices(pattern)

        def sides(of_views: BySide) -> tuple[jax.Array, jax.Array]:
            return of_views[0][at[0]], of_views[1][at[1]]

        query, target = sides(z)
        fits = _by_set(values.fits[str(pattern)], batch)
        exists_query, exists_target = sides(out.filled)
        exists_query &= batch.valid[:, 0] & fits
        exists_target &= batch.valid[:, 1:]
        losses, counts = {}, {}
        details = spread(target[:, 0], exists_target[:, 0] & fits)

        def contrast(loss: str, query: jax.Array, target: jax.Array, *exist: jax.Array) -> tuple[jax.Array, jax.Array]:
            exist = exist or (True, True)
            exists = exists_query & exist[0], exists_target & exist[1]
            value, count, found = self._contrast(params, batch, pattern, loss, values, query, target, *exists)
            if loss == "nce":
                details.update(found)
            return value, count

        if "nce" in recipe.losses:
            losses["nce"], counts["nce"] = contrast("nce", query, target)
        if "cosent" in recipe.losses:
            exists = exists_query & exists_target[:, 0]
            losses["cosent"], counts["cosent"] = self._cosent(batch, values, query, target[:, 0], exists)
        if "micl" in recipe.losses and both_show(pattern, "VT"):
            parts = (Part(*sides(out.parts.visual)), Part(*sides(out.parts.textual)))
            losses["micl"], counts["micl"] = micl(lambda *arrays: contrast("micl", *arrays), *parts)
        if "late_fusion" in recipe.losses and "V" in shown_modalities(pattern):
            visual = sides(out.parts.encoded)
            mixed = (late_fusion(params["late_fusion"], v, n) for v, n in zip(visual, (query, target), strict=True))
            losses["late_fusion"], counts["late_fusion"] = contrast("late_fusion", *mixed)
        return losses, counts, details

    def _contrast(
        self,
        params: Params,
        batch: Batch,
        pattern: Pattern,
        loss: str,
        values: LossValues,
        query: jax.Array,
        target: jax.Array,
        exists_query: jax.Array,
        exists_target: jax.Array,
    ) -> tuple[jax.Array, jax.Array, Metrics]:
        """Computes InfoNCE of the pairs whose two items exist, for "nce" on all Matryoshka slices.

        Returns:
            The loss, the number of pairs that count, and metrics.
        """
        weight = _by_set(values.weights[loss], batch)
        too_low = batch.scores < _by_set(values.min_score, batch)  # False for NaN
        valid = exists_query & exists_target[:, 0] & ~too_low
        widths = self.config.matryoshka if loss == "nce" else (query.shape[-1],)
        settings = ContrastSettings(widths, self.config.symmetric, self.config.share_hard_negatives)
        temperature, correction = self._temperature(params, batch), _correction(values, batch)
        given = Contrast(query, target, valid, exists_target[:, 1:], temperature, weight, batch, pattern, correction)
        value, metrics = self.contrast(given, settings)
        if target.shape[1] > 1:
            metrics["hard_negatives"] = (exists_target[:, 1:] & valid[:, None]).sum() / jnp.maximum(valid.sum(), 1)
        return value, valid.sum(), metrics | {"valid_pairs": valid.sum()}

    def _cosent(
        self, batch: Batch, values: LossValues, query: jax.Array, target: jax.Array, exists: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns COSENT, scaled by the weighted share of pairs that have a score, and the pairs of the pattern."""
        weight = _by_set(values.weights["cosent"], batch)
        valid, count = exists & ~jnp.isnan(batch.scores) & (weight > 0), exists.sum()
        loss = cosent(query, target, batch.scores, jnp.asarray(values.cosent_temperature), valid, batch.dataset)
        return loss * jnp.where(valid, weight, 0.0).sum() / jnp.maximum(count, 1), count


def taught_rows(z: BySide, out: Outputs, batch: Batch, recipe: Recipe, weights: ArrayLike) -> TaughtRows:
    """Returns the rows of a batch as the distillation sees them.

    Args:
        z: embeddings of the views of all sides.
        out: intermediates of the model; only `filled` is read.
        batch: the ID embeddings of the items.
        recipe: the views.
        weights: weight of the loss in each training set, [S] float32, which all its items have.
    """
    layout = RowLayout(recipe.views, batch.valid.shape[1])

    def of_rows(of_sides: jax.Array) -> jax.Array:
        """Repeats the values of sides for all rows of a pair: [B, S, ...] -> [B * R, ...]."""
        return _flat(layout.of_sides(of_sides))

    weight = jnp.repeat(_by_set(weights, batch), len(layout.rows))
    weight = jnp.where(_flat(layout.join(out.filled)) & of_rows(batch.valid), weight, 0.0)
    return TaughtRows(_flat(layout.join(z)), of_rows(batch.id_vectors), of_rows(batch.has_id), weight)


def _by_set(values: jax.Array, batch: Batch) -> jax.Array:
    """Returns the value of each pair's training set, [S] -> [B]."""
    return jnp.asarray(values)[batch.dataset]


def _correction(values: LossValues, batch: Batch) -> Correction | None:
    """Returns the frequencies of the candidates of a batch that has them, with the strength of each pair's set."""
    if batch.log_frequency is None:
        return None
    query, target, hard = batch.log_frequency[:, 0], batch.log_frequency[:, 1], batch.log_frequency[:, 2:]
    return Correction(query, target, hard, _by_set(values.correct_popularity, batch))


def _flat(rows: jax.Array) -> jax.Array:
    """Merges the first two axes: [B, R, ...] -> [B * R, ...]."""
    return rows.reshape(-1, *rows.shape[2:])


def _check_parts(loss: str, parts: Sequence[tuple[jax.Array, jax.Array | None]], recipe: Recipe) -> None:
    """Raises SailError where a loss is not computed as `_score_pattern` has to."""
    if not parts and recipe.patterns and loss not in _OF_MODALITIES and not recipe.one_sided:
        raise SailError(f"The loss {loss!r} has a weight, and nothing in Objective._score_pattern computes it.")
    for value, count in parts:
        if count is None or jnp.ndim(value) or jnp.ndim(count):
            what = "no count" if count is None else f"the shapes {jnp.shape(value)} and {jnp.shape(count)}"
            raise SailError(
                f"The loss {loss!r} and the number of its pairs have {what} in Objective._score_pattern: both have to "
                "be one number, losses[NAME] the mean over the pairs and counts[NAME] how many they are."
            )


def _mean_by_count(parts: Sequence[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """Returns the mean of (loss, pairs), weighted by the number of pairs."""
    count = sum((count for _, count in parts), jnp.zeros((), jnp.int32))
    return sum((value * count for value, count in parts), jnp.zeros(())) / jnp.maximum(count, 1)


def make_objective(config: Config, contrast: ContrastLoss = plain_contrast, groups: int = 1) -> Objective:
    """Returns the objective of a config.

    Args:
        config: the experiment.
        contrast: computes the contrastive losses.
        groups: data-parallel shards of a batch.

    Raises:
        SailError: as in `set_rules` and `Objective`.
    """
    sets = set_rules(config)
    every_stage = [
        check_loss_weights(s.loss_weights, f"config.stages.{n}.loss_weights") for n, s in config.stages.items()
    ]
    gated = any(weights.get("late_fusion", 0) > 0 for weights in [*(rules.weights for rules in sets), *every_stage])
    return Objective(config.objective, sets, config.model.llm.width, gated, contrast, groups)
