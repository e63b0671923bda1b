"""Pattern matching: which patterns of which data sets a step scores, and which pairs have a part in each.

Source: arXiv 2510.12709, sec. 3.3.4. All patterns of a batch are scored in one forward pass: the model gives an embedding for
every view that occurs, and a pattern takes two of them.
"""

from typing import NamedTuple

from sail_jax.patterns import Pattern, shown_modalities, views_of


class Recipe(NamedTuple):
    """What is computed of a batch; a step is compiled once for each.

    Attributes:
        patterns: those of the data sets that may occur in the batch, each once.
        losses: names of the losses that weigh something for one of these data sets.
        room: tokens of a data-parallel shard for which the fusion has room; None where its rows are not packed.
        one_sided: whether the batch has queries alone.
    """

    patterns: tuple[Pattern, ...]
    losses: tuple[str, ...]
    room: int | None = None
    one_sided: bool = False

    @property
    def views(self) -> tuple[tuple[str, ...], ...]:
        """See `patterns.views_of`; those of the query side alone where there is no other."""
        return views_of(self.patterns)[: 1 if self.one_sided else 2]

    def view_indices(self, pattern: Pattern) -> tuple[int, int]:
        """Where the embeddings of a pattern's two sides stand among `views`."""
        queries, targets = views_of(self.patterns)
        return queries.index(pattern.query), targets.index(pattern.target)


def both_show(pattern: Pattern, letters: str) -> bool:
    """Whether both sides of a pattern may show all of some modalities."""
    return all(set(letters) <= set(shown_modalities((view,))) for view in pattern)
