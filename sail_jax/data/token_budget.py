"""Computes the token capacity of a packed batch, and cuts texts to fit."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from sail_jax.batch import RowLayout, TokenType
from sail_jax.config import Config
from sail_jax.data.collate import thin
from sail_jax.data.features import ItemFeatures, View
from sail_jax.patterns import Pattern, shown_modalities, views_of

# The packed axis is a multiple of this, which suits matrix units.
_MULTIPLE = 128

RowFeatures = tuple[ItemFeatures, ...]


def text_budget(config: Config) -> float:
    """`config.data.text_budget`, or 0 for a model that does not pack."""
    return config.data.text_budget if config.model.kind == "fusion" else 0.0


def text_room(pairs: int, budget: float) -> int:
    """The text tokens that one side of some pairs may have together."""
    return math.ceil(pairs * budget)


def token_room(
    patterns: Sequence[Pattern],
    sets: Sequence[Sequence[View]],
    *,
    pairs: int,
    budget: float,
    latents: int,
    prompt_tokens: Callable[[str], int],
) -> int:
    """The number of tokens that the fusion needs capacity for.

    It depends only on the settings of the data sets, so that it is the same on all hosts and at all steps.

    Args:
        patterns: those of the data sets; every view of a side takes a row of each of its items.
        sets: for each data set, the views of its sides: query, target, hard negatives.
        pairs: pairs of a data-parallel shard.
        budget: text tokens per item.
        latents: tokens of the vision of an item.
        prompt_tokens: instruction -> tokens of the filled template.
    """
    sides = max(len(views) for views in sets)
    layout = RowLayout(views_of(patterns)[: min(sides, 2)], sides)
    total = 0
    for side, letters in layout.rows:
        views = [of_set[side] for of_set in sets if side < len(of_set)]
        shown = set(shown_modalities((letters,))) & set("".join(view.modalities for view in views))
        prompt = max(prompt_tokens(view.instruction) for view in views)
        media = latents * ("V" in shown) + ("A" in shown)
        total += pairs * (prompt + media) + text_room(pairs, budget) * ("T" in shown)
    return math.ceil(total / _MULTIPLE) * _MULTIPLE


def fit_texts(pairs: Sequence[RowFeatures], groups: int, budget: float) -> tuple[list[RowFeatures], int]:
    """Cuts the longest texts of each side, group by group, until they fit.

    Args:
        pairs: the features of pairs, with equal numbers of sides.
        groups: number of equal groups of pairs, one per data-parallel shard.
        budget: text tokens per item, averaged over a group.

    Returns:
        The pairs, and the number of tokens cut off.
    """
    size, fitted, cut = len(pairs) // groups, [], 0
    for group in range(groups):
        sides = zip(*pairs[group * size : (group + 1) * size], strict=True)
        columns = []
        for items in sides:
            lengths = np.array([(item.token_types == TokenType.TEXT).sum() for item in items])
            kept = thin(lengths, text_room(size, budget))
            cut += int((lengths - kept).sum())
            columns.append([_cut(item, n) for item, n in zip(items, kept, strict=True)])
        fitted += zip(*columns, strict=True)
    return fitted, cut


def _cut(item: ItemFeatures, kept: int) -> ItemFeatures:
    """The item with the first `kept` tokens of its text; the others become padding."""
    last = np.flatnonzero(item.token_types == TokenType.TEXT)[kept:]
    if not len(last):
        return item
    tokens, types = item.tokens.copy(), item.token_types.copy()
    tokens[last], types[last] = 0, TokenType.PAD
    return dataclasses.replace(item, tokens=tokens, token_types=types)
