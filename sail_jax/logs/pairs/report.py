"""Says what each rule of a builder kept and dropped, and what opens a default that drops much."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from sail_jax.config.log_pairs import BuildersConfig
from sail_jax.config.schema import to_dict

# Rule -> the settings that open it; a builder has one or two of them.
_OPENED_BY = {
    "rows_below_threshold": ("positives", "min_seconds"),
    "support": ("min_users", "min_queries", "min_shared", "min_items"),
    "strength": ("min_npmi", "min_cosine"),
    "test_in_train": ("new_test_pairs",),
    "over_per_item": ("per_item",),
    "threshold": ("min_clicks", "min_ctr", "min_shown"),
    "over_per_query": ("per_query",),
    "over_per_label": ("per_label",),
}
# Rules that count hashtags or n-grams, and neither rows nor candidates.
_OTHER_UNITS = ("hashtags_too_general", "ngrams_too_common")
_NEARLY_ALL = 0.9


@dataclasses.dataclass(frozen=True)
class Step:
    """A rule of a builder: how many rows or candidates came to it, and how many it dropped."""

    rule: str
    came: int
    dropped: int


def steps(counts: dict[str, Any]) -> Iterator[Step]:
    """Yields the rules of a builder in their order, from its counts in `pairs.json`."""
    left = {True: counts["rows_read"], False: counts.get("candidates", 0)}
    for key, dropped in counts.items():
        rule = key.removeprefix("dropped_")
        if rule == key or rule in _OTHER_UNITS:
            continue
        of_rows = rule.startswith("rows_")
        yield Step(rule, left[of_rows], dropped)
        left[of_rows] -= dropped


def kept_and_dropped(name: str, counts: dict[str, Any]) -> str:
    """Returns a line of text: what each rule of a builder took."""
    took = [f"{step.rule} {step.dropped:,} of {step.came:,}" for step in steps(counts) if step.dropped]
    kept = counts["train"] + counts["test"]
    return f"{name}: {counts['candidates']:,} candidates, {kept:,} kept; dropped: {', '.join(took) or 'none'}"


def without_test(builders: dict[str, dict[str, Any]]) -> str:
    """Returns a line on tables that train and have no test row for a task; empty if there are none.

    Args:
        builders: builder -> its counts in `pairs.json`.
    """
    names = [name for name, counts in builders.items() if counts["train"] and not counts["test"]]
    held_out = ", or of copair set config.builders.copair.held_out=0.1" * ("copair" in names)
    if not names:
        return ""
    return (
        f"No test row: {', '.join(names)}. A task of such a table has nothing to measure: raise "
        f"config.logs.test_share{held_out}, or delete the task from config.eval.tasks, at which evaluation would stop."
    )


def warnings(name: str, counts: dict[str, Any]) -> Iterator[str]:
    """Yields a line for each rule that drops nearly all by a setting that was left at its default."""
    defaults = to_dict(getattr(BuildersConfig(), name))
    for step in steps(counts):
        left_alone = [
            f"config.builders.{name}.{setting} ({defaults[setting]})"
            for setting in _OPENED_BY.get(step.rule, ())
            if setting in defaults and counts["settings"].get(setting) == defaults[setting]
        ]
        if left_alone and step.dropped >= _NEARLY_ALL * max(step.came, 1):
            share, opens = f"{step.dropped / step.came:.1%}", " or ".join(left_alone)
            yield f"{name}: the rule {step.rule} dropped {share} of {step.came:,}; open it with {opens}."
