"""Writes the searches of a generated world, by what they name, and graded items for some.

A search names all facets of a topic, or one of them: the theme, the look or the sound. All items that have what it
names are relevant. What is named tells which modalities can answer the search: the frames one for a look, say.
"""

import json
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sail_jax.config.data import SyntheticConfig
from sail_jax.data.synthetic.items import ItemPlan, Members, item_id
from sail_jax.data.synthetic.media import COLOURS, TIMBRES
from sail_jax.data.synthetic.topics import FACETS, FILLERS, THEMES, Topic, draws, look_words, sound_words

KINDS = ("topic", *FACETS)
FOLDER = "searches"
CLICKS = 4
GRADES = 5
ITEMS_PER_GRADE = 2


def write_searches(folder: pathlib.Path, plan: ItemPlan, config: SyntheticConfig, seed: int) -> dict[str, dict]:
    """Writes `searches/KIND.jsonl` for each kind, and returns their counts of searches by split.

    A row has the `query`, the `item_ids` that were clicked, and the `split`: a few for a training search, all that fit
    for a test search. No text occurs in both splits.
    """
    (folder / FOLDER).mkdir()
    counts = {}
    for kind in KINDS:
        groups, members = groups_of(kind, plan)
        texts = _texts(kind, plan, config.searches + config.test_searches, seed)
        counts[kind] = {"train": 0, "test": 0}
        with (folder / FOLDER / f"{kind}.jsonl").open("w") as file:
            for place, (text, topic) in enumerate(texts):
                found = members[groups[topic]]
                split = "test" if place < config.test_searches else "train"
                if split == "train":
                    rng = draws(seed, f"{kind} clicks", place)
                    found = np.sort(rng.choice(found, min(CLICKS, len(found)), replace=False))
                row = {"query": text, "item_ids": [item_id(item) for item in found.tolist()], "split": split}
                file.write(json.dumps(row) + "\n")
                counts[kind][split] += 1
    return counts


def groups_of(kind: str, plan: ItemPlan) -> tuple[np.ndarray, Members]:
    """Returns the group of each topic by what searches of a kind name, [T], and the items that show it."""
    groups, shown = np.arange(len(plan.topics)), np.arange(len(plan.topic_of)) < plan.catalogue
    if kind in FACETS:
        groups, shown = plan.facets[:, FACETS.index(kind)], shown & plan.shows(kind)
    return groups, Members(groups[plan.topic_of], shown, int(groups.max()) + 1)


def search_topics(kind: str, plan: ItemPlan, count: int) -> np.ndarray:
    """[count] the topic of each search of a kind; all that items show is named equally often."""
    groups, members = groups_of(kind, plan)
    _, first = np.unique(groups, return_index=True)
    first = np.sort(first[members.sizes[groups[first]] > 0])
    return first[np.arange(count) % len(first)]


def _texts(kind: str, plan: ItemPlan, count: int, seed: int) -> Iterator[tuple[str, int]]:
    """Yields distinct searches, each with a topic that fits it, in the order of `search_topics`."""
    seen: set[str] = set()
    for place, topic in enumerate(search_topics(kind, plan, count).tolist()):
        rng = draws(seed, f"{kind} searches", place)
        text = _WRITERS[kind](plan.topics[topic], rng)
        while text in seen:
            text = f"{text} {rng.choice(FILLERS)}"
        seen.add(text)
        yield text, topic


def _of_topic(topic: Topic, rng: np.random.Generator) -> str:
    theme = " ".join(_some(THEMES[topic.theme], rng.integers(1, 3), rng))
    return f"{theme} with {_pick(look_words(topic.look), rng)} and {_pick(sound_words(topic.sound), rng)}"


def _of_theme(topic: Topic, rng: np.random.Generator) -> str:
    return _with_fillers(_some(THEMES[topic.theme], rng.integers(1, 4), rng), rng)


def _of_look(topic: Topic, rng: np.random.Generator) -> str:
    article = ["a"] if rng.random() < 0.3 else []
    return _with_fillers([*article, _pick(look_words(topic.look), rng)], rng)


def _of_sound(topic: Topic, rng: np.random.Generator) -> str:
    return _with_fillers([_pick(sound_words(topic.sound), rng)], rng)


_WRITERS: dict[str, Callable[[Topic, np.random.Generator], str]] = {
    "topic": _of_topic,
    "theme": _of_theme,
    "look": _of_look,
    "sound": _of_sound,
}


def _pick(words: Sequence[Sequence[str]], rng: np.random.Generator) -> str:
    return " ".join(str(rng.choice(each)) for each in words)


def _some(words: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    return [str(word) for word in rng.choice(words, count, replace=False)]


def _with_fillers(words: Sequence[str], rng: np.random.Generator) -> str:
    """The words with up to two uninformative ones before and behind."""
    before = rng.integers(3)
    fillers = _some(FILLERS, before + rng.integers(3), rng)
    return " ".join([*fillers[:before], *words, *fillers[before:]])


def write_scores(folder: pathlib.Path, plan: ItemPlan, config: SyntheticConfig, seed: int) -> dict[str, int]:
    """Writes `scores.jsonl`: searches with items of five grades.

    A grade is the share of the named parts that an item has: a search names a theme, a colour, a shape and a timbre. A
    row has the `query`, an `item_id`, its `score` (0, 0.25, 0.5, 0.75 or 1) and the `split`. Returns the counts of rows
    by split.
    """
    parts = _parts(plan.facets)
    members = Members(plan.topic_of, np.arange(len(plan.topic_of)) < plan.catalogue, len(plan.topics))
    counts = {"train": 0, "test": 0}
    seen: set[str] = set()
    with (folder / "scores.jsonl").open("w") as file:
        for place in range(config.searches + config.test_searches):
            rng = draws(seed, "scores", place)
            topic = place % len(plan.topics)
            query = _graded_text(plan.topics[topic], rng)
            if query in seen:
                continue
            seen.add(query)
            split = "test" if place < config.test_searches else "train"
            grades = (parts == parts[topic]).sum(1)
            for grade in range(GRADES):
                pool = np.flatnonzero(grades == grade)
                if len(pool):
                    for item in np.unique(members.draw(rng.choice(pool, ITEMS_PER_GRADE), rng)).tolist():
                        row = {"query": query, "item_id": item_id(item), "score": grade / (GRADES - 1), "split": split}
                        file.write(json.dumps(row) + "\n")
                        counts[split] += 1
    return counts


def _parts(facets: np.ndarray) -> np.ndarray:
    """[T, 4] theme, colour, shape and timbre of topics, given their facets."""
    theme, look, sound = facets.T
    return np.stack([theme, look % len(COLOURS), look // len(COLOURS), sound % len(TIMBRES)], axis=1)


def _graded_text(topic: Topic, rng: np.random.Generator) -> str:
    theme = " ".join(_some(THEMES[topic.theme], rng.integers(1, 3), rng))
    return f"{theme}, {_pick(look_words(topic.look), rng)}, {_pick(sound_words(topic.sound)[1:], rng)}"
