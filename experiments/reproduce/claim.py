"""Declares what a claim of the report is: its sentence, its condition, its two arms and its figure."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sail_jax.config import Config

Words = tuple[str, ...]


class AbsentError(Exception):
    """Raised where a config lacks the ingredient of a claim; its text says what it lacks."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A direction of the report, and the experiment that could show it or its opposite.

    The arm with the ingredient is a config as it is; the other arm takes the ingredient out of it. So a claim applies
    to every config that has the ingredient.

    Attributes:
        name: its name on the command line.
        section: where the report claims it.
        says: the claim, as a sentence.
        reported: the report's figure.
        condition: in words, when the ingredient can matter, and what is trained on what.
        set_up: changes the base config of the world to this condition, with the ingredient; gets the folder of what is
            prepared too.
        figure: "TASK[/VIEW]/METRIC", the ingredient's purpose; it alone decides the verdict.
        treatment: name of the arm with the ingredient.
        control: name of the arm without it.
        without: returns the changes that take the ingredient out of a config, "a.b=value"; raises `AbsentError`.
        ingredient: patterns of the settings in which the arms may differ.
        shown: further figures of the page, which decide nothing.
        varies: entry of `fairness.account` in which the arms differ too -> why that is the ingredient itself.
        world: the generated world in which it is tested.
        needs: what is prepared first: names in `prepare`.
        ranking: whether the arms are ranking models on one recommender's embeddings, and no trainings of the config.
    """

    name: str
    section: str
    says: str
    reported: str
    condition: str
    set_up: Callable[[ConfigDict, Path], None]
    figure: str
    treatment: str
    control: str
    without: Callable[[Config], Words]
    ingredient: Words
    shown: Words = ()
    varies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    world: str = "content"
    needs: Words = ()
    ranking: bool = False

    def words(self) -> dict[str, Any]:
        """Returns all of the declaration but its functions."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if not callable(value)}
