"""The base configs of the claims: two generated worlds, a small model, and how much larger a GPU trains them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from sail_jax.config import preset
from sail_jax.config.data import SyntheticConfig
from sail_jax.config.schema import to_dict

# The content world on two cores: two blocks of topics, so that some hundred steps teach it; all of its tests.
CATALOGUE, TESTS, SEARCHES = 1152, 1000, 2000
# Of the recommender's items, those whose ID embeddings are kept from the distillation.
HOLDOUT = 0.2
# How the condition of a claim begins that starts `from_another_world`.
ANOTHER_WORLD = "A start from a model that was trained on another seed's world."


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the experiments are.

    Attributes:
        steps: factor on all steps.
        batch: factor on the pairs of a batch.
        whole: whether worlds and models have their full size instead of that for two cores.
        seconds_per_pair: of training, of a core, rounded up; 0 where it was not measured.
        seconds_per_member: of start, compilation and evaluation, likewise.
    """

    steps: int = 1
    batch: int = 1
    whole: bool = False
    seconds_per_pair: float = 0.0
    seconds_per_member: float = 0.0


SCALES = {
    "cpu": Scale(seconds_per_pair=0.013, seconds_per_member=40.0),
    "gpu": Scale(steps=10, batch=8, whole=True),
}


def base(world: str, scale: Scale) -> ConfigDict:
    """The base config of a world at a scale."""
    config = content(scale) if world == "content" else recommender(scale)
    if scale.whole:
        config.model.llm.update(width=384, layers=6, heads=6, kv_heads=2, head_dim=64, mlp_width=1024)
        config.model.bert.update(width=384, layers=6, heads=6, mlp_width=1024)
        config.objective.matryoshka = (384, 192, 32)
    config.data.batch_size = 32
    config.train.update(log_every=20, checkpoint_every=100_000, keep_checkpoints=1)
    config.eval.update(untrained=False, tfidf=False, widths=(config.model.llm.width,))
    return config


def content(scale: Scale) -> ConfigDict:
    """The world of topics, looks and sounds, with all of its training sets and tests."""
    config = preset("full_world")
    # Its queries are texts: the same as T->O, without a further view in batches that other sets share.
    config.data.datasets.topic_search.patterns = ("O->O",)
    if scale.whole:
        config.synthetic.update(to_dict(SyntheticConfig()))
    else:
        config.synthetic.update(num_items=CATALOGUE, num_users=600, test_queries=TESTS)
        config.synthetic.update(searches=SEARCHES, test_searches=TESTS)
    return config


def recommender(scale: Scale) -> ConfigDict:
    """The world of users with tastes, its logs and its ID embeddings."""
    config = preset("recommender")
    config.ingest.holdout = HOLDOUT
    config.prompt.max_tokens = config.model.bert.max_positions = 96
    if scale.whole:
        config.synthetic.update(num_items=30_000, log_users=30_000)
    return config


def use(config: ConfigDict, weights: Mapping[str, float], tasks: Sequence[str], *, steps: int = 0) -> None:
    """Keeps some training sets, with these weights, and some tasks; other sets would add views to every batch.

    Args:
        config: is changed.
        weights: training set -> weight.
        tasks: the tasks.
        steps: steps of a run without stages; 0 where the caller sets stages.
    """
    config.data.datasets = {name: config.data.datasets[name].to_dict() | {"weight": w} for name, w in weights.items()}
    config.eval.tasks = {name: config.eval.tasks[name].to_dict() | {"views": ()} for name in tasks}
    config.stages = {}
    if steps:
        config.train.steps = steps


def from_another_world(config: ConfigDict, made: Path) -> None:
    """Starts from a model of another seed's world, with its tokenizer and at a lower rate.

    From scratch, the steps that two cores have time for teach too little for an ingredient to make a difference: after
    225 of them R@10 was 13 %, of the 61 % that a perfect model reaches.

    Args:
        config: is changed.
        made: the folder of what is prepared.
    """
    config.init_from = {"model": str(made / "pretrained" / "export")}
    config.prompt.tokenizer = str(made / "pretrained" / "data" / "tokenizer")
    config.optimizer.update(peak=1e-3, floor=1e-4)


def scaled(config: ConfigDict, scale: Scale) -> None:
    """Changes the steps and the batch of a config to those of a scale."""
    config.data.batch_size *= scale.batch
    config.train.steps *= scale.steps
    for stage in config.stages.values():
        stage["steps"] *= scale.steps
