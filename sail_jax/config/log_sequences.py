"""The settings of the sequences that are made from a recommender's logs (see `config`)."""

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


@dataclasses.dataclass(frozen=True)
class SequencesConfig:
    """Histories of users against the item that came next (arXiv 2510.12709, sec. 3.3.5 and 4.2)."""

    constructions: tuple[str, ...] = setting(CONSTRUCTIONS, "the tables that are made", choices=CONSTRUCTIONS)
    history: int = setting(1000, "items before the target that are looked at, the latest ones", low=1)
    vanilla_history: int = setting(100, "the same, for `eval_vanilla`", low=1)
    length: int = setting(10, "items of a sequence, at most", low=1)
    min_items: int = setting(3, "items of a sequence, at least; a shorter one is dropped", low=1)
    seen: int = setting(
        100,
        "the latest items before the target that are written beside a sequence, to be kept out of its negatives",
        low=0,
    )
    windows: int = setting(4, "train sequences of a user, at most", low=1)
    stride: int = setting(10, "items of the history between the targets of two train sequences of a user", low=1)
    multi_positives: int = setting(1, "positive behaviours of one play from which an item counts", low=1)
    single_positives: int = setting(3, "the same, for the single-peak constructions", low=1)
    cosine: float = setting(
        0.5, "content single-peak: least cosine of an item's content embedding to that of the target", low=-1, high=1
    )
    label_jaccard: float = setting(
        0.5, "content multi-peak: the Jaccard of an item's labels and the target's is above this", low=0, below=1
    )
    behaviour_jaccard: float = setting(
        0.02,
        "collaboration single-peak: least Jaccard of the other users who consumed an item and the target",
        above=0,
        high=1,
    )
    behaviour_users: int = setting(
        128, "users of an item that this Jaccard is estimated from; exact where an item has no more", low=2
    )
    cluster_level: int = setting(
        0, "which of an item's labels is its cluster, 0 for the coarsest; the last one where there are fewer", low=0
    )
    rows_per_part: int = setting(
        2_000_000, "positive events that are worked on at a time; of the users, a part is held in memory", low=1
    )
