"""Checks that two arms differ in the declared ingredient alone: settings, steps, schedule, data, tokens."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from experiments.reproduce.claim import Claim
from sail_jax.buckets import place
from sail_jax.config import Config
from sail_jax.config.data import DatasetConfig
from sail_jax.config.differences import differences
from sail_jax.data.prompts import PromptEncoder, load_tokenizer
from sail_jax.data.prompts import instruction as shown_instruction
from sail_jax.data.training_set import dataset_weights
from sail_jax.errors import SailError
from sail_jax.patterns import parse_patterns, views_of
from sail_jax.training.stages import Stage, plan

# Entry of an account -> what to change where the arms differ in it.
REMEDIES = {
    "steps": "give both arms as many steps",
    "pairs per step": "give both arms the same data.batch_size",
    "schedule": "give the stages of both arms the same steps, peak, floor and warm-up",
    "data": "let both arms draw every table as often, in other places if that is the ingredient",
    "tokens": "show both arms as many tokens: instructions of equal length, the same limits, as many rows per pair",
}
# What a message shows of an account.
_LONGEST = 300


def account(config: Config) -> dict[str, Any]:
    """Returns what an arm gets: steps, pairs, learning rates, expected batches of each table, and tokens."""
    stages = plan(config, Path("mined"))
    return {
        "steps": sum(stage.steps for stage in stages),
        "pairs per step": config.data.batch_size,
        "schedule": [_schedule(stage) for stage in stages],
        "data": _batches(stages),
        "tokens": _tokens(config, stages),
    }


def check_arms(claim: Claim, treatment: Config, control: Config) -> None:
    """Checks that the arms of a claim differ in its ingredient alone.

    Raises:
        SailError: they differ in other settings, or in an entry of the account that the claim does not declare.
    """
    changed = [found.key for found in differences(control, treatment)]
    if not changed:
        raise SailError(f"{claim.name}: the two arms are the same config; nothing would be tested.")
    foreign = [key for key in changed if not any(fnmatch(key, pattern) for pattern in claim.ingredient)]
    if foreign:
        raise SailError(
            f"{claim.name}: the arms differ in {', '.join(foreign)}, and not only in {', '.join(claim.ingredient)}: "
            "give both arms the same, or declare it as the ingredient."
        )
    left, right = account(treatment), account(control)
    for entry, remedy in REMEDIES.items():
        if left[entry] != right[entry] and entry not in claim.varies:
            shown = " and ".join(
                f"{name} has {_differing(own, other)}"
                for name, own, other in (
                    (claim.treatment, left[entry], right[entry]),
                    (claim.control, right[entry], left[entry]),
                )
            )
            raise SailError(
                f"{claim.name}: the arms differ in their {entry}, not only in the ingredient: {shown}; {remedy}."
            )


def _differing(own: Any, other: Any) -> str:
    if isinstance(own, Mapping) and isinstance(other, Mapping):
        own = {key: value for key, value in own.items() if other.get(key) != value}
    text = str(own)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _schedule(stage: Stage) -> dict[str, float]:
    optimizer = stage.config.optimizer
    rates = {name: getattr(optimizer, name) for name in ("peak", "floor", "warmup_steps")}
    return {"begin": stage.begin, "steps": stage.steps, **rates}


def _batches(stages: Iterable[Stage]) -> dict[str, float]:
    """Returns {table: expected batches} over all stages."""
    found: Counter[str] = Counter()
    for stage in stages:
        weights = dataset_weights(stage.config)
        for name, weight in weights.items():
            dataset = stage.config.data.datasets[name]
            found[f"{dataset.table} ({dataset.split})"] += stage.steps * weight / sum(weights.values())
    return {table: round(batches, 3) for table, batches in sorted(found.items()) if batches}


def _tokens(config: Config, stages: Iterable[Stage]) -> dict[str, Any]:
    """Returns the limits of a row, the rows of a pair, and the tokens of every instruction."""
    tokenizer = load_tokenizer(config.prompt, place(config.data.dir), config.model.llm.vocab_size)
    encoder = PromptEncoder(config.prompt, tokenizer, config.model.perceiver.latents)
    found: dict[str, Any] = {"max_tokens": config.prompt.max_tokens, "text_budget": config.data.text_budget}
    for stage in stages:
        found[f"rows per pair {stage.name}".strip()] = _rows(stage.config)
    shown = {**config.data.datasets, **{f"task {name}": task for name, task in config.eval.tasks.items()}}
    for name, one in shown.items():
        for side in ("query", "target"):
            text = shown_instruction(config.prompt, getattr(one, f"{side}_instruction"))
            found[f"prompt of {name}, {side}"] = encoder.prompt_tokens(text)
    return found


def _rows(config: Config) -> float:
    """Returns the rows that the model encodes for a pair, in the mean over the batches of a stage."""
    weights = {name: weight for name, weight in dataset_weights(config).items() if weight > 0}
    drawn = [config.data.datasets[name] for name in weights]
    if config.data.sampling == "mixed":
        return _rows_of(drawn)
    rows = sum(weight * _rows_of([one]) for one, weight in zip(drawn, weights.values(), strict=True))
    return round(rows / sum(weights.values()), 3)


def _rows_of(together: Sequence[DatasetConfig]) -> int:
    """Returns the rows of a pair in a batch of some training sets: the views of both sides, and the negatives."""
    patterns = parse_patterns(dict.fromkeys(p for one in together for p in one.patterns), setting="patterns")
    queries, targets = views_of(patterns)
    return len(queries) + len(targets) + max(one.hard_negatives + one.random_negatives for one in together)
