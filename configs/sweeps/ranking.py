"""What a ranking model gains from the embeddings and from semantic IDs: four variants of it, three seeds each.

`python -m experiments.ranking` writes the impressions into a folder, runs this sweep with `--config.data.dir=FOLDER`,
and writes the table. Members train a ranking model, not an embedding.
"""

from pathlib import Path

from sail_jax.sweeps import Sweep, variants

PROGRAM = Path(__file__).parents[2] / "experiments" / "ranking.py"
# Variant -> what its ranking model is given beside the logs.
VARIANTS = {
    "base": (),
    "+ embeddings": ("match",),
    "+ semantic IDs": ("codes",),
    "+ both": ("match", "codes"),
}


def sweep() -> Sweep:
    """The sweep."""
    return Sweep(
        base="recommender",
        axes=[variants(dict.fromkeys(VARIANTS, ()))],
        seeds=range(3),
        baseline="base",
        metric="impressions/auc",
        program=str(PROGRAM),
    )
