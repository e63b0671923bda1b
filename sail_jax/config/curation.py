"""Declares the settings of hard negative mining and of balancing the training sets."""

import dataclasses

from sail_jax.config.schema import setting


@dataclasses.dataclass(frozen=True)
class MiningConfig:
    """Settings of hard negative mining (arXiv 2510.12709, sec. 3.1.2)."""

    per_query: int = setting(16, "hard negatives kept per query", low=1)
    positive_splits: tuple[str, ...] = setting(
        (), "splits of the tables whose pairs are never mined as negatives; empty for all"
    )
    query_block: int = setting(256, "queries scored at a time", low=1)
    target_block: int = setting(8192, "targets scored at a time; only one block of scores is held in memory", low=1)
    exact_scores: int = setting(
        20_000_000,
        "maximum number of scores (queries x targets) for an exact lambda*; with more, it is a multiple of 2^-15",
        low=0,
    )


@dataclasses.dataclass(frozen=True)
class BalancingConfig:
    """Settings of the adaptive balancing of training sets (arXiv 2510.12709, sec. 3.1.3)."""

    samples: int = setting(10_000, "items embedded per data set", low=1)
    centroids: int = setting(64, "maximum number of k-means centroids per data set and modality", low=1)
    epsilon: float = setting(0.05, "entropic regularisation of the transport plan", above=0)
    temperature: float = setting(0.05, "temperature of the softmax that turns similarities into weights", above=0)
