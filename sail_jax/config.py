"""Every setting of the project: its type, its default, and one line on its meaning.

The dataclasses below, and those of `model_config`, `data_config`, `log_config`, `builder_config` and `sequence_config`, are the single source. An experiment file (`configs/*.py`) starts from `default_config()`, a locked
`ml_collections.ConfigDict` of the same keys, and changes what it needs; the command line changes single keys;
`build()` turns the result into the frozen dataclasses that the code reads. Unknown keys are errors in all three places.
"""

import dataclasses
import difflib
import importlib.util
import json
import pathlib
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from sail_jax.builder_config import BuildersConfig
from sail_jax.data_config import DataConfig, IngestConfig, PromptConfig, SyntheticConfig
from sail_jax.errors import SailError
from sail_jax.log_config import LogsConfig
from sail_jax.model_config import ModelConfig
from sail_jax.schema import build_settings, override, section, setting, to_dict
from sail_jax.sequence_config import SequencesConfig

# -------------------------------------------------------------------------------------------------------- training


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """The weights of the losses: L = nce L_nce-mrl + cosent L_cosent + micl L_micl + late_fusion L_lf + distill L_distill."""

    nce: float = setting(1.0, "InfoNCE, summed over the Matryoshka widths", low=0)
    cosent: float = setting(0.0, "COSENT, on pairs with a graded score (lambda in the report)", low=0)
    micl: float = setting(0.0, "mICL: InfoNCE on the visual and on the text positions alone (alpha)", low=0)
    late_fusion: float = setting(0.0, "InfoNCE on the gated mixture of fused and visual embedding (beta)", low=0)
    distill: float = setting(
        0.0, "distance to the recommender's ID embeddings, summed over `objective.teachers`", low=0
    )


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The loss (arXiv 2510.12709, sec. 3.3.2)."""

    matryoshka: tuple[int, ...] = setting(
        (1536, 768, 128), "widths at which the embedding is cut, normalised and scored"
    )
    temperature: float = setting(0.05, "temperature at the start, for every data set", above=0)
    learn_temperature: bool = setting(True, "whether the temperatures are learned, one per data set")
    min_temperature: float = setting(0.01, "lower bound of the temperatures", above=0)
    max_temperature: float = setting(0.5, "upper bound of the temperatures", above=0)
    symmetric: bool = setting(True, "score targets against queries too, and average the two losses")
    weights: LossWeights = section(LossWeights, "what each loss counts")
    teachers: dict[str, int] = setting(
        {},
        "ID embedding of the items -> its width: what the loss `distill` pulls the vectors to, each through a projection of its own",
    )
    distill: str = setting(
        "cosine",
        "'cosine': 1 - cosine to the ID embedding; 'mse': squared distance of the unit vectors' coordinates; 'relational': squared "
        "difference of the cosines among the items of a device",
        choices=("cosine", "mse", "relational"),
    )
    cosent_temperature: float = setting(0.05, "temperature of COSENT, fixed", above=0)
    score_block: int = setting(
        1024,
        "pairs per batch above which scores are computed in blocks of at most this side, around a ring of the devices, in memory "
        "linear in the batch",
        low=1,
    )
    share_hard_negatives: bool = setting(
        True, "hard negatives of a pair are negatives of all queries of the batch, not of its own query alone"
    )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and a cosine to a floor (arXiv 2510.12709, sec. 4.1)."""

    peak: float = setting(1e-5, "peak learning rate", above=0)
    floor: float = setting(6e-6, "learning rate at the end of the cosine", low=0)
    warmup_steps: int = setting(1000, "steps of linear warm-up", low=0)
    b1: float = setting(0.9, "decay of the first moment", low=0, below=1)
    b2: float = setting(0.999, "decay of the second moment", low=0, below=1)
    eps: float = setting(1e-8, "epsilon of Adam", low=0)
    first_moment: str = setting(
        "float32",
        "type in which the first moment is kept; bfloat16 saves two bytes per parameter",
        choices=("float32", "bfloat16"),
    )
    weight_decay: float = setting(1e-4, "weight decay, on matrices alone", low=0)
    temperature_rate: float = setting(
        1.0,
        "factor on the learning rate for the temperatures; raise it (to 100, say) when the rate is near 1e-5",
        low=0,
    )
    clip_norm: float = setting(1.0, "global norm to which gradients are clipped", above=0)
    freeze: tuple[str, ...] = setting(
        (), "regular expressions; parameters of the model whose path has a match stay fixed, for example r'^vit/'"
    )


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685) instead of full training; patterns are as in `optimizer.freeze`."""

    rank: int = setting(0, "inner width of the adapters; 0 trains the model itself", low=0)
    alpha: float = setting(16.0, "what the adapters add is multiplied by alpha / rank", above=0)
    targets: tuple[str, ...] = setting(
        (r"^llm/layers/.*kernel$",),
        "patterns of the matrices that get adapters: kernels of dense layers, llm/embedding",
    )
    trained: tuple[str, ...] = setting(
        (r"^perceiver/", r"_adapter/"), "patterns of the parameters that are trained themselves; all others stay fixed"
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    steps: int = setting(20_000, "optimiser steps; where there are `stages`, their steps count instead", low=1)
    micro_batches: int = setting(
        1,
        "parts in which a batch is encoded, one after the other, with the gradients of the whole (GradCache); more take less memory "
        "and one more forward pass",
        low=1,
    )
    log_every: int = setting(10, "steps between two log lines", low=1)
    checkpoint_every: int = setting(500, "steps between two checkpoints; the last step is always saved", low=1)
    keep_checkpoints: int = setting(2, "checkpoints kept", low=1)
    evaluate_every: int = setting(
        0,
        "steps between two evaluations of the model on all tasks of `eval`, logged as eval/TASK/METRIC; 0 for none",
        low=0,
    )
    progressive: bool = setting(
        True,
        "run `stages` one after the other; False trains all their data sets at once for as many steps (an ablation)",
    )


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """A stage of content-aware progressive training (arXiv 2510.12709, sec. 3.3.1)."""

    steps: int = setting(1000, "optimiser steps of the stage", low=1)
    weights: dict[str, float] = setting(
        {},
        "data set -> sampling weight; data sets left out are not drawn. Empty: data.weights, else each set's `weight`",
    )
    loss_weights: dict[str, float] = setting(
        {}, "loss -> weight in this stage, in place of objective.weights and of the data sets' own"
    )
    mine: tuple[str, ...] = setting(
        (), "data sets whose hard negatives are mined with the model as it is when the stage begins"
    )
    hard_negatives: int = setting(4, "hard negatives shown with each pair of the data sets in `mine`", low=1)
    peak: float = setting(0.0, "peak learning rate of the stage; 0 takes optimizer.peak", low=0)
    floor: float = setting(-1.0, "learning rate at its end; -1 takes optimizer.floor", low=-1)
    warmup_steps: int = setting(-1, "steps of linear warm-up; -1 takes optimizer.warmup_steps", low=-1)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The device mesh; one axis may be -1 and takes the devices that the others leave."""

    data: int = setting(-1, "data parallelism: pairs are split, parameters are copied")
    fsdp: int = setting(1, "data parallelism with the parameters split as well")
    tensor: int = setting(1, "tensor parallelism: heads and inner widths are split")
    shard_optimizer: bool = setting(
        False, "split the moments of the optimiser over `data` too, while the parameters stay copied (ZeRO-2)"
    )


# -------------------------------------------------------------------------------------------------------- curation


@dataclasses.dataclass(frozen=True)
class MiningConfig:
    """Hard negative mining (arXiv 2510.12709, sec. 3.1.2)."""

    per_query: int = setting(16, "hard negatives kept per query", low=1)
    positive_splits: tuple[str, ...] = setting(
        (), "splits of the tables whose pairs are never mined as negatives; empty for all"
    )
    query_block: int = setting(256, "queries scored at a time", low=1)
    target_block: int = setting(8192, "targets scored at a time; a block of scores is all that is held", low=1)
    exact_scores: int = setting(
        20_000_000,
        "scores up to which the best of all thresholds is found; above, it is the best of multiples of 2^-15",
        low=0,
    )


@dataclasses.dataclass(frozen=True)
class BalancingConfig:
    """Adaptive balancing of the training sets (arXiv 2510.12709, sec. 3.1.3)."""

    samples: int = setting(10_000, "items embedded per data set", low=1)
    centroids: int = setting(64, "k-means centroids per data set and modality, at most", low=1)
    epsilon: float = setting(0.05, "entropic regularisation of the transport plan", above=0)
    temperature: float = setting(0.05, "temperature of the softmax that turns similarities into weights", above=0)


# ------------------------------------------------------------------------------------------------------ evaluation


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
    query: str = setting("VTA", "modalities shown of the query")
    target: str = setting("VTA", "modalities shown of the corpus")
    query_fields: tuple[str, ...] = setting(
        ("title", "asr", "ocr", "nickname", "tags"), "text fields shown of the query"
    )
    target_fields: tuple[str, ...] = setting(
        ("title", "asr", "ocr", "nickname", "tags"), "text fields shown of the corpus"
    )
    query_instruction: str = setting("Summarise the item for finding related items.", "system prompt of the query")
    target_instruction: str = setting("Summarise the item for finding related items.", "system prompt of the corpus")
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


@dataclasses.dataclass(frozen=True)
class Config:
    """An experiment."""

    seed: int = setting(0, "seed of every random draw, together with the step", low=0, below=2**31)
    model: ModelConfig = section(ModelConfig, "the model")
    init_from: dict[str, str] = setting(
        {},
        "part of the model ('llm', 'vit', 'audio', 'perceiver', 'vision_adapter', 'audio_adapter', or 'model' for all; of a "
        "dual tower 'bert', 'vit', 'audio') -> checkpoint it starts from: a Hugging Face directory or hub id; parts left out are "
        "drawn anew",
    )
    init_allow_bin: bool = setting(
        False, "whether `init_from` may read pickled weights (.bin), where a checkpoint has no others"
    )
    prompt: PromptConfig = section(PromptConfig, "prompts and tokenizer")
    data: DataConfig = section(DataConfig, "the input pipeline")
    ingest: IngestConfig = section(IngestConfig, "ingestion")
    synthetic: SyntheticConfig = section(SyntheticConfig, "the generated world")
    logs: LogsConfig = section(LogsConfig, "a recommender's logs")
    builders: BuildersConfig = section(BuildersConfig, "pair tables from logs")
    sequences: SequencesConfig = section(SequencesConfig, "sequence tables from logs")
    objective: ObjectiveConfig = section(ObjectiveConfig, "the loss")
    optimizer: OptimizerConfig = section(OptimizerConfig, "the optimiser")
    lora: LoraConfig = section(LoraConfig, "low-rank adapters")
    train: TrainConfig = section(TrainConfig, "the training loop")
    stages: dict[str, StageConfig] = setting(
        {}, "stages by name, run in the order of their names; their steps replace train.steps. Empty: one stage"
    )
    mining: MiningConfig = section(MiningConfig, "hard negative mining")
    balancing: BalancingConfig = section(BalancingConfig, "balancing of the training sets")
    mesh: MeshConfig = section(MeshConfig, "the device mesh")
    eval: EvalConfig = section(EvalConfig, "evaluation")


# -------------------------------------------------------------------------------------------------------- machinery


def default_config() -> ml_collections.ConfigDict:
    """The defaults as a locked ConfigDict; experiment files change it and return it."""
    config = ml_collections.ConfigDict(to_dict(Config())).lock()
    _unlock_mappings(config)
    return config


def _unlock_mappings(config: ml_collections.ConfigDict) -> None:
    """Mappings whose keys are the user's own (data sets, tables, tasks, columns) start empty and take any key."""
    for value in config.values():
        if isinstance(value, ml_collections.ConfigDict):
            _unlock_mappings(value)
            if not len(value):
                value.unlock()


def build(values: Mapping[str, Any]) -> Config:
    """Turns nested mappings into a checked `Config`.

    Args:
        values: a ConfigDict or a plain dict; keys left out take their defaults.

    Raises:
        SailError: on an unknown key (with the nearest valid names), or a value of the wrong type or outside its limits.
    """
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    return build_settings(Config, values, "config")


def load(path: str | pathlib.Path, overrides: Sequence[str] = ()) -> Config:
    """Reads an experiment file and applies overrides.

    Args:
        path: a Python file with `get_config()`, or the `config.json` that a run saved.
        overrides: words of the form "a.b=value"; the value is a Python literal, or else taken as a string.

    Raises:
        SailError: when the file cannot be read, or a key or a value is wrong.
    """
    return build(override(Config, _read(pathlib.Path(path)), overrides))


def _read(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=3)
        raise SailError(f"There is no config file {path}." + (f" Did you mean {' or '.join(near)}?" if near else ""))
    if path.suffix == ".json":
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise SailError(f"{path} is no JSON ({error}). Repair it, or name the experiment file.") from error
    spec = importlib.util.spec_from_file_location(f"sail_jax_config_{path.stem}", path)
    if spec is None:
        raise SailError(f"{path} is no config file; give a Python file with get_config(), or a run's config.json.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config() if hasattr(module, "get_config") else None
    except Exception as error:  # an experiment file is the user's code, and may raise anything
        # ConfigDict puts "Did you mean ...?" into the message for unknown keys.
        reason = error.args[0] if isinstance(error, KeyError | AttributeError) and error.args else error
        raise SailError(f"{path}{_failing_line(error, path)}: {type(error).__name__}: {reason}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise SailError(f"{path} has no get_config() that returns a ConfigDict; start from default_config().")
    return config.to_dict()


def _failing_line(error: Exception, path: pathlib.Path) -> str:
    """Where in an experiment file an error arose, as ", line N", or nothing where that is not known."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path.absolute())
    ]
    return f", line {lines[-1]}" if lines else ""


def save(config: Config, path: pathlib.Path) -> None:
    """Writes the resolved config as JSON that `load` reads back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(to_dict(config), indent=2) + "\n")
    partial.rename(path)
