"""The instructions that a run was trained with, by the role of what is embedded."""

from typing import NamedTuple

from sail_jax.config import Config
from sail_jax.config.data import DatasetConfig
from sail_jax.config.evaluation import EvalTaskConfig
from sail_jax.data.prompts import instruction
from sail_jax.patterns import parse_patterns


class Instructions(NamedTuple):
    """The system prompts of the two sides of a search.

    Attributes:
        query: of texts that search.
        document: of items.
    """

    query: str
    document: str


def instructions_of(config: Config) -> Instructions:
    """Returns the instructions of the first training set whose queries are texts.

    Without one they are those of the first training set; without any training set, of the evaluation tasks.
    """
    datasets = list(config.data.datasets.values())
    sets = [each for each in datasets if each.weight > 0] or datasets or [*config.eval.tasks.values(), DatasetConfig()]
    return pair_of(config, next(filter(_searches_by_text, sets), sets[0]))


def pair_of(config: Config, of: DatasetConfig | EvalTaskConfig) -> Instructions:
    """Returns the instructions of the two sides of a training set or a task, or the unified one."""
    return Instructions(*(instruction(config.prompt, own) for own in (of.query_instruction, of.target_instruction)))


def _searches_by_text(of: DatasetConfig | EvalTaskConfig) -> bool:
    if isinstance(of, EvalTaskConfig):
        return of.query == "T"
    return all(pattern.query == "T" for pattern in parse_patterns(of.patterns, setting="patterns"))
