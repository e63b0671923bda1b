"""Plans and writes the items of a generated world: what each one shows, and what it lacks.

The catalogue comes first, then the test queries of each task, then the items of off-domain sets. An item of the
catalogue may repeat another one, with all its nuisance, but for one facet (a near-duplicate), or show two looks in the
two halves of its frames, of which the text says which one counts.

Axis letters: N items, T topics.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from sail_jax.config.data import SyntheticConfig
from sail_jax.data.synthetic.media import render_frames, render_rhythm, render_sound, render_stripes
from sail_jax.data.synthetic.topics import FACETS, FILLERS, THEMES, Topic, describe, draws, facets_of
from sail_jax.errors import SailError
from sail_jax.items import TEXT_FIELDS

# What an item lacks altogether, and the share of the items that lack it.
LACKS = ("", "text", "frames", "audio")
_LACK_SHARES = (0.67, 0.08, 0.10, 0.15)
# The kinds of test queries that are items, which are also the names of their tables.
PLAIN, NEAR, TWO_LOOKS, MISSING = "pairs", "near_duplicates", "two_looks", "missing_fields"
OFF_DOMAIN = ("off_text", "off_vision", "off_sound")
_NAME_PARTS = ("ka", "mi", "ro", "lu", "sen", "ta", "vi", "no", "zel", "bri", "do", "fay")
_FOREIGN_PARTS = ("qua", "xi", "zor", "wev", "jul", "gth", "oxa", "ulm", "eez", "iph", "yob", "ruq")
_OFF_DOMAIN_PATTERNS = 24


@dataclasses.dataclass(frozen=True)
class ItemPlan:
    """What each item of the topics is; off-domain items follow after N.

    Attributes:
        topics: the topics.
        catalogue: number of items of the catalogue, which come first.
        queries: kind of test queries -> the range of their indices.
        topic_of: [N] index of the topic.
        lacks: [N] index in `LACKS`.
        second: [N] column of `looks` with the topic whose look the frames show too, or -1.
        source: [N] index of the item whose draws it repeats: itself, unless it is a near-duplicate.
        facets: [T, 3] the facets of the topics.
        looks: [T, 2] the topics before and after each topic among those that differ in the look alone.
    """

    topics: Sequence[Topic]
    catalogue: int
    queries: dict[str, range]
    topic_of: np.ndarray
    lacks: np.ndarray
    second: np.ndarray
    source: np.ndarray
    facets: np.ndarray
    looks: np.ndarray

    def shows(self, facet: str) -> np.ndarray:
        """[N] bool, whether each item shows a facet."""
        return self.lacks != 1 + FACETS.index(facet)


def item_id(index: int) -> str:
    """The id of an item."""
    return f"item{index:06d}"


def plan_items(topics: Sequence[Topic], config: SyntheticConfig, seed: int) -> ItemPlan:
    """Draws what each item is."""
    kinds = {PLAIN: True, NEAR: config.near_duplicates, TWO_LOOKS: config.two_looks, MISSING: config.missing_fields}
    count, queries = config.num_items, {}
    for kind, wanted in kinds.items():
        if wanted and config.test_queries:
            queries[kind] = range(count, count + config.test_queries)
            count += config.test_queries
    rng = draws(seed, "items")
    topic_of = np.concatenate([rng.permutation(config.num_items), np.arange(count - config.num_items)]) % len(topics)
    lacks = rng.choice(len(LACKS), count, p=_LACK_SHARES)
    plan = ItemPlan(
        topics=topics,
        catalogue=config.num_items,
        queries=queries,
        topic_of=topic_of,
        lacks=lacks,
        second=np.full(count, -1),
        source=np.arange(count),
        facets=facets_of(topics),
        looks=_before_and_after(topics),
    )
    _show_two_looks(plan, config.two_looks, rng)
    _repeat(plan, config.near_duplicates, rng)
    without = list(queries.get(MISSING, ()))
    lacks[without] = np.where(lacks[without] == LACKS.index("text"), 0, lacks[without])
    return plan


def _before_and_after(topics: Sequence[Topic]) -> np.ndarray:
    """[T, 2] the topics before and after each one in the circle of those that differ in the look; itself if alone."""
    alike: dict[tuple[int, int], list[int]] = {}
    for index, topic in enumerate(topics):
        alike.setdefault((topic.theme, topic.sound), []).append(index)
    found = np.zeros((len(topics), 2), np.int64)
    for circle in alike.values():
        found[circle, 0], found[circle, 1] = np.roll(circle, 1), np.roll(circle, -1)
    return found


def _show_two_looks(plan: ItemPlan, share: float, rng: np.random.Generator) -> None:
    chosen = np.zeros(len(plan.topic_of), bool)
    chosen[: plan.catalogue] = rng.random(plan.catalogue) < share
    chosen[list(plan.queries.get(TWO_LOOKS, ()))] = True
    chosen &= plan.looks[plan.topic_of, 0] != plan.topic_of
    plan.second[chosen] = rng.integers(2, size=int(chosen.sum()))
    # Without text or frames there would be nothing to tell apart.
    plan.lacks[chosen & np.isin(plan.lacks, [LACKS.index("text"), LACKS.index("frames")])] = 0


def _repeat(plan: ItemPlan, share: float, rng: np.random.Generator) -> None:
    """Makes near-duplicates: each repeats a plain item of the catalogue whose topic differs in one facet."""
    chosen = np.zeros(len(plan.topic_of), bool)
    chosen[: plan.catalogue] = rng.random(plan.catalogue) < share
    chosen &= plan.second < 0
    originals = Members(
        plan.topic_of[: plan.catalogue], ~chosen[: plan.catalogue] & (plan.second[: plan.catalogue] < 0)
    )
    chosen[list(plan.queries.get(NEAR, ()))] = True
    for index in np.flatnonzero(chosen):
        differs = plan.facets != plan.facets[plan.topic_of[index]]
        near = np.flatnonzero((differs.sum(1) == 1) & (originals.sizes > 0))
        if not len(near):
            continue
        topic = rng.choice(near)
        original = originals.draw(np.array([topic]), rng)[0]
        plan.source[index] = original
        # The facet in which the two differ is shown, so that they can be told apart.
        facet = 1 + int(np.flatnonzero(differs[topic])[0])
        plan.lacks[index] = 0 if plan.lacks[original] == facet else plan.lacks[original]


class Members:
    """The items of each group, without a list per group.

    Args:
        group_of: [N] group of each item.
        eligible: [N] bool, which items count; None for all.
        groups: number of groups; None for those that occur.
    """

    def __init__(self, group_of: np.ndarray, eligible: np.ndarray | None = None, groups: int | None = None) -> None:
        items = np.arange(len(group_of)) if eligible is None else np.flatnonzero(eligible)
        self._items = items[np.argsort(group_of[items], kind="stable")]
        self.sizes = np.bincount(group_of[items], minlength=groups or int(group_of.max()) + 1)
        self._starts = np.cumsum(self.sizes) - self.sizes

    def __getitem__(self, group: int) -> np.ndarray:
        """The items of a group, ascending."""
        return self._items[self._starts[group] : self._starts[group] + self.sizes[group]]

    def draw(self, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An item of each of some groups, none of which is empty; items may be drawn again."""
        return self._items[self._starts[groups] + (rng.random(len(groups)) * self.sizes[groups]).astype(np.int64)]


# --------------------------------------------------------------------------------------------------------- writing


def write_items(folder: pathlib.Path, plan: ItemPlan, config: SyntheticConfig, seed: int) -> Iterator[dict]:
    """Renders the items one by one, writes their media, and yields their rows of the item table."""
    missing = plan.queries.get(MISSING, range(0))
    for index in range(len(plan.topic_of)):
        topic, source = plan.topics[plan.topic_of[index]], int(plan.source[index])
        lacks, row = LACKS[plan.lacks[index]], _empty(index, topic.name)
        looks, side = _looks(plan, index, seed)
        if lacks != "text":
            fields = config.missing_fields if index in missing else ()
            row |= _text(draws(seed, "text", source), topic.theme, fields)
            if side:
                row["ocr"] = f"{side} {row['ocr'] or ''}".strip()
        if lacks != "frames":
            _write_frames(folder, row, render_frames(draws(seed, "frames", source), looks))
        if lacks != "audio":
            _write_sound(folder, row, render_sound(draws(seed, "sound", source), topic.sound))
        yield row


def _empty(index: int, label: str) -> dict:
    row = {"item_id": item_id(index), "title": None, "asr": None, "ocr": None, "nickname": None, "tags": []}
    return row | {"frames": [], "audio": None, "label": label}


def _looks(plan: ItemPlan, index: int, seed: int) -> tuple[list[int], str]:
    """The looks from left to right, and the word for the side of the one that counts if there are two."""
    topic = int(plan.topic_of[index])
    looks = [plan.topics[topic].look]
    if plan.second[index] < 0:
        return looks, ""
    looks.append(plan.topics[plan.looks[topic, plan.second[index]]].look)
    return (looks, "left") if draws(seed, "side", index).random() < 0.5 else (looks[::-1], "right")


def _write_frames(folder: pathlib.Path, row: dict, frames: Sequence[bytes]) -> None:
    for slot, frame in enumerate(frames):
        row["frames"].append(f"frames/{row['item_id']}_{slot}.jpg")
        (folder / row["frames"][-1]).write_bytes(frame)


def _write_sound(folder: pathlib.Path, row: dict, sound: bytes) -> None:
    row["audio"] = f"audio/{row['item_id']}.wav"
    (folder / row["audio"]).write_bytes(sound)


def check_missing_fields(fields: Sequence[str]) -> None:
    """Checks that the theme can still be told without these fields.

    Raises:
        SailError: a name is unknown, or no field is left that can tell the theme.
    """
    if unknown := [field for field in fields if field not in TEXT_FIELDS]:
        raise SailError(
            f"synthetic.missing_fields: there is no field {unknown[0]!r}; name some of {', '.join(TEXT_FIELDS)}."
        )
    if {"title", "asr", "tags"} <= set(fields):
        raise SailError("synthetic.missing_fields: without title, asr and tags nothing tells the theme. Leave one out.")


def _text(rng: np.random.Generator, theme: int, missing: Sequence[str]) -> dict:
    """Text fields: words of the theme among uninformative words, and occasionally one of another theme."""

    def words(of_theme: int, of_fillers: int) -> list[str]:
        chosen = [*rng.choice(THEMES[theme], of_theme, replace=False), *rng.choice(FILLERS, of_fillers, replace=False)]
        if rng.random() < 0.2:
            chosen.append(rng.choice(THEMES[rng.integers(len(THEMES))]))
        return [str(word) for word in rng.permutation(chosen)]

    title = " ".join(words(rng.integers(2, 4), rng.integers(2, 5))).capitalize()
    asr = " ".join(words(rng.integers(1, 3), rng.integers(6, 12)))
    ocr = " ".join([*words(0, rng.integers(1, 3)), str(rng.integers(1, 100))])
    fields = {
        "title": title if rng.random() < 0.9 else None,
        "asr": asr if rng.random() < 0.5 else None,
        "ocr": ocr if rng.random() < 0.3 else None,
        "nickname": "".join(rng.choice(_NAME_PARTS, 3)),
        "tags": words(int(rng.random() < 0.4), rng.integers(0, 3)),
    }
    fields |= {field: [] if field == "tags" else None for field in missing}
    # Without title and speech, the tags must carry the topic, or else the speech.
    if fields["title"] is None and fields["asr"] is None:
        fields |= {"asr": asr} if "tags" in missing else {"tags": words(2, 1)}
    return fields


def off_domain_pattern(place: int, config: SyntheticConfig) -> int:
    """The pattern of an item of an off-domain set; items of one pattern are related."""
    return place % max(1, min(_OFF_DOMAIN_PATTERNS, config.off_domain_items // 4))


def write_off_domain(folder: pathlib.Path, plan: ItemPlan, config: SyntheticConfig, seed: int) -> Iterator[dict]:
    """Yields the rows of the off-domain items: words of another language, striped pictures, rhythms."""
    index = len(plan.topic_of)
    for kind in OFF_DOMAIN if config.off_domain_items else ():
        for place in range(config.off_domain_items):
            pattern, rng = off_domain_pattern(place, config), draws(seed, kind, place)
            row = _empty(index, f"{kind}-{pattern:02d}")
            if kind == "off_text":
                row["title"] = " ".join(rng.choice(_foreign_words(pattern, seed), 5, replace=False)).capitalize()
            elif kind == "off_vision":
                _write_frames(folder, row, render_stripes(rng, pattern))
            else:
                _write_sound(folder, row, render_rhythm(rng, pattern))
            yield row
            index += 1


def _foreign_words(pattern: int, seed: int) -> list[str]:
    rng = draws(seed, "foreign words", pattern)
    return ["".join(rng.choice(_FOREIGN_PARTS, 3)) for _ in range(8)]


def truth(plan: ItemPlan, popularity: np.ndarray) -> Iterator[dict]:
    """Yields what is known of each item of the topics, for evaluation alone."""
    for index in range(len(plan.topic_of)):
        role = next((kind for kind, queries in plan.queries.items() if index in queries), "catalogue")
        topic, second, source = int(plan.topic_of[index]), int(plan.second[index]), int(plan.source[index])
        yield {
            "item_id": item_id(index),
            "role": role,
            **describe(plan.topics[topic]),
            "lacks": LACKS[plan.lacks[index]] or None,
            "other_look": None if second < 0 else describe(plan.topics[plan.looks[topic, second]])["look"],
            "repeats": None if source == index else item_id(source),
            "popularity": float(popularity[index]) if index < plan.catalogue else None,
        }
