"""Masks of the items of a batch that serve as negatives, without false negatives.

Axis letters: B pairs, S sides (query, target, hard negatives), M = S - 2 hard negatives of a pair, R queries, C
candidates, W items that a user has seen.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, UInt32

from sail_jax.batch import Batch
from sail_jax.patterns import Pattern


class Negatives(NamedTuple):
    """The negatives of each query.

    Attributes:
        targets: whether target j is a negative of query i; its transpose masks the target-to-query direction.
        hard: whether hard negative m of pair j, at column j * M + m, is a negative of query i.
    """

    targets: Bool[Array, "B B"]
    hard: Bool[Array, "B B*M"]


def find_negatives(
    batch: Batch,
    pattern: Pattern,
    valid: Bool[Array, " B"],
    valid_hard: Bool[Array, "B M"],
    *,
    share_hard: bool = True,
) -> Negatives:
    """Returns the masks of negatives, without the false negatives that the batch reveals.

    A candidate is not a negative of a query if it is the query itself, the target of any pair of the batch with that
    query, or, where the query is a history, an item that its user has seen. Pairs that share a query or a target are
    covered by this. Two items are the same if their item keys agree, or, where both sides of a comparison show only
    text, if their text keys agree (for example shared tags). Items that are not valid are never negatives.

    Args:
        batch: provides `item_keys`, `text_keys` and `seen_keys`.
        pattern: the views of the two sides.
        valid: pairs that count.
        valid_hard: hard negatives that count.
        share_hard: whether hard negatives of a pair are also negatives of the other queries.
    """

    def same(left: int | slice, right: int | slice) -> jax.Array:
        """Returns whether the items of two sides are the same, [B, B] or [B, B * M]."""
        views = [pattern.query if side == 0 else pattern.target for side in (left, right)]
        equal = _equal_keys(batch.item_keys[:, left], batch.item_keys[:, right])
        if views == ["T", "T"]:
            equal |= _equal_keys(batch.text_keys[:, left], batch.text_keys[:, right])
        return equal

    hard, same_query, same_target = slice(2, None), same(0, 0), same(1, 1)
    targets = ~(same_query | same_target | same(0, 1) | _is_pair(same_query, same_target))
    if batch.seen_keys is not None:
        targets &= ~is_seen(batch.seen_keys, batch.item_keys[:, 1])
    targets &= valid[:, None] & valid[None, :] & ~jnp.eye(len(valid), dtype=bool)
    is_target = same(1, hard)
    others = ~(is_target | same(0, hard) | _is_pair(same_query, is_target)) & valid[:, None]
    others &= (valid_hard & valid[:, None]).reshape(-1)
    if not share_hard:
        others &= jnp.repeat(jnp.eye(len(valid), dtype=bool), valid_hard.shape[1], axis=1)
    return Negatives(targets, others)


def is_seen(seen: UInt32[Array, "R W 2"], keys: UInt32[Array, "C 2"]) -> Bool[Array, "R C"]:
    """Returns which candidates a user has seen, by their keys; loops over the W seen items to save memory."""

    def look(found: jax.Array, one: jax.Array) -> tuple[jax.Array, None]:
        return found | _equal_keys(one, keys), None

    nothing = jnp.zeros((len(seen), len(keys)), bool)
    return jax.lax.scan(look, nothing, jnp.moveaxis(seen, 1, 0))[0]


def _is_pair(same_query: jax.Array, is_target: jax.Array) -> jax.Array:
    """Returns whether any pair of the batch has both the query and the candidate as its target.

    Args:
        same_query: [B, B] bool, whether two pairs have the same query.
        is_target: [B, C] bool, whether the target of a pair is a candidate.

    Returns:
        [B, C] bool.
    """
    # Counts of pairs; float32 represents those of a batch exactly.
    return jnp.matmul(same_query.astype(jnp.float32), is_target.astype(jnp.float32)) > 0


def _equal_keys(left: jax.Array, right: jax.Array) -> jax.Array:
    """Compares all keys with all keys, stored as halves: [B, 2], [B, 2] or [B, M, 2] -> [B, B] or [B, B * M]."""
    return (left[:, None, :] == right.reshape(1, -1, 2)).all(axis=-1)
