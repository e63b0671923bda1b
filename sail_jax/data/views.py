"""What a config shows of queries and of targets: the views of training sets and of evaluation tasks."""

from sail_jax.config import Config, EvalTaskConfig
from sail_jax.data.features import View
from sail_jax.data.prompts import check_fields, instruction
from sail_jax.data_config import DatasetConfig
from sail_jax.errors import SailError
from sail_jax.items import Pattern, check_modalities, parse_pattern, shown_modalities


def dataset_patterns(config: Config, name: str) -> list[Pattern]:
    """What a training set matches with what.

    Raises:
        SailError: on a wrong pattern, or none at all.
    """
    where = f"config.data.datasets.{name}.patterns"
    patterns = [parse_pattern(text, setting=where) for text in config.data.datasets[name].patterns]
    if not patterns:
        raise SailError(f"{where} is empty; write at least one pattern, such as 'O->O'.")
    return patterns


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
    """What each side of a training set's pairs shows: query, target, and hard negatives, which are seen as targets are."""
    query, target = dataset_views(config, name)
    return (query, target, *[target] * config.data.datasets[name].hard_negatives)


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
