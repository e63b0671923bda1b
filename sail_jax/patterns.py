"""Views (sets of modalities: "V", "VTA", "O") and patterns of a query and a target view ("VTA->T")."""

from collections.abc import Iterable
from typing import NamedTuple

from sail_jax.errors import SailError

# The report's letters for vision, text and audio.
MODALITIES = "VTA"
# Every set of modalities, in the order of the report's matrix.
MODALITY_SETS = ("V", "T", "A", "VT", "VA", "TA", "VTA")

# A view of all modalities that an item has ("omni" in the report); a set such as "VT" requires each of its modalities.
OMNI = "O"


def check_modalities(modalities: str, *, setting: str) -> str:
    """Returns `modalities` in canonical order.

    Raises:
        SailError: on an empty set, an unknown letter or a repeated one; the message names `setting`.
    """
    if not modalities or set(modalities) - set(MODALITIES) or len(set(modalities)) != len(modalities):
        raise SailError(f"{setting} is {modalities!r}; write a set of modalities such as 'V', 'T' or 'VTA'.")
    return "".join(letter for letter in MODALITIES if letter in modalities)


class Pattern(NamedTuple):
    """The views of the query side and of the target side of a pair (arXiv 2510.12709, sec. 3.3.4).

    A view is a set of modalities, all of which an item must have, or `OMNI`, all that the item has.
    """

    query: str
    target: str

    def __str__(self) -> str:
        return f"{self.query}->{self.target}"

    @property
    def short(self) -> str:
        """Returns the short form: "V" for "V->V"; "V->T" has no shorter one."""
        return self.query if self.query == self.target else str(self)


def parse_pattern(text: str, *, setting: str) -> Pattern:
    """Reads a pattern such as "VTA->T", "A->VT" or "O->O".

    Raises:
        SailError: it is not two views joined by an arrow; the message names `setting`.
    """
    sides = [side.strip() for side in text.split("->")]
    if len(sides) != 2:
        raise SailError(f"{setting} is {text!r}; write a pattern such as 'VTA->VTA', 'T->V' or 'O->O'.")
    return Pattern(
        *(side if side == OMNI else check_modalities(side, setting=f"{setting}, {text!r},") for side in sides)
    )


def parse_patterns(texts: Iterable[str], *, setting: str) -> tuple[Pattern, ...]:
    """Reads the patterns of a training set.

    Raises:
        SailError: as `parse_pattern`; there is no pattern, or one is repeated.
    """
    patterns = tuple(parse_pattern(text, setting=setting) for text in texts)
    if not patterns or len(set(patterns)) != len(patterns):
        raise SailError(f"{setting} is {tuple(texts)}; name at least one pattern, such as 'O->O', and each once.")
    return patterns


def views_of(patterns: Iterable[Pattern]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the views of the query side and of the target side that some patterns need, each once."""
    queries, targets = zip(*patterns, strict=True)
    return tuple(dict.fromkeys(queries)), tuple(dict.fromkeys(targets))


def shown_modalities(views: Iterable[str]) -> str:
    """Returns the modalities that at least one of some views shows, as a subset of "VTA"."""
    letters = "".join(MODALITIES if view == OMNI else view for view in views)
    return "".join(letter for letter in MODALITIES if letter in letters)
