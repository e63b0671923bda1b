"""Claims on the data, and on the order in which they come."""

from pathlib import Path

from ml_collections import ConfigDict

from experiments.reproduce.bases import ANOTHER_WORLD, from_another_world, use
from experiments.reproduce.claim import Claim
from experiments.reproduce.ingredients import (
    without_balancing,
    without_diversity,
    without_hard_negatives,
    without_order,
    without_specialization,
)

SOURCES = ("pairs", "topic_search", "off_text", "off_vision", "off_sound")
NEGATIVES = 2


def more_sets(config: ConfigDict, made: Path) -> None:
    """Continues a model of another seed's world on the pairs of users, and on four more sets."""
    weights = {"pairs": 2.0, "themes": 1.0, "looks": 1.0, "sounds": 1.0, "topic_search": 1.0}
    use(config, weights, ("near_duplicates", "pairs", "topic_search"), steps=150)
    from_another_world(config, made)


def broad_then_clean(config: ConfigDict, made: Path) -> None:
    """A broad set of which half is wrong, then a small clean one."""
    use(config, {"broad": 1.0, "clean": 1.0}, ("pairs",))
    from_another_world(config, made)
    config.stages = {
        "1_broad": {"steps": 150, "weights": {"broad": 1.0}},
        "2_clean": {"steps": 75, "weights": {"clean": 1.0}, "warmup_steps": 5},
    }


def near_duplicates_to_tell(config: ConfigDict, made: Path) -> None:
    """A stage on the pairs of users, then one with negatives: mined ones, or as many random ones."""
    use(config, {"pairs": 1.0}, ("near_duplicates", "pairs"))
    from_another_world(config, made)
    pairs = config.data.datasets["pairs"].to_dict() | {"weight": 0.0}
    config.data.datasets["hard"] = pairs
    config.data.datasets["hard_random"] = pairs | {"random_negatives": NEGATIVES}
    config.stages = {
        "1_pairs": {"steps": 100, "weights": {"pairs": 1.0}},
        "2_hard": {
            "steps": 100,
            "weights": {"hard": 1.0},
            "mine": ("hard",),
            "hard_negatives": NEGATIVES,
            "warmup_steps": 5,
        },
    }


def sets_of_another_domain(config: ConfigDict, made: Path) -> None:
    """Five sets, three of them of another domain; weights as `balance` computes them with an early model."""
    use(config, dict.fromkeys(SOURCES, 1.0), ("pairs", "topic_search"), steps=200)
    from_another_world(config, made)
    config.data.weights = str(made / "balanced" / "weights.json")


def sets_of_five_styles(config: ConfigDict, made: Path) -> None:
    """Five sets whose items a glance tells apart, so that in mixed batches most negatives are easy."""
    use(config, dict.fromkeys(SOURCES, 1.0), ("pairs", "topic_search"), steps=150)
    from_another_world(config, made)
    config.data.batch_size = 64


CLAIMS = (
    Claim(
        name="data",
        section="4, ablations",
        says="More, and more diverse, data are better.",
        reported="i2i up clearly, q2i kept",
        condition=f"{ANOTHER_WORLD} Five sets against one of them for as many steps; the test is one "
        "for which neither arm has a training set.",
        set_up=more_sets,
        figure="near_duplicates/recall@10",
        shown=("pairs/recall@10", "topic_search/recall@10"),
        treatment="five sets",
        control="one set",
        without=without_diversity,
        ingredient=("data.datasets.*.weight",),
        varies={"data": "The training sets are the ingredient; steps and tokens are equal."},
        needs=("pretrained",),
    ),
    Claim(
        name="stages",
        section="3.3.1, ablations",
        says="Broad data first and clean data last are better than all at once.",
        reported="i2i up, q2i up",
        condition=f"{ANOTHER_WORLD} Half of the broad pairs are wrong; there are a thousand clean ones. Both arms "
        "draw as many batches of each set under the same learning rates; only the order differs.",
        set_up=broad_then_clean,
        figure="pairs/recall@10",
        shown=("pairs/recall@50",),
        treatment="one after the other",
        control="all at once",
        without=without_order,
        ingredient=("stages.*.weights*",),
        needs=("pretrained",),
    ),
    Claim(
        name="hard_negatives",
        section="3.1.2",
        says="Mined hard negatives are better than others.",
        reported="no figure",
        condition=f"{ANOTHER_WORLD} The catalogue has near-duplicates that differ in one facet, and queries repeat "
        "them; the control has as many random negatives.",
        set_up=near_duplicates_to_tell,
        figure="near_duplicates/recall@1",
        shown=("near_duplicates/recall@10", "pairs/recall@10"),
        treatment="mined negatives",
        control="random negatives",
        without=without_hard_negatives,
        ingredient=("stages.*.mine", "stages.*.weights*"),
        needs=("pretrained",),
    ),
    Claim(
        name="balancing",
        section="3.1.3, figure 3",
        says="Weights by similarity to the benchmark are better than equal ones.",
        reported="no figure",
        condition=f"{ANOTHER_WORLD} Five sets, of which three are of another domain and cannot help; the weights "
        "are those of an early model.",
        set_up=sets_of_another_domain,
        figure="pairs/recall@10",
        shown=("topic_search/recall@10",),
        treatment="balanced weights",
        control="equal weights",
        without=without_balancing,
        ingredient=("data.weights", "data.datasets.*.weight"),
        varies={"data": "How often each set is drawn is the ingredient; steps and tokens are equal."},
        needs=("pretrained", "balanced"),
    ),
    Claim(
        name="specialization",
        section="3.3.3",
        says="Batches of one set each are better than mixed ones.",
        reported="no figure",
        condition=f"{ANOTHER_WORLD} Five sets of different style in batches of 64: in a mixed batch, most negatives "
        "give themselves away.",
        set_up=sets_of_five_styles,
        figure="pairs/recall@10",
        shown=("topic_search/recall@10",),
        treatment="one set a batch",
        control="mixed batches",
        without=without_specialization,
        ingredient=("data.sampling",),
        needs=("pretrained",),
    ),
)
