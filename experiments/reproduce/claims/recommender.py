"""Claims on learning from a recommender: sequences and ID embeddings (tables 4 and 5), and semantic IDs."""

from pathlib import Path

from ml_collections import ConfigDict

from experiments.reproduce.claim import Claim
from experiments.reproduce.ingredients import nothing, without_ids, without_sequences

TABLE_4 = (
    "copair/clustering/nmi",
    "copair/agreement/kendall",
    "copair/agreement/top@10",
    "copair/bijective",
    "gid/recall@50",
    "gid/recall@100",
    "copair/recall@50",
    "copair/recall@100",
)
TABLE_5 = (*(f"{task}/recall@{k}" for task in ("vanilla", "filtered") for k in (1, 10, 25)),)
CONTENT = {"hashtag": 2.0, "search": 2.0, "copair": 1.0}
SEQUENCES = {"seq_content_single": 1.0, "seq_content_multi": 0.2, "seq_collab_single": 1.0, "seq_collab_multi": 1.0}
STEPS = 150


def from_content(config: ConfigDict, made: Path) -> None:
    """Continues the content model of this world."""
    config.data.dir = str(made / "histories" / "data")
    config.init_from = {"model": str(made / "histories" / "export")}
    config.optimizer.update(peak=3e-4, floor=1e-4, warmup_steps=5)
    config.eval.tasks.q2i.metrics = ("recall",)
    config.eval.tasks.gid.update(table="tables/gid_held_out.parquet", split="test", metrics=("recall",))


def sequences(config: ConfigDict, made: Path) -> None:
    """Histories of users, with pairs of items."""
    from_content(config, made)
    config.stages = {"1_sequences": {"steps": STEPS, "weights": {"copair": 1.0, **SEQUENCES}, "warmup_steps": 5}}


def ids(config: ConfigDict, made: Path) -> None:
    """ID embeddings, with pairs of items."""
    from_content(config, made)
    config.stages = {"1_ids": {"steps": STEPS, "weights": {"copair": 1.0, "ids": 2.0}, "warmup_steps": 5}}


CLAIMS = (
    Claim(
        name="sequences",
        section="3.3.5, table 5",
        says="Sequence-to-item training raises what histories find.",
        reported="Filtered R@10 19.35 to 22.02, Vanilla R@10 10.46 to 11.78",
        condition="One content model, continued on histories and pairs, or on pairs alone for as long.",
        set_up=sequences,
        figure="filtered/recall@10",
        shown=(*TABLE_5, *TABLE_4),
        treatment="+ sequence-to-item",
        control="content for as long",
        without=without_sequences,
        ingredient=("stages.*.weights*",),
        varies={"data": "The histories are the ingredient.", "tokens": "A history has more items than a pair."},
        world="recommender",
        needs=("histories",),
    ),
    Claim(
        name="ids",
        section="3.3.5, tables 4 and 5",
        says="ID-to-item training brings the recommender's neighbours into the space.",
        reported="Gid R@50 52.46 to 59.69, Filtered R@10 to 23.77, Copair R@50 69.17 to 66.83",
        condition="One content model, continued on ID embeddings and pairs, or on pairs alone for as long; tested on "
        "items whose ID embeddings were kept from it.",
        set_up=ids,
        figure="gid/recall@50",
        shown=(*TABLE_4, *TABLE_5),
        treatment="+ ID-to-item",
        control="content for as long",
        without=without_ids,
        ingredient=("stages.*.weights*",),
        varies={"data": "The ID embeddings are the ingredient.", "tokens": "An item of them has no second side."},
        world="recommender",
        needs=("histories",),
    ),
    Claim(
        name="semantic_ids",
        section="4.4.6",
        says="Semantic IDs and match features of the embeddings raise the AUC of a ranking model.",
        reported="finish AUC +0.1 %",
        condition="Ranking models with learned item vectors and popularity, with and without them; each seed is tested "
        "on other users.",
        set_up=from_content,
        figure="ranking/auc",
        treatment="+ semantic IDs and cosines",
        control="base",
        without=nothing,
        ingredient=(),
        world="recommender",
        needs=("histories", "semantic_ids"),
        ranking=True,
    ),
)
