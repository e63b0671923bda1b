"""The topics of a generated world, the words that express them, and the seeds of its draws.

A topic is a theme (of the text), a look (of the frames) and a sound. Topics come in blocks of four themes, four looks
and four sounds: each pair of theme and look has three of the four sounds. So one sense leaves twelve topics of a block,
any two senses leave three, and all three name the topic. Each sense tells equally much, and something of its own.

Axis letters: T topics.
"""

import dataclasses
import itertools
import zlib
from collections.abc import Sequence

import numpy as np

from sail_jax.data.synthetic.media import COLOURS, CONTOURS, SHAPES, TIMBRES
from sail_jax.errors import SailError


def _vocabulary(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(line.split()) for line in text.strip().splitlines())


# One theme per line; its first word names it.
THEMES = _vocabulary(
    """
    baking bread oven flour dough yeast crust sourdough
    garden soil seeds compost tomato pruning bloom greenhouse
    football goal striker penalty keeper league dribble stadium
    sewing fabric needle thread stitch hem pattern embroidery
    astronomy telescope planet comet nebula orbit galaxy eclipse
    fishing lake rod bait trout reel angler catch
    chess opening rook gambit checkmate pawn bishop endgame
    camping tent trail campfire backpack summit ridge hammock
    makeup lipstick blush eyeliner mascara palette foundation contour
    woodwork plank chisel joint sanding lathe varnish cabinet
    yoga pose breath stretch mat balance flexible meditation
    cycling gear pedal saddle sprint climb peloton brakes
    coffee espresso latte roast grinder crema barista brew
    puppy kitten leash vet paws grooming litter treats
    coding compiler debug python function terminal deploy refactor
    history empire castle treaty dynasty knight archive ruins
    surfing wave reef board tide swell wetsuit beach
    finance budget savings stock dividend mortgage index pension
    magic trick card vanish illusion sleeve coin audience
    train railway locomotive carriage platform signal timetable tunnel
    painting canvas brush acrylic easel sketch gouache portrait
    physics gravity quantum magnet laser particle voltage friction
    wedding bride bouquet vows reception gown ceremony ring
    sushi ramen wasabi tempura noodle soy chopsticks miso
    """
)
# Words that carry no information about the topic.
FILLERS = sum(
    _vocabulary(
        """
        today best amazing watch simple quick new ever part really minute story easy daily must people moment little big
        week first secret happy favourite try share wait real life home tips guide challenge random review fun morning
        night weekend together again finally never always everyone friends start finish live special vlog update studio
        short extra final behind scenes reaction honest full super mini ultimate classic fresh perfect weird crazy wow
        look here now
        """
    ),
    (),
)


FACETS = ("theme", "look", "sound")
_SIDE = 4  # values of each facet in a block
_GROUPS = 6  # groups of so many values: there are 24 of each facet


def _cells() -> list[tuple[int, int, int]]:
    """The topics of a block, (theme, look, sound) below 4: whole cubes of side 2 first, for worlds that are smaller."""
    cells = [cell for cell in itertools.product(range(_SIDE), repeat=3) if cell[2] != cell[0] ^ cell[1] ^ 2]

    def beyond_cubes(cell: tuple[int, int, int]) -> bool:
        return cell[0] // 2 ^ cell[1] // 2 != cell[2] // 2

    return sorted(cells, key=lambda cell: (beyond_cubes(cell), cell[0] // 2, cell[1] // 2, cell))


_CELLS = _cells()
# Which groups of looks and of sounds a block joins with its group of themes; by the first six, no two blocks share a
# pair of theme and look.
_OFFSETS = sorted(itertools.product(range(_GROUPS), repeat=2), key=lambda offset: offset[1] != 2 * offset[0] % _GROUPS)


@dataclasses.dataclass(frozen=True)
class Topic:
    """The facets of a topic: indices of the theme of its text, of its look and of its sound."""

    name: str
    theme: int
    look: int
    sound: int


def draws(seed: int, purpose: str, index: int = 0) -> np.random.Generator:
    """The random generator for one purpose, such as (seed, "items", 7)."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), index])


def draw_topics(count: int, seed: int) -> list[Topic]:
    """Draws distinct topics, block by block; red circles are a look of the first block.

    Raises:
        SailError: there are not so many topics.
    """
    limit = len(_CELLS) * _GROUPS**3
    if count > limit:
        raise SailError(
            f"synthetic: {count:,} topics are asked for, and there are {limit:,}. Raise synthetic.items_per_topic."
        )
    rng = draws(seed, "topics")
    values = np.stack([rng.permutation(_SIDE * _GROUPS) for _ in FACETS])
    first = int(np.flatnonzero(values[1] == 0)[0])
    values[1, [0, first]] = values[1, [first, 0]]
    topics = []
    for index in range(count):
        block, cell = divmod(index, len(_CELLS))
        groups = block + np.array([0, *_OFFSETS[block // _GROUPS]])
        facets = values[np.arange(3), groups % _GROUPS * _SIDE + _CELLS[cell]]
        topics.append(Topic(f"topic-{index:03d}", *facets.tolist()))
    return topics


def facets_of(topics: Sequence[Topic]) -> np.ndarray:
    """The facets of topics as [T, 3] int, in the order of `FACETS`."""
    return np.array([[getattr(topic, facet) for facet in FACETS] for topic in topics])


def look_words(look: int) -> tuple[Sequence[str], Sequence[str]]:
    """The words for the colour and for the shape of a look."""
    return COLOURS[look % len(COLOURS)], SHAPES[look // len(COLOURS)]


def sound_words(sound: int) -> tuple[Sequence[str], Sequence[str]]:
    """The words for the contour and for the timbre of a sound."""
    return CONTOURS[sound // len(TIMBRES)], TIMBRES[sound % len(TIMBRES)]


def describe(topic: Topic) -> dict[str, str]:
    """Describes a topic in words, for the files that hold the truth."""
    look, sound = look_words(topic.look), sound_words(topic.sound)
    return {
        "topic": topic.name,
        "theme": THEMES[topic.theme][0],
        "look": f"{look[0][0]} {look[1][0]}",
        "sound": f"{sound[0][0]} {sound[1][0]}",
    }
