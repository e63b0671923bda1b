"""The plain two-tower baseline: learned vectors of items, trained in-batch without correction.

Axis letters: N items, B pairs of a batch, D width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sail_jax.objectives.info_nce import info_nce
from sail_jax.objectives.negative_masks import Negatives
from sail_jax.vectors.unit import normalize

_WIDTH, _BATCH, _PEAK, _TEMPERATURE = 64, 512, 1e-2, 0.05
_EPOCHS, _MOST_STEPS = 5, 3000


def train_two_tower(pairs: np.ndarray, items: int, seed: int) -> np.ndarray:
    """Trains the vectors of both towers and returns them as unit vectors, two of [N, D] float32.

    InfoNCE over the other pairs of a batch, at a fixed temperature, for five epochs, at most 3,000 steps.

    Args:
        pairs: [P, 2] int64, positions of the two items of each pair.
        items: N.
        seed: of the first vectors and of the draws.
    """
    batch = min(_BATCH, len(pairs))
    steps = min(_MOST_STEPS, max(1, _EPOCHS * len(pairs) // batch))
    rng = np.random.default_rng(seed)
    towers = jnp.asarray(rng.normal(size=(2, items, _WIDTH)) / np.sqrt(_WIDTH), jnp.float32)
    optimizer = optax.adam(optax.cosine_decay_schedule(_PEAK, steps))
    state = optimizer.init(towers)
    step = jax.jit(functools.partial(_step, optimizer), donate_argnums=(0, 1))
    for number in range(steps):
        rows = np.random.default_rng([seed, number]).integers(len(pairs), size=batch)
        # Which of the two is the query is drawn too: the pairs are symmetric.
        drawn = np.random.default_rng([seed, number, 1]).permuted(pairs[rows], axis=1)
        towers, state = step(towers, state, jnp.asarray(drawn, jnp.int32))
    return np.asarray(normalize(towers))


def _step(
    optimizer: optax.GradientTransformation, towers: jax.Array, state: optax.OptState, pairs: jax.Array
) -> tuple[jax.Array, optax.OptState]:
    query, target = pairs.T
    same = (target[:, None] == target) | (query[:, None] == target) | (query[:, None] == query)
    negatives = Negatives(~same, jnp.zeros((len(pairs), 0), bool))

    def loss(towers: jax.Array) -> jax.Array:
        temperature, valid = jnp.full(len(pairs), _TEMPERATURE), jnp.ones(len(pairs), bool)
        return info_nce(towers[0, query], towers[1, target], temperature, negatives, valid)[0]

    updates, state = optimizer.update(jax.grad(loss)(towers), state)
    return optax.apply_updates(towers, updates), state
