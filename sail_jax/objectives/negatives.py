"""Which pairs of a batch may serve as each other's negatives.

Axes: B pairs, S = 2 sides (query, target).
"""

import jax
import jax.numpy as jnp


def negative_mask(item_keys: jax.Array, valid: jax.Array) -> jax.Array:
    """True where target j is a negative of query i.

    Left out, besides i == j: a target that is the same content as the positive (two pairs share a target), a target that
    belongs to the same query (two pairs share a query), a target that is the query itself, and invalid items.

    Args:
        item_keys: [B, 2, 2] uint32, the halves of the content keys of query and target.
        valid: [B, 2] bool.

    Returns:
        [B, B] bool. The transposed matrix is the mask of the target-to-query direction.
    """
    query, target = item_keys[:, 0], item_keys[:, 1]
    related = _same(query, query) | _same(target, target) | _same(query, target)
    usable = valid.all(axis=-1)
    return ~related & ~jnp.eye(len(valid), dtype=bool) & usable[:, None] & usable[None, :]


def _same(left: jax.Array, right: jax.Array) -> jax.Array:
    return (left[:, None, :] == right[None, :, :]).all(axis=-1)
