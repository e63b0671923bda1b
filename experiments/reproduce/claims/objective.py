"""Claims on what is asked of the model: prompts, graded scores, patterns, dropped fields."""

from pathlib import Path

from ml_collections import ConfigDict

from experiments.reproduce.bases import ANOTHER_WORLD, from_another_world, use
from experiments.reproduce.claim import Claim
from experiments.reproduce.ingredients import (
    without_cosent,
    without_field_dropout,
    without_own_prompts,
    without_patterns,
)

# What items can be related by: instructions have these words in different orders, and so as many tokens.
MEANINGS = ("topic", "theme", "look")


def tasks_that_conflict(config: ConfigDict, made: Path) -> None:
    """What is related is the topic, the theme or the look, as the instruction says, each time in the same words."""
    names = ("pairs", "themes", "looks")
    use(config, dict.fromkeys(names, 1.0), names, steps=350)
    for name, order in zip(names, (MEANINGS, (*MEANINGS[1:], MEANINGS[0]), MEANINGS[::-1]), strict=True):
        shown = "Find items by their {} and not by their {} or {} alone.".format(*order)
        for uses in (config.data.datasets, config.eval.tasks):
            uses[name].update(query_instruction=shown, target_instruction=shown)


def graded_searches(config: ConfigDict, made: Path) -> None:
    """Searches with items of five grades, of which only the highest is a positive of InfoNCE."""
    use(config, {"score": 1.0}, ("score",), steps=500)
    config.eval.tasks.score.metrics = ("graded", "recall")


def senses_apart(config: ConfigDict, made: Path) -> None:
    """Pairs of users are matched by all senses, and by frames and by sound alone."""
    use(config, {"pairs": 1.0}, ("pairs",), steps=150)
    from_another_world(config, made)
    config.data.datasets["pairs"]["patterns"] = ("O->O", "V->V", "A->A")
    config.eval.tasks.pairs.views = ("V", "A", "T")


def fields_missing_in_use(config: ConfigDict, made: Path) -> None:
    """Training shows all fields; the queries of the test lack the title."""
    use(config, {"pairs": 1.0}, ("missing_fields", "pairs"), steps=150)
    from_another_world(config, made)
    config.data.field_dropout = 0.1


CLAIMS = (
    Claim(
        name="prompts",
        section="3.2.2, ablations",
        says="Instructions of each task are better than one for all.",
        reported="i2i +2.62, q2i +1.88",
        condition="Three sets that conflict: related by topic, by theme, by look. All instructions have as many "
        "tokens.",
        set_up=tasks_that_conflict,
        figure="looks/recall@50",
        shown=("themes/recall@50", "pairs/recall@10"),
        treatment="own instructions",
        control="one instruction",
        without=without_own_prompts,
        ingredient=("prompt.unified",),
    ),
    Claim(
        name="cosent",
        section="3.3.2, ablations",
        says="COSENT on graded scores is better than InfoNCE alone.",
        reported="q2i +1.69",
        condition="Searches with items of five grades; the figure is the rank correlation with the grades, "
        "within a search.",
        set_up=graded_searches,
        figure="score/graded/spearman",
        shown=("score/graded/ndcg", "score/recall@10"),
        treatment="with COSENT",
        control="without COSENT",
        without=without_cosent,
        ingredient=("data.datasets.*.loss_weights*",),
    ),
    Claim(
        name="patterns",
        section="3.3.4",
        says="Matching several sets of senses is better than matching all senses alone.",
        reported="no figure",
        condition=f"{ANOTHER_WORLD} Pairs of users matched by all senses, by frames and by sound; tested is what "
        "frames alone find.",
        set_up=senses_apart,
        figure="pairs/V/recall@10",
        shown=("pairs/A/recall@10", "pairs/recall@10"),
        treatment="three patterns",
        control="one pattern",
        without=without_patterns,
        ingredient=("data.datasets.*.patterns",),
        varies={
            "tokens": "A pattern is a further view of the same pair in the same step, and so has tokens of its own."
        },
        needs=("pretrained",),
    ),
    Claim(
        name="dropout",
        section="3.2.2",
        says="Dropping text fields in training helps where a field is missing in use.",
        reported="no figure",
        condition=f"{ANOTHER_WORLD} Pairs of users with all their fields, a tenth of which is dropped; the queries of "
        "the test lack the title.",
        set_up=fields_missing_in_use,
        figure="missing_fields/recall@10",
        shown=("pairs/recall@10",),
        treatment="fields dropped",
        control="all fields",
        without=without_field_dropout,
        ingredient=("data.field_dropout",),
        needs=("pretrained",),
    ),
)
