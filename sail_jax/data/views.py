"""The views that a config gives to queries and targets of training sets and evaluation tasks."""

from collections.abc import Sequence

from sail_jax.config import Config
from sail_jax.config.data import DatasetConfig
from sail_jax.config.evaluation import EvalTaskConfig
from sail_jax.data.features import View
from sail_jax.data.prompts import check_fields, instruction
from sail_jax.errors import SailError
from sail_jax.patterns import Pattern, check_modalities, parse_patterns, shown_modalities


def dataset_patterns(config: Config, name: str) -> tuple[Pattern, ...]:
    """Parses the patterns of a training set.

    Raises:
        SailError: a pattern is wrong or repeated, or there is none.
    """
    return parse_patterns(config.data.datasets[name].patterns, setting=f"config.data.datasets.{name}.patterns")


def dataset_views(config: Config, name: str) -> tuple[View, View]:
    """The views of queries and of targets of a training set; they show all modalities in its patterns.

    Raises:
        SailError: a pattern is wrong, there is none, or a field is unknown.
    """
    settings, where = config.data.datasets[name], f"config.data.datasets.{name}"
    patterns = dataset_patterns(config, name)
    query, target = (shown_modalities(views) for views in zip(*patterns, strict=True))
    return _views(config, settings, where, query, target)


def side_views(config: Config, name: str) -> tuple[View, ...]:
    """The view of each side of a training set's rows: query, target, hard negatives, and random negatives.

    Negatives have the target's view. Sequences have one side per distinct item, all with the target's view; items have
    only a query side.

    Raises:
        SailError: as `dataset_views`; or the patterns of sequences have different views, or hard negatives; or what are
            no pairs have random negatives.
    """
    query, target = dataset_views(config, name)
    settings = config.data.datasets[name]
    if settings.random_negatives and settings.kind != "pairs":
        raise SailError(
            f"config.data.datasets.{name} is of kind {settings.kind!r}, which takes no random_negatives: set it to 0."
        )
    if settings.kind == "items":
        return (query,)
    if settings.kind == "sequences":
        _check_sequences(config, name)
        return (target,) * (settings.distinct_items or settings.history + 1)
    return (query, target, *[target] * (settings.hard_negatives + settings.random_negatives))


def _check_sequences(config: Config, name: str) -> None:
    settings, where = config.data.datasets[name], f"config.data.datasets.{name}"
    for pattern in dataset_patterns(config, name):
        if pattern.query != pattern.target:
            raise SailError(
                f"{where}.patterns has '{pattern}'; items of sequences have the same view as their target: write "
                f"'{pattern.target}->{pattern.target}'."
            )
    if settings.hard_negatives or settings.materialized:
        raise SailError(f"{where} is of kind 'sequences', which takes neither hard_negatives nor materialized records.")
    if config.data.sampling == "mixed":
        raise SailError(
            f"{where} is of kind 'sequences', which cannot be mixed: set config.data.sampling to 'specialized'."
        )


def teacher_widths(config: Config, names: Sequence[str]) -> dict[str, int]:
    """The ID embeddings in the batches of some training sets, with their widths.

    All of `config.objective.teachers` if one of the sets has the loss `distill`, else none.

    Raises:
        SailError: a set has the loss `distill`, and `config.objective.teachers` is empty.
    """
    default = config.objective.weights.distill
    for name in names:
        settings = config.data.datasets[name]
        if settings.kind == "sequences" or not settings.loss_weights.get("distill", default) > 0:
            continue
        if not config.objective.teachers:
            raise SailError(
                f"config.data.datasets.{name} gives the loss `distill` a weight, but config.objective.teachers is "
                "empty: name the ID embeddings of the items with their widths."
            )
        return dict(config.objective.teachers)
    return {}


def corrects_popularity(config: Config, names: Sequence[str]) -> bool:
    """Whether one of some training sets has `correct_popularity`, so that their batches carry frequencies."""
    return any(config.data.datasets[name].correct_popularity > 0 for name in names)


def task_views(config: Config, name: str) -> tuple[View, View]:
    """The views of queries and of the corpus of an evaluation task.

    Raises:
        SailError: a modality or a field is unknown.
    """
    settings, where = config.eval.tasks[name], f"config.eval.tasks.{name}"
    query = check_modalities(settings.query, setting=f"{where}.query")
    target = check_modalities(settings.target, setting=f"{where}.target")
    return _views(config, settings, where, query, target)


def retrieval_tasks(config: Config) -> list[str]:
    """The names of the evaluation tasks that are pair tables."""
    return [name for name, task in config.eval.tasks.items() if task.kind == "retrieval"]


def _views(
    config: Config, settings: DatasetConfig | EvalTaskConfig, where: str, query: str, target: str
) -> tuple[View, View]:
    for side, fields in (("query", settings.query_fields), ("target", settings.target_fields)):
        check_fields(fields, setting=f"{where}.{side}_fields")
    return (
        View(query, settings.query_fields, instruction(config.prompt, settings.query_instruction)),
        View(target, settings.target_fields, instruction(config.prompt, settings.target_instruction)),
    )
