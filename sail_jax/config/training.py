"""Declares the settings of the loss, optimiser, adapters, training loop, stages and device mesh."""

import dataclasses
import re
from collections.abc import Iterable

from sail_jax.config.schema import section, setting

TRACKERS = ("wandb", "mlflow", "trackio")


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the losses, whose sum is that of `objectives.objective.Objective`."""

    nce: float = setting(1.0, "InfoNCE, summed over the Matryoshka widths", low=0)
    cosent: float = setting(0.0, "COSENT, on pairs with a graded score (lambda in the report)", low=0)
    micl: float = setting(0.0, "mICL: InfoNCE on only the visual and on only the text positions (alpha)", low=0)
    late_fusion: float = setting(0.0, "InfoNCE on the gated mixture of fused and visual embedding (beta)", low=0)
    distill: float = setting(
        0.0, "distance to the recommender's ID embeddings, summed over `objective.teachers`", low=0
    )


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Settings of the loss (arXiv 2510.12709, sec. 3.3.2)."""

    matryoshka: tuple[int, ...] = setting(
        (1536, 768, 128), "widths to which the embedding is cut, normalised and scored"
    )
    temperature: float = setting(0.05, "initial temperature of every data set", above=0)
    learn_temperature: bool = setting(True, "whether the temperatures are learned, one per data set")
    min_temperature: float = setting(0.01, "lower bound of the temperatures", above=0)
    max_temperature: float = setting(0.5, "upper bound of the temperatures", above=0)
    symmetric: bool = setting(True, "score targets against queries too, and average the two losses")
    weights: LossWeights = section(LossWeights, "weights of the losses")
    teachers: dict[str, int] = setting(
        {},
        "ID embedding of the items -> its width: targets of the loss `distill`, each with a head of its own",
    )
    distill: str = setting(
        "cosine",
        "'cosine': 1 - cosine to the ID embedding; 'mse': squared distance of the unit vectors' coordinates; "
        "'relational': squared difference of the cosines among the items of a device; 'contrastive': each item has to "
        "find its own ID embedding among those of the items of a device",
        choices=("cosine", "mse", "relational", "contrastive"),
    )
    distill_temperature: float = setting(0.1, "temperature of the contrastive distillation, fixed", above=0)
    distill_heads: str = setting(
        "ridge",
        "'ridge': in the first stage that distils, the heads begin as the ridge regression from the model's vectors to "
        "the ID embeddings, so that the first gradient teaches the model, not the head; 'random'",
        choices=("ridge", "random"),
    )
    teacher_statistics: str = setting(
        "centred",
        "what makes targets of the ID embeddings: 'centred' takes away their mean direction, which tells no items "
        "apart; 'whitened' makes all directions vary alike too; 'none'",
        choices=("centred", "whitened", "none"),
    )
    distill_fit_items: int = setting(
        20_000, "items, about, from which the heads and the statistics of the ID embeddings are found", low=2
    )
    cosent_temperature: float = setting(0.05, "temperature of COSENT, fixed", above=0)
    score_block: int = setting(
        1024,
        "pairs per batch above which scores are computed in square blocks of at most this many rows, around a ring of "
        "the devices, so that memory grows linearly with the batch",
        low=1,
        may_change=True,
    )
    share_hard_negatives: bool = setting(
        True, "hard negatives of a pair are negatives of all queries of the batch, not only of its own query"
    )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Settings of an optimiser with warm-up and cosine decay to a floor (arXiv 2510.12709, sec. 4.1)."""

    name: str = setting(
        "adamw",
        "'adamw'; 'adafactor', whose second moment has one number per row and column; 'lion', without a second moment; "
        "'muon' for the matrices of layers, with adamw for all else",
        choices=("adamw", "adafactor", "lion", "muon"),
    )
    peak: float = setting(1e-5, "peak learning rate", above=0)
    floor: float = setting(6e-6, "learning rate at the end of the cosine", low=0)
    warmup_steps: int = setting(1000, "steps of linear warm-up", low=0)
    rates: dict[str, float] = setting(
        {},
        "pattern -> factor on the learning rate of parameters whose path matches it, for example {r'^vit/': 0.1}; the "
        "first match counts, and without one the factor is 1",
    )
    layer_decay: float = setting(
        1.0,
        "further factor per layer of a tower, counted from its top down to its embeddings; 1 for none",
        above=0,
        high=1,
    )
    b1: float = setting(0.9, "decay of the first moment", low=0, below=1)
    b2: float = setting(0.999, "decay of the second moment; of lion's momentum; not of adafactor", low=0, below=1)
    eps: float = setting(1e-8, "epsilon of Adam", low=0)
    first_moment: str = setting(
        "float32",
        "type of the first moment; bfloat16 saves two bytes per parameter",
        choices=("float32", "bfloat16"),
    )
    weight_decay: float = setting(1e-4, "weight decay, by default only on matrices", low=0)
    weight_decay_mask: dict[str, bool] = setting(
        {}, "pattern -> whether parameters whose path matches it decay; the first match counts, without one the default"
    )
    ema: float = setting(
        0.0,
        "decay per step of a running average of the trained parameters, which is saved with them and, by eval.ema, "
        "evaluated, embedded with and exported; 0 for none",
        low=0,
        below=1,
    )
    temperature_rate: float = setting(
        1.0,
        "factor on the learning rate of the temperatures; raise it (to 100, say) if the rate is near 1e-5",
        low=0,
    )
    clip_norm: float = setting(1.0, "global norm to which gradients are clipped", above=0)
    freeze: tuple[str, ...] = setting(
        (), "regular expressions; parameters whose path matches one stay fixed, for example r'^vit/'"
    )


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Settings of low-rank adapters (arXiv 2106.09685); patterns are as in `optimizer.freeze`."""

    rank: int = setting(0, "inner width of the adapters; 0 trains the model itself", low=0)
    alpha: float = setting(16.0, "the output of the adapters is multiplied by alpha / rank", above=0)
    targets: tuple[str, ...] = setting(
        (r"^llm/layers/.*kernel$",),
        "patterns of the matrices that get adapters: kernels of dense layers, llm/embedding",
    )
    trained: tuple[str, ...] = setting(
        (r"^perceiver/", r"_adapter/"), "patterns of the parameters that are trained in full; all others stay fixed"
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of the training loop."""

    steps: int = setting(20_000, "number of optimiser steps; with `stages`, their steps count instead", low=1)
    micro_batches: int = setting(
        1,
        "micro-batches in which a batch is encoded, with the gradients of the whole batch (GradCache); more than one "
        "take less memory and one more forward pass",
        low=1,
        may_change=True,
    )
    log_every: int = setting(
        10, "steps between two lines of the training log; the first step has one too", low=1, may_change=True
    )
    checkpoint_every: int = setting(
        500, "steps between two checkpoints; the last step is always saved", low=1, may_change=True
    )
    keep_checkpoints: int = setting(2, "number of latest checkpoints to keep", low=1, may_change=True)
    skip_nonfinite: int = setting(
        0,
        "steps whose loss or gradient is not finite that a run passes over, without an update; one more stops it",
        low=0,
        may_change=True,
    )
    evaluate_every: int = setting(
        0,
        "steps between two evaluations of the model on all tasks of `eval`, logged as eval/TASK/METRIC; 0 for none",
        low=0,
        may_change=True,
    )
    trackers: tuple[str, ...] = setting(
        (),
        "what gets the training log besides metrics.jsonl and TensorBoard: 'wandb', 'mlflow', 'trackio', each an extra "
        "to install",
        choices=TRACKERS,
        may_change=True,
    )
    tracker_name: str = setting(
        "", "name of the run in `trackers`; empty for that of the run directory", may_change=True
    )
    tracker_group: str = setting(
        "", "group of the run in `trackers`, such as the name of a sweep; empty for none", may_change=True
    )
    progressive: bool = setting(
        True,
        "run `stages` one after another; False trains on all their data sets at once for as many steps (an ablation)",
    )


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """Settings of a stage of content-aware progressive training (arXiv 2510.12709, sec. 3.3.1)."""

    steps: int = setting(1000, "number of optimiser steps of the stage", low=1)
    weights: dict[str, float] = setting(
        {},
        "data set -> sampling weight; other data sets are not sampled; empty for data.weights or each set's `weight`",
    )
    loss_weights: dict[str, float] = setting(
        {}, "loss -> weight in this stage, instead of objective.weights and of the data sets' own"
    )
    mine: tuple[str, ...] = setting((), "data sets whose hard negatives are mined with the model at the stage's start")
    hard_negatives: int = setting(4, "hard negatives per pair of the data sets in `mine`", low=1)
    peak: float = setting(0.0, "peak learning rate of the stage; 0 for optimizer.peak", low=0)
    floor: float = setting(-1.0, "learning rate at its end; -1 for optimizer.floor", low=-1)
    warmup_steps: int = setting(-1, "steps of linear warm-up; -1 for optimizer.warmup_steps", low=-1)


def stage_order(names: Iterable[str]) -> list[str]:
    """Returns the names of stages in the order in which they run: 2 before 10."""

    def parts(name: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,18})", name)]

    return sorted(names, key=parts)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Settings of the device mesh; one axis may be -1 and gets the devices not used by the others.

    Devices of an `fsdp` or `tensor` group lie within a TPU slice or a node of GPUs, where the sizes allow it.
    """

    data: int = setting(-1, "data parallelism: pairs are split, parameters are replicated")
    fsdp: int = setting(1, "data parallelism with the parameters split as well")
    tensor: int = setting(1, "tensor parallelism: heads and inner widths are split")
    shard_optimizer: bool = setting(
        False, "split the moments of the optimiser over `data` too; the parameters stay replicated (ZeRO-2)"
    )
