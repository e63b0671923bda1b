"""Pattern matching: the patterns and losses that a train step computes.

Source: arXiv 2510.12709, sec. 3.3.4. One forward pass serves all patterns of a batch: the model computes an embedding
for every view, and a pattern compares two of them.
"""

from typing import NamedTuple

from sail_jax.patterns import Pattern, shown_modalities, views_of


class Recipe(NamedTuple):
    """The patterns and losses of a batch; a train step is compiled once for each recipe.

    Attributes:
        patterns: different patterns of the data sets that may occur in the batch.
        losses: names of the losses that have a weight in one of these data sets.
        room: token capacity of the fusion per data-parallel shard; None where its rows are not packed.
        one_sided: whether the batch has only queries.
    """

    patterns: tuple[Pattern, ...]
    losses: tuple[str, ...]
    room: int | None = None
    one_sided: bool = False

    @property
    def views(self) -> tuple[tuple[str, ...], ...]:
        """The views of the query side and, unless one-sided, of the target side; see `patterns.views_of`."""
        return views_of(self.patterns)[: 1 if self.one_sided else 2]

    def view_indices(self, pattern: Pattern) -> tuple[int, int]:
        """Returns the indices of a pattern's query view and target view in `views`."""
        queries, targets = views_of(self.patterns)
        return queries.index(pattern.query), targets.index(pattern.target)


def both_show(pattern: Pattern, letters: str) -> bool:
    """Returns whether both sides of a pattern may show all of the given modalities."""
    return all(set(letters) <= set(shown_modalities((view,))) for view in pattern)
