"""What a config shows of queries and of targets: the views of training sets and of evaluation tasks."""

from collections.abc import Sequence

from sail_jax.config import Config
from sail_jax.config.data import DatasetConfig
from sail_jax.config.evaluation import EvalTaskConfig
from sail_jax.data.features import View
from sail_jax.data.prompts import check_fields, instruction
from sail_jax.errors import SailError
from sail_jax.patterns import Pattern, check_modalities, parse_patterns, shown_modalities


def dataset_patterns(config: Config, name: str) -> tuple[Pattern, ...]:
    """What a training set matches with what.

    Raises:
        SailError: on a wrong pattern, none at all, or one that stands twice.
    """
    return parse_patterns(config.data.datasets[name].patterns, setting=f"config.data.datasets.{name}.patterns")


def dataset_views(config: Config, name: str) -> tuple[View, View]:
    """What a training set shows of queries and of targets: all that its patterns need.

    Raises:
        SailError: on a wrong pattern, none at all, or an unknown field.
    """
    settings, where = config.data.datasets[name], f"config.data.datasets.{name}"
    patterns = dataset_patterns(config, name)
    query, target = (shown_modalities(views) for views in zip(*patterns, strict=True))
    return _views(config, settings, where, query, target)


def sides_shown(config: Config, name: str) -> tuple[View, ...]:
    """What each side of a training set's rows shows: query, target, and hard negatives, which are seen as targets are.

    Sequences have as many sides as there is room for distinct items, all seen as targets are; items have a query side alone.

    Raises:
        SailError: as `dataset_views`; when sequences ask for more of one side than of the other, or for hard negatives.
    """
    query, target = dataset_views(config, name)
    settings = config.data.datasets[name]
    if settings.kind == "items":
        return (query,)
    if settings.kind == "sequences":
        _check_sequences(config, name)
        return (target,) * (settings.distinct_items or settings.history + 1)
    return (query, target, *[target] * settings.hard_negatives)


def _check_sequences(config: Config, name: str) -> None:
    settings, where = config.data.datasets[name], f"config.data.datasets.{name}"
    for pattern in dataset_patterns(config, name):
        if pattern.query != pattern.target:
            raise SailError(
                f"{where}.patterns has '{pattern}'; the items of a sequence are seen as their target is: write "
                f"'{pattern.target}->{pattern.target}'."
            )
    if settings.hard_negatives or settings.materialized:
        raise SailError(f"{where} is of kind 'sequences', which takes neither hard_negatives nor materialized records.")
    if config.data.sampling == "mixed":
        raise SailError(
            f"{where} is of kind 'sequences'; its batches are its own: set config.data.sampling to 'specialized'."
        )


def carried_teachers(config: Config, names: Sequence[str]) -> dict[str, int]:
    """The ID embeddings with their widths that batches of some training sets carry: all where one of the sets is taught by them.

    Raises:
        SailError: when a set is taught by ID embeddings and `config.objective.teachers` names none.
    """
    default = config.objective.weights.distill
    for name in names:
        settings = config.data.datasets[name]
        if settings.kind == "sequences" or not settings.loss_weights.get("distill", default) > 0:
            continue
        if not config.objective.teachers:
            raise SailError(
                f"config.data.datasets.{name} gives the loss `distill` a weight, and config.objective.teachers is empty: name the ID "
                "embeddings of the items with their widths."
            )
        return dict(config.objective.teachers)
    return {}


def task_views(config: Config, name: str) -> tuple[View, View]:
    """What an evaluation task shows of queries and of the corpus.

    Raises:
        SailError: on unknown modalities or fields.
    """
    settings, where = config.eval.tasks[name], f"config.eval.tasks.{name}"
    query = check_modalities(settings.query, setting=f"{where}.query")
    target = check_modalities(settings.target, setting=f"{where}.target")
    return _views(config, settings, where, query, target)


def retrieval_tasks(config: Config) -> list[str]:
    """The evaluation tasks that are pair tables."""
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
