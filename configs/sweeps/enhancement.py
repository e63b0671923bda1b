"""The worth of a recommender's logs: sequence-to-item, then ID-to-item, from one model of content, three seeds each.

`python -m experiments.enhancement` makes the data and the model of content, runs this sweep on them with
`--config.data.dir=DATA --config.init_from="{'model': EXPORT}"`, and writes the table. The second variant goes on from
the first, whose stage it shares.
"""

from sail_jax import config as config_lib
from sail_jax.sweeps import Sweep, variants

BASE = "recommender"
# Steps of each stage, in batches of 32.
STEPS = 150
SEQUENCE_WEIGHTS = {
    "copair": 1.0,
    "seq_content_single": 1.0,
    "seq_content_multi": 0.2,  # it has few rows
    "seq_collab_single": 1.0,
    "seq_collab_multi": 1.0,
}
# Share of the items whose ID embeddings are excluded from distillation, and the table of pairs of these.
HOLDOUT, GID = 0.2, "gid_held_out.parquet"
COMMON = (
    "model.llm.layers=1",
    "model.llm.mlp_width=128",
    "model.vit.layers=1",
    "eval.untrained=False",
    "eval.tfidf=False",
    "eval.widths=(96,)",
    f"ingest.holdout={HOLDOUT}",
    f"eval.tasks.gid.table=tables/{GID}",
    "eval.tasks.gid.split=test",
    "eval.tasks.gid.metrics=('recall',)",
    "eval.tasks.q2i.metrics=('recall',)",
)
# The rows of the report's tables after the base -> the stages that they have.
ROWS = {"+ sequence-to-item": ("2_sequences",), "+ ID-to-item": ("2_sequences", "3_ids")}


def sweep() -> Sweep:
    """The sweep."""
    stages = config_lib.to_dict(config_lib.load(BASE))["stages"]
    stages = {name: stage | {"steps": STEPS} for name, stage in stages.items()}
    stages["2_sequences"]["weights"] = SEQUENCE_WEIGHTS
    rows = {row: (f"stages={ {name: stages[name] for name in names} }",) for row, names in ROWS.items()}
    return Sweep(
        base=BASE,
        axes=[variants(rows)],
        overrides=(*COMMON, f"train.checkpoint_every={STEPS}"),
        seeds=range(3),
        metric="copair/recall@50",
    )
