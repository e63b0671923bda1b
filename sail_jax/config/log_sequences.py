"""Declares the settings of the sequence tables built from a recommender's logs."""

import dataclasses

from sail_jax.config.schema import setting

CONSTRUCTIONS = (
    "seq_content_single",
    "seq_content_multi",
    "seq_collab_single",
    "seq_collab_multi",
    "eval_vanilla",
    "eval_filtered",
)
HISTORIES = "histories"  # a user's whole train history; made where it is asked for


@dataclasses.dataclass(frozen=True)
class SequencesConfig:
    """Settings of sequences: users' histories and the next item (arXiv 2510.12709, sec. 3.3.5, 4.2)."""

    constructions: tuple[str, ...] = setting(
        CONSTRUCTIONS,
        "the tables to build; 'histories' is the whole train history of each user, for baselines (eval.histories)",
        choices=(*CONSTRUCTIONS, HISTORIES),
    )
    history: int = setting(1000, "number of latest items before the target to choose from", low=1)
    vanilla_history: int = setting(100, "likewise, for `eval_vanilla`", low=1)
    length: int = setting(10, "maximum number of items of a sequence", low=1)
    min_items: int = setting(3, "minimum number of items of a sequence; shorter ones are dropped", low=1)
    seen: int = setting(
        100,
        "number of latest items before the target that are written with a sequence, to be excluded from its negatives",
        low=0,
    )
    windows: int = setting(4, "maximum number of training sequences of a user", low=1)
    stride: int = setting(10, "items of the history between the targets of two training sequences of a user", low=1)
    multi_positives: int = setting(1, "minimum number of positive behaviours of a play for its item to count", low=1)
    single_positives: int = setting(3, "likewise, for the single-peak constructions", low=1)
    cosine: float = setting(
        0.5, "content single-peak: minimum cosine of the content embeddings of an item and the target", low=-1, high=1
    )
    label_jaccard: float = setting(
        0.5,
        "content multi-peak: the Jaccard index of the labels of an item and the target is above this",
        low=0,
        below=1,
    )
    behaviour_jaccard: float = setting(
        0.02,
        "collaboration single-peak: minimum Jaccard index of the other users who consumed an item and the target",
        above=0,
        high=1,
    )
    behaviour_users: int = setting(
        128, "users of an item from which this Jaccard index is estimated; exact if an item has no more users", low=2
    )
    cluster_level: int = setting(
        0, "which of an item's labels is its cluster, 0 for the coarsest; the last label if it has fewer", low=0
    )
