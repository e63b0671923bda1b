"""The topics of a generated world, the words and motifs that express them, and seeds of its draws."""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Topic:
    """The facets of a topic: indices of its visual motif, sound motif and text theme."""

    name: str
    visual: int
    sound: int
    theme: int


def draws(seed: int, purpose: str, index: int = 0) -> np.random.Generator:
    """The random generator for one purpose, such as (seed, "items", 7)."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), index])


def draw_topics(count: int, seed: int) -> list[Topic]:
    """Draws distinct combinations of facets; each facet is used about equally often, at least thrice."""
    limits = (len(COLOURS) * len(SHAPES), len(TIMBRES) * len(CONTOURS), len(THEMES))
    sizes = [min(max(count // 3, 2), limit) for limit in limits]
    if count > np.prod(sizes):
        raise SailError(f"synthetic.items asks for {count} topics; there are {np.prod(sizes)} combinations. Lower it.")
    rng = draws(seed, "topics")
    combinations = rng.permutation(np.stack(np.meshgrid(*map(np.arange, sizes)), -1).reshape(-1, 3))
    # A small world uses few motifs, which are drawn too.
    motifs = [rng.permutation(limit) for limit in limits]
    used = [np.zeros(size) for size in sizes]
    topics = []
    for index in range(count):
        best = np.argmin(sum(used[facet][combinations[:, facet]] for facet in range(3)))
        for facet in range(3):
            used[facet][combinations[best, facet]] += 1
        facets = [int(motifs[facet][combinations[best, facet]]) for facet in range(3)]
        topics.append(Topic(f"topic-{index:03d}", *facets))
        combinations = np.delete(combinations, best, axis=0)
    return topics


def visual_words(motif: int) -> tuple[Sequence[str], Sequence[str]]:
    """The words for the colour and for the shape of a visual motif."""
    return COLOURS[motif % len(COLOURS)], SHAPES[motif // len(COLOURS)]


def sound_words(motif: int) -> tuple[Sequence[str], Sequence[str]]:
    """The words for the contour and for the timbre of a sound motif."""
    return CONTOURS[motif // len(TIMBRES)], TIMBRES[motif % len(TIMBRES)]


def describe(topic: Topic) -> dict[str, str]:
    """Describes a topic in words, for `topics.jsonl`."""
    visual, sound = visual_words(topic.visual), sound_words(topic.sound)
    return {
        "topic": topic.name,
        "visual": f"{visual[0][0]} {visual[1][0]}",
        "sound": f"{sound[0][0]} {sound[1][0]}",
        "theme": THEMES[topic.theme][0],
    }
