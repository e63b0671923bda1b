"""Explains the words of the report where they are first used: modalities, tasks, models."""

import html
from collections.abc import Sequence

from sail_jax.evaluation.report.data import RunReport
from sail_jax.evaluation.report.directions import facts_of
from sail_jax.evaluation.report.tables import MODELS, main_figures, show_view, subject, tasks_of
from sail_jax.patterns import Pattern

MODALITY_WORDS = {"V": "frames", "T": "text", "A": "sound"}
_OF_MODEL = {
    "chance": "a random order",
    "untrained": "the same network before its first step",
    "tfidf": "a plain baseline that counts shared words",
    "popularity": "a baseline that shows everyone the most popular items",
    "ceiling": "what a perfect model reaches",
}


def listed(words: Sequence[str]) -> str:
    """Returns words as a list in a sentence: "a", "a and b", "a, b and c"."""
    *first, last = words or [""]
    return f"{', '.join(first)} and {last}" if first else last


def spelled(view: Pattern) -> str:
    """Returns a view in words, such as "text → frames, text and sound"."""
    query, target = (listed([MODALITY_WORDS.get(letter, letter) for letter in side]) for side in view)
    return f"{query} → {target}"


def glossary(runs: Sequence[RunReport]) -> str:
    """Returns the HTML of the words that the page uses, folded away: views, models and metrics."""
    words: dict[str, str] = {}
    for task in tasks_of(runs):
        for run in runs:
            if main := main_figures(run, task, subject(run)):
                words.setdefault(task, f"a task: {spelled(main.view)}, what is shown of a query → of the items")
                words.setdefault(show_view(main.view), spelled(main.view))
    words |= MODALITY_WORDS
    models = {figures.model for run in runs for figures in run.figures}
    words |= {MODELS.get(model, model): what for model, what in _OF_MODEL.items() if model in models}
    metrics = dict.fromkeys(name for run in runs for figures in run.figures for name in figures.metrics)
    words |= {name: facts_of(name).meaning for name in metrics if facts_of(name).meaning}
    if not metrics:
        return ""
    rows = (f"<div><dt>{html.escape(word)}</dt><dd>{html.escape(what)}</dd></div>" for word, what in words.items())
    return f'<details id="words"><summary>Words of this page</summary><dl class="words">{"".join(rows)}</dl></details>'
