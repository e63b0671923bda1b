"""The worth of each training ingredient: configs/world.py against variants with one change, three seeds each.

`python -m experiments.ablations` makes its data, adds the variant that needs a trained model, and writes the table.
"""

from sail_jax.sweeps import Sweep, variants

# Common to all runs: a smaller model and fewer pairs and steps than in the quickstart, because there are about forty
# runs.
COMMON = (
    "model.llm.layers=1",
    "model.llm.mlp_width=128",
    "model.vit.layers=1",
    "prompt.max_tokens=48",
    "data.batch_size=32",
    "stages.1_broad.steps=120",
    "stages.2_target.steps=60",
    "stages.3_hard.steps=30",
    "stages.3_hard.hard_negatives=2",
    "eval.untrained=False",
    "eval.tfidf=False",
)
# Name -> changes of the main config. "without X" leaves X out; the others replace it by a baseline.
VARIANTS: dict[str, tuple[str, ...]] = {
    "main": (),
    "without several patterns": (
        "data.datasets.copair.patterns=('O->O',)",
        "data.datasets.look_search.patterns=('T->O',)",
    ),
    "without COSENT": ("data.datasets.score.loss_weights={'cosent': 0.0}",),
    "without mICL": ("objective.weights.micl=0.0",),
    "without late fusion": ("objective.weights.late_fusion=0.0",),
    "without hard negatives": ("stages.3_hard.mine=()",),
    "without field dropout": ("data.field_dropout=0.0",),
    "all-in-one instead of progressive": ("train.progressive=False",),
    "mixed batches instead of one data set each": ("data.sampling=mixed",),
    "unified instead of task-specific prompts": ("prompt.unified=Represent the content.",),
    "causal instead of bidirectional attention": ("model.llm.causal=True",),
    "dual tower instead of LLM fusion": ("model.kind=dual_tower",),
}


def sweep() -> Sweep:
    """The sweep."""
    return Sweep(
        base="world",
        axes=[variants(VARIANTS)],
        overrides=COMMON,
        seeds=range(3),
        baseline="main",
        metric="i2i/recall@10",
    )
