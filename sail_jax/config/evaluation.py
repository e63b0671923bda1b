"""Declares the settings of evaluation: its tasks and metrics."""

import dataclasses

from sail_jax.config.data import DEFAULT_INSTRUCTION
from sail_jax.config.schema import setting
from sail_jax.items import TEXT_FIELDS
from sail_jax.patterns import MODALITIES

# Families of metrics, each in its own module of `evaluation.metrics` (arXiv 2510.12709, sec. 4.2).
METRIC_FAMILIES = ("recall", "ranking", "separability", "clustering", "agreement", "bijective", "auc", "spread")
# Baselines that learn from the train rows of a task's table, without content.
BASELINES = ("popularity", "co_counts", "svd_cosine", "svd_dot", "two_tower")
GRADED = "graded"  # a family that needs a table with grades, so that a task has to ask for it


@dataclasses.dataclass(frozen=True)
class EvalTaskConfig:
    """Settings of a task: queries or histories against a corpus of items, or items against labels."""

    kind: str = setting(
        "retrieval",
        "'retrieval': rows of a pair table; 'classification': items against the texts of all labels; 'sequence': rows "
        "of a table of `item_ids` and `target_id`, the pooled vector of the items against the corpus",
        choices=("retrieval", "classification", "sequence"),
    )
    table: str = setting(
        "",
        "table relative to data.dir; its rows are the relevant pairs, or the sequences; classification uses the items "
        "of a pair table, or all items of the store if this is empty",
        bucket=True,
    )
    split: str = setting("test", "split of the table to use; empty for all rows")
    corpus: str = setting(
        "items", "'items': all items of the store; 'targets': the targets of the rows", choices=("items", "targets")
    )
    query: str = setting(MODALITIES, "modalities shown of the query")
    target: str = setting(MODALITIES, "modalities shown of the corpus")
    query_fields: tuple[str, ...] = setting(TEXT_FIELDS, "text fields shown of the query")
    target_fields: tuple[str, ...] = setting(TEXT_FIELDS, "text fields shown of the corpus")
    query_instruction: str = setting(DEFAULT_INSTRUCTION, "system prompt of the query")
    target_instruction: str = setting(DEFAULT_INSTRUCTION, "system prompt of the corpus")
    both_ways: bool = setting(False, "pairs of items are symmetric: each side is a query for the other")
    min_score: float = setting(
        0.0,
        "minimum score of a relevant pair; other pairs are the negatives of AUC; rows without a score are relevant",
    )
    views: tuple[str, ...] = setting(
        (), "further sets of modalities to report, each shown on both sides, for example ('T', 'V')"
    )
    modality_matrix: bool = setting(
        False, "also report recall for each set of modalities of the query against each of the corpus, 7 x 7"
    )
    metrics: tuple[str, ...] = setting(
        METRIC_FAMILIES,
        "families of metrics of a retrieval task; a sequence task has recall, ranking and spread, classification its "
        "accuracy and spread; "
        "'graded' compares cosines with the scores of a pair table",
        choices=(*METRIC_FAMILIES, GRADED),
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Settings of evaluation."""

    tasks: dict[str, EvalTaskConfig] = setting({}, "the tasks by name")
    ks: tuple[int, ...] = setting((1, 10, 25, 50, 100), "cut-offs of recall, nDCG, MRR and MAP", low=1)
    widths: tuple[int, ...] = setting(
        (),
        "widths to which vectors are cut and evaluated, in addition to full width; empty for objective.matryoshka",
        low=1,
    )
    clusters: int = setting(64, "number of k-means clusters for the NMI", low=1)
    batch_size: int = setting(64, "items per embedding batch", low=1)
    corpus_block: int = setting(2560, "rows of the corpus scored at a time", low=1)
    ema: bool = setting(
        True,
        "evaluate, embed with and export the running average of the parameters where the run has one (optimizer.ema); "
        "False takes the last parameters",
    )
    untrained: bool = setting(True, "also evaluate the untrained model")
    tfidf: bool = setting(False, "also evaluate a TF-IDF baseline on tasks with text on both sides")
    baselines: tuple[str, ...] = setting(
        (),
        "baselines without content, trained on the train rows of the table of each task between items: 'popularity'; "
        "'co_counts', the cosine of counts of pairs; 'svd_cosine' and 'svd_dot', of eval.histories; 'two_tower', a "
        "learned vector per item",
        choices=BASELINES,
    )
    histories: str = setting(
        "",
        "table of users' train histories relative to data.dir, as `sequences` makes it under the name histories, for "
        "the baselines that need it",
        bucket=True,
    )
