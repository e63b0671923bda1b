"""Claims on the architecture and on what of it is trained: fusion, two-way attention, full training."""

from pathlib import Path

from ml_collections import ConfigDict

from experiments.reproduce.bases import ANOTHER_WORLD, from_another_world, use
from experiments.reproduce.claim import Claim
from experiments.reproduce.ingredients import without_full_training, without_fusion, without_two_way_attention

TOPICS = ("pairs", "two_looks", "topic_search")


def parts_that_qualify(config: ConfigDict, made: Path) -> None:
    """Half of the catalogue shows two looks, of which the text says which counts."""
    use(config, {"pairs": 1.0, "topic_search": 1.0}, TOPICS, steps=500)


def another_world_before(config: ConfigDict, made: Path) -> None:
    """Continues a model of another seed's world, with that model's tokenizer."""
    use(config, {"pairs": 1.0, "topic_search": 1.0}, ("pairs", "topic_search"), steps=100)
    from_another_world(config, made)


CLAIMS = (
    Claim(
        name="fusion",
        section="3.2, ablations",
        says="Fusing frames, sound and text in an LLM is better than a CLIP-like dual tower.",
        reported="i2i up, q2i +5.01",
        condition="Frames show two looks, and the text says which one counts: towers that only add their vectors "
        "cannot tell. Pairs of users and searches of topics; queries of two looks.",
        set_up=parts_that_qualify,
        figure="two_looks/recall@10",
        shown=("pairs/recall@10", "topic_search/recall@10"),
        treatment="LLM fusion",
        control="dual tower",
        without=without_fusion,
        ingredient=("model.kind", "objective.weights.*"),
    ),
    Claim(
        name="bidirectional",
        section="3.2, ablations",
        says="Two-way attention is better than causal attention.",
        reported="i2i up, q2i up",
        condition="As for fusion: what a part means is told by another part, on either side of it.",
        set_up=parts_that_qualify,
        figure="two_looks/recall@10",
        shown=("pairs/recall@10", "topic_search/recall@10"),
        treatment="two-way attention",
        control="causal attention",
        without=without_two_way_attention,
        ingredient=("model.llm.causal",),
    ),
    Claim(
        name="lora",
        section="4, ablations",
        says="Training all parameters is better than LoRA, most of all on searches.",
        reported="q2i up most",
        condition=f"{ANOTHER_WORLD} One rate for both arms; pairs of users and searches of topics.",
        set_up=another_world_before,
        figure="topic_search/recall@10",
        shown=("pairs/recall@10",),
        treatment="full training",
        control="LoRA",
        without=without_full_training,
        ingredient=("lora.rank",),
        needs=("pretrained",),
    ),
)
