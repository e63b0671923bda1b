"""Settings of evaluation: its tasks and what is measured of them."""

import dataclasses

from sail_jax.config.data import DEFAULT_INSTRUCTION
from sail_jax.config.schema import setting
from sail_jax.items import TEXT_FIELDS
from sail_jax.patterns import MODALITIES

# Families of metrics, each in a module of its own under `evaluation` (arXiv 2510.12709, sec. 4.2).
METRIC_FAMILIES = ("recall", "ranking", "separability", "clustering", "agreement", "bijective", "auc")


@dataclasses.dataclass(frozen=True)
class EvalTaskConfig:
    """One task: queries of a table against a corpus of items, items against their labels, or histories against items."""

    kind: str = setting(
        "retrieval",
        "'retrieval': rows of a pair table; 'classification': items, against the texts of all labels; 'sequence': rows of a table of "
        "`item_ids` and `target_id`, the mean of the items' vectors against the corpus",
        choices=("retrieval", "classification", "sequence"),
    )
    table: str = setting(
        "",
        "table relative to data.dir; its rows are the relevant pairs, or the sequences. Classification takes the items of a pair table, "
        "or of the whole store where this is empty",
    )
    split: str = setting("test", "rows of the table that are used; empty for all")
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
        "score from which a pair is relevant; pairs below are the negatives of AUC. Rows without a score are relevant",
    )
    views: tuple[str, ...] = setting(
        (), "further modality sets to report, each shown on both sides, for example ('T', 'V')"
    )
    modality_matrix: bool = setting(
        False, "also report recall for each set of modalities of the query against each of the corpus, 7 x 7"
    )
    metrics: tuple[str, ...] = setting(
        METRIC_FAMILIES,
        "families of metrics of a retrieval task; a sequence task has recall and ranking, classification its accuracy",
        choices=METRIC_FAMILIES,
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation."""

    tasks: dict[str, EvalTaskConfig] = setting({}, "the tasks by name")
    ks: tuple[int, ...] = setting((1, 10, 25, 50, 100), "cut-offs of recall, nDCG, MRR and MAP", low=1)
    widths: tuple[int, ...] = setting(
        (), "sizes at which vectors are cut and evaluated, besides the full one; empty for objective.matryoshka", low=1
    )
    clusters: int = setting(64, "k-means clusters of the NMI", low=1)
    batch_size: int = setting(64, "items per embedding batch", low=1)
    corpus_block: int = setting(2560, "rows of the corpus scored at a time", low=1)
    untrained: bool = setting(True, "also evaluate the model as it was before training")
    tfidf: bool = setting(False, "also evaluate a TF-IDF baseline on tasks with text on both sides")
