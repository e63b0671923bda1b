"""Takes single ingredients out of a config: each function returns the changes, or says what the config lacks."""

from collections.abc import Collection, Mapping
from pathlib import Path

from experiments.reproduce.claim import AbsentError, Words
from sail_jax.config import Config
from sail_jax.data.training_set import dataset_weights
from sail_jax.training.stages import plan

LORA_RANK = 8


def without_fusion(config: Config) -> Words:
    """A dual tower instead of the LLM; the losses on fused positions, which it has not, go too."""
    if config.model.kind != "fusion":
        raise AbsentError("model.kind is not 'fusion'")
    losses = (name for name in ("micl", "late_fusion") if getattr(config.objective.weights, name))
    return ("model.kind=dual_tower", *(f"objective.weights.{name}=0.0" for name in losses))


def without_two_way_attention(config: Config) -> Words:
    """Causal attention."""
    if config.model.kind != "fusion" or config.model.llm.causal:
        raise AbsentError("its model has no two-way attention (model.kind, model.llm.causal)")
    return ("model.llm.causal=True",)


def without_own_prompts(config: Config) -> Words:
    """One instruction for all: the one that most sides of the training sets have."""
    shown = [getattr(one, f"{side}_instruction") for one in drawn(config).values() for side in ("query", "target")]
    if config.prompt.unified or len(set(shown)) < 2:
        raise AbsentError("all of its training sets have one instruction")
    return (f"prompt.unified={max(dict.fromkeys(shown), key=shown.count)}",)


def without_full_training(config: Config) -> Words:
    """Low-rank adapters instead of all parameters."""
    if config.lora.rank:
        raise AbsentError("it trains adapters already (lora.rank)")
    if not config.init_from:
        raise AbsentError("it starts from random weights, to which adapters have nothing to add (init_from)")
    return (f"lora.rank={LORA_RANK}",)


def without_diversity(config: Config) -> Words:
    """Only the training set with the largest weight, for as many steps."""
    weights = {name: weight for name, weight in dataset_weights(config).items() if weight > 0}
    if len(weights) < 2:
        raise AbsentError("it has a single training set")
    return without_sets(config, set(weights) - {max(weights, key=lambda name: weights[name])})


def without_cosent(config: Config) -> Words:
    """No COSENT, on the same scored pairs."""
    losses = {
        name: one.loss_weights.get("cosent", config.objective.weights.cosent) for name, one in drawn(config).items()
    }
    having = [name for name, weight in losses.items() if weight > 0]
    if not having:
        raise AbsentError("none of its training sets has the loss 'cosent'")
    return tuple(
        f"data.datasets.{name}.loss_weights={dict(config.data.datasets[name].loss_weights) | {'cosent': 0.0}}"
        for name in having
    )


def without_order(config: Config) -> Words:
    """All stages draw what they draw together: as many batches of each set, under the same learning rates."""
    if len(config.stages) < 2 or not config.train.progressive:
        raise AbsentError("it has no stages one after another (stages, train.progressive)")
    totals = dict.fromkeys(config.data.datasets, 0.0)
    for stage in plan(config, Path("mined")):
        weights = dataset_weights(stage.config)
        for name, weight in weights.items():
            totals[name] += stage.steps * weight / sum(weights.values())
    mixed = {name: round(total, 6) for name, total in totals.items() if total}
    return tuple(f"stages.{stage}.weights={mixed}" for stage in config.stages)


def without_hard_negatives(config: Config) -> Words:
    """As many random negatives as there were mined ones, so that both arms encode as many items.

    The sets named SET_random, if the config has them, take the places of the mined sets in their stages; so stages
    without mining stay the same in both arms.
    """
    mining = {name: stage for name, stage in config.stages.items() if stage.mine}
    if not mining:
        raise AbsentError("none of its stages mines hard negatives (stages.NAME.mine)")
    words = []
    for name, stage in mining.items():
        missing = [one for one in stage.mine if f"{one}_random" not in config.data.datasets]
        if missing:
            raise AbsentError(
                f"stage {name} mines {missing[0]}, and there is no training set {missing[0]}_random with as many "
                "random_negatives, which the control needs"
            )
        weights = {f"{one}_random" if one in stage.mine else one: weight for one, weight in stage.weights.items()}
        words += [f"stages.{name}.mine=()", f"stages.{name}.weights={weights}"]
    return tuple(words)


def without_balancing(config: Config) -> Words:
    """Equal weights."""
    if not config.data.weights:
        raise AbsentError("it has no balanced weights (data.weights)")
    return ("data.weights=", *(f"data.datasets.{name}.weight=1.0" for name in config.data.datasets))


def without_specialization(config: Config) -> Words:
    """Batches in which the training sets are mixed."""
    if config.data.sampling != "specialized" or len(drawn(config)) < 2:
        raise AbsentError("its batches are mixed, or it has a single training set (data.sampling)")
    return ("data.sampling=mixed",)


def without_patterns(config: Config) -> Words:
    """One pattern, the first, for each training set."""
    several = [name for name, one in drawn(config).items() if len(one.patterns) > 1]
    if not several:
        raise AbsentError("none of its training sets has several patterns")
    return tuple(f"data.datasets.{name}.patterns={config.data.datasets[name].patterns[:1]}" for name in several)


def without_field_dropout(config: Config) -> Words:
    """No text field is dropped."""
    if not config.data.field_dropout:
        raise AbsentError("it drops no text fields (data.field_dropout)")
    return ("data.field_dropout=0.0",)


def without_sequences(config: Config) -> Words:
    """Content for as long: the steps of the sequences go to the other sets."""
    return _content_instead(config, "sequences")


def without_ids(config: Config) -> Words:
    """Content for as long: the steps of the ID embeddings go to the other sets."""
    return _content_instead(config, "items")


def _content_instead(config: Config, kind: str) -> Words:
    names = {name for name, one in drawn(config).items() if one.kind == kind}
    if not names:
        raise AbsentError(f"none of its training sets has the kind {kind!r}")
    return without_sets(config, names)


def drawn(config: Config) -> dict:
    """The training sets that a stage of a run draws."""
    names = {
        name
        for stage in plan(config, Path("mined"))
        for name, weight in dataset_weights(stage.config).items()
        if weight
    }
    return {name: one for name, one in config.data.datasets.items() if name in names}


def without_sets(config: Config, names: Collection[str]) -> Words:
    """The changes by which no stage draws some training sets; their steps go to the others."""
    if not config.stages:
        _require_others(dataset_weights(config), names, "the run")
        return tuple(f"data.datasets.{name}.weight=0.0" for name in sorted(names))
    words = []
    for stage, settings in config.stages.items():
        weights = dict(settings.weights) or dataset_weights(config)
        kept = {name: weight for name, weight in weights.items() if name not in names}
        _require_others(weights, names, f"stage {stage}")
        if kept != weights:
            words.append(f"stages.{stage}.weights={kept}")
    return tuple(words)


def _require_others(weights: Mapping[str, float], names: Collection[str], where: str) -> None:
    if not any(weight > 0 for name, weight in weights.items() if name not in names):
        raise AbsentError(f"{where} draws nothing else, so that no control can train for as long on content")


def nothing(config: Config) -> Words:
    """No change: the arms differ outside of the config."""
    return ()
