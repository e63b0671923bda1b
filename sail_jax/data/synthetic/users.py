"""Generates users whose interests cannot be read off content, with their impressions and reactions.

A community is a hidden taste: topics that share no theme, look or sound, and one style. The style of an item does not
show in its frames, words or sounds. So items of two topics that one community consumes are related by behaviour only,
and of two items with similar content one may be consumed and the other ignored. Single-peak users have one community;
multi-peak users have two to four and change between them from session to session.

Axis letters: N items, E events.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sail_jax.config.data import SyntheticConfig
from sail_jax.data.synthetic.topics import Topic, draws, facets_of

START = 1_700_000_000
PERIOD = 42 * 86_400
FLAGS = ("like", "finish", "share", "comment", "follow")
TOPICS_PER_COMMUNITY = 12
SINGLE_PEAK = 0.5
MOST_PEAKS = 4
EVENTS_PER_SESSION = 10
# Probability that a session stays in the community of the session before.
STAY = 0.7
# Each session of a user starts in its own slot of this many seconds.
_SLOT = 3 * 3600
# Share of impressions drawn by popularity alone, as exploration.
EXPLORED = 0.35
# Weight of an item in a community by fit level: neither, topic only, topic and style.
APPEAL = np.array([0.0, 0.15, 1.0])
_PUBLISHED_BEFORE = 0.7
_STREAMS = 0.02

# Probabilities of reactions by fit level. Some events have many reactions at once.
_TAKEN = np.array([0.004, 0.04, 0.30])
_WATCHED = np.array([0.20, 0.50, 0.70])
_TAKEN_WATCHED = 0.97
_SPREAD = 3.0
_FINISHED = 0.9
_RATES = {
    "like": np.array([0.01, 0.04, 0.12]),
    "share": np.array([0.002, 0.008, 0.03]),
    "comment": np.array([0.003, 0.01, 0.03]),
    "follow": np.array([0.001, 0.003, 0.01]),
}
_TAKEN_RATES = {"like": 0.9, "share": 0.6, "comment": 0.5, "follow": 0.35}


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """The items with the properties that determine users' behaviour.

    Attributes:
        topics: the topics.
        ids: [N] item ids.
        topic_of: [N] index of the topic.
        style_of: [N] index of the hidden style.
        popularity: [N], sums to one; Zipf.
        published: [N] int64 seconds.
        streams: [N] bool, the live streams.
    """

    topics: Sequence[Topic]
    ids: np.ndarray
    topic_of: np.ndarray
    style_of: np.ndarray
    popularity: np.ndarray
    published: np.ndarray
    streams: np.ndarray


class Community(NamedTuple):
    """A hidden taste: indices of its topics, and its style."""

    topics: tuple[int, ...]
    style: int


class User(NamedTuple):
    """A user: id, and indices of the communities."""

    user_id: str
    communities: tuple[int, ...]


class Events(NamedTuple):
    """Impressions and reactions of users.

    Attributes are arrays of length E: indices of users and of items, int64 seconds, float32 share watched, and
    [E, 5] bool `FLAGS`.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    watch_share: np.ndarray
    flags: np.ndarray


def make_catalogue(
    topics: Sequence[Topic], topic_of: np.ndarray, ids: np.ndarray, config: SyntheticConfig, seed: int
) -> Catalogue:
    """Draws style, popularity and time of publication of the items, and which are live streams."""
    rng, count = draws(seed, "catalogue"), len(ids)
    popularity = zipf(count, config.zipf, rng)
    early = rng.random(count) < _PUBLISHED_BEFORE
    published = START + np.where(early, -1, 1) * rng.random(count) * PERIOD
    streams = np.zeros(count, bool)
    streams[rng.permutation(count)[: max(2, round(_STREAMS * count))]] = True
    return Catalogue(
        topics=topics,
        ids=ids,
        topic_of=topic_of,
        style_of=rng.integers(config.styles, size=count),
        popularity=popularity,
        published=published.astype(np.int64),
        streams=streams,
    )


def zipf(count: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """[N] popularity by Zipf's law, in random order; it sums to one."""
    weights = 1 / (1 + rng.permutation(count)) ** exponent
    return weights / weights.sum()


def draw_communities(topics: Sequence[Topic], config: SyntheticConfig, seed: int) -> list[Community]:
    """Draws communities, each of topics that share no theme, look or sound."""
    facets = facets_of(topics)
    communities = []
    for index in range(config.communities):
        chosen: list[int] = []
        for topic in draws(seed, "communities", index).permutation(len(topics)).tolist():
            if len(chosen) < TOPICS_PER_COMMUNITY and not (facets[topic] == facets[chosen]).any():
                chosen.append(topic)
        communities.append(Community(tuple(sorted(chosen)), index % config.styles))
    return communities


def draw_users(communities: Sequence[Community], config: SyntheticConfig, seed: int) -> list[User]:
    """Draws users, about half of them with one community."""
    users = []
    for index in range(config.log_users):
        rng = draws(seed, "log users", index)
        peaks = 1 if rng.random() < SINGLE_PEAK else rng.integers(2, MOST_PEAKS + 1)
        chosen = rng.choice(len(communities), min(peaks, len(communities)), replace=False)
        users.append(User(f"u{index:06d}", tuple(sorted(chosen.tolist()))))
    return users


def fit(community: Community, catalogue: Catalogue) -> np.ndarray:
    """[N] the fit level of items for a community: 0 neither, 1 topic only, 2 topic and style."""
    topic = np.isin(catalogue.topic_of, community.topics)
    return topic.astype(np.int64) + (topic & (catalogue.style_of == community.style))


def show_probability(fits: np.ndarray, catalogue: Catalogue) -> np.ndarray:
    """[N] probability that a recommender shows each item to a member of a community.

    It depends on fit and popularity, with a share of exploration.
    """
    wanted = APPEAL[fits] * catalogue.popularity
    wanted = wanted / wanted.sum() if wanted.any() else catalogue.popularity
    return EXPLORED * catalogue.popularity + (1 - EXPLORED) * wanted


def draw_events(
    users: Sequence[User], communities: Sequence[Community], catalogue: Catalogue, config: SyntheticConfig, seed: int
) -> Events:
    """Draws all events, sorted by time; a user sees an item at most once, after its publication."""
    fits = [fit(community, catalogue) for community in communities]
    odds = [show_probability(each, catalogue) for each in fits]
    parts = []
    for index, user in enumerate(users):
        rng = draws(seed, "log events", index)
        times, tastes = _sessions(user, rng, config)
        # Users of a community prefer different topics of it.
        liking = 0.2 + rng.exponential(size=len(catalogue.topics))
        items = _impressions(tastes, [odds[taste] * liking[catalogue.topic_of] for taste in user.communities], rng)
        order = items >= 0
        order &= times >= catalogue.published[items]
        items, times, tastes = items[order], times[order], tastes[order]
        levels = np.stack([fits[taste] for taste in user.communities])[tastes, items]
        watch_share, flags = _reactions(levels, rng)
        parts.append(Events(np.full(len(items), index), items, times, watch_share, flags))
    events = Events(*map(np.concatenate, zip(*parts, strict=True)))
    order = np.lexsort((events.user, events.time))
    return Events(*(column[order] for column in events))


def _sessions(user: User, rng: np.random.Generator, config: SyntheticConfig) -> tuple[np.ndarray, np.ndarray]:
    """([E] sorted times, [E] indices into user.communities) of a user's impressions."""
    count = max(EVENTS_PER_SESSION, round(config.log_events_per_user * rng.gamma(2.0, 0.5)))
    slots = PERIOD // _SLOT
    sessions = min(-(-count // EVENTS_PER_SESSION), slots)
    starts = START + _SLOT * np.sort(rng.choice(slots, sessions, replace=False)) + rng.integers(0, _SLOT // 2, sessions)
    tastes = np.zeros(sessions, np.int64)
    for session in range(sessions):
        stays = session > 0 and rng.random() < STAY
        tastes[session] = tastes[session - 1] if stays else rng.integers(len(user.communities))
    of_event = np.minimum(np.arange(count) // EVENTS_PER_SESSION, sessions - 1)
    gaps = rng.integers(5, 90, count)
    elapsed = np.cumsum(gaps)
    first = np.searchsorted(of_event, of_event)
    return starts[of_event] + elapsed - elapsed[first], tastes[of_event]


def _impressions(tastes: np.ndarray, odds: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """[E] the items shown, without repetition; -1 once no item is left."""
    items = np.full(len(tastes), -1)
    seen = np.zeros(len(odds[0]), bool)
    for taste, weights in enumerate(odds):
        places = np.flatnonzero(tastes == taste)
        # The smallest of exponential draws with these rates are a weighted sample without replacement.
        keys = np.where(seen, np.inf, rng.exponential(size=len(weights)) / weights)
        chosen = np.argsort(keys)[: min(len(places), int((~seen).sum()))]
        seen[chosen] = True
        items[rng.permutation(places)[: len(chosen)]] = chosen
    return items


def _reactions(levels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """([E] float32 share watched, [E, 5] flags) by the fit level of each item."""
    taken = rng.random(len(levels)) < _TAKEN[levels]
    mean = np.where(taken, _TAKEN_WATCHED, _WATCHED[levels])
    watched = rng.beta(_SPREAD * mean, _SPREAD * (1 - mean)).astype(np.float32)
    did = {"finish": watched >= _FINISHED}
    for name, rates in _RATES.items():
        did[name] = rng.random(len(levels)) < np.where(taken, _TAKEN_RATES[name], rates[levels])
    return watched, np.stack([did[name] for name in FLAGS], 1)
