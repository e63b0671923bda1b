"""Which items of a batch may serve as each other's negatives.

Axis letters: B pairs, S sides (query, target, hard negatives), M = S - 2 hard negatives of a pair, R queries and C
candidates, W items that a user has seen.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, UInt32

from sail_jax.batch import Batch
from sail_jax.patterns import Pattern


class Negatives(NamedTuple):
    """What each query is compared with.

    Attributes:
        targets: whether target j is a negative of query i; the transposed matrix is the mask of the
            target-to-query direction.
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
    """Masks that leave out false negatives, as far as the batch shows them.

    Nothing is a negative of a query that is the query itself, or the target of any pair of the batch with that query, or, where the
    query is a history, what its user has seen; the pairs of one target are such a case, and so are those of one query. The same content is the same item, or, where both sides of a comparison show text
    alone, the same text (think of shared tags). What is not valid is nobody's negative.

    Args:
        batch: its `item_keys`, `text_keys` and `seen_keys`.
        pattern: the views of the two sides.
        valid: pairs that count.
        valid_hard: hard negatives that count.
        share_hard: whether hard negatives of a pair are negatives of the other queries too.
    """

    def same(left: int | slice, right: int | slice) -> jax.Array:
        """[B, B] or [B, B * M]: whether the items of two sides are the same content."""
        views = [pattern.query if side == 0 else pattern.target for side in (left, right)]
        equal = _equal(batch.item_keys[:, left], batch.item_keys[:, right])
        if views == ["T", "T"]:
            equal |= _equal(batch.text_keys[:, left], batch.text_keys[:, right])
        return equal

    hard, same_query, same_target = slice(2, None), same(0, 0), same(1, 1)
    targets = ~(same_query | same_target | same(0, 1) | _paired(same_query, same_target))
    if batch.seen_keys is not None:
        targets &= ~is_seen(batch.seen_keys, batch.item_keys[:, 1])
    targets &= valid[:, None] & valid[None, :] & ~jnp.eye(len(valid), dtype=bool)
    is_target = same(1, hard)
    others = ~(is_target | same(0, hard) | _paired(same_query, is_target)) & valid[:, None]
    others &= (valid_hard & valid[:, None]).reshape(-1)
    if not share_hard:
        others &= jnp.repeat(jnp.eye(len(valid), dtype=bool), valid_hard.shape[1], axis=1)
    return Negatives(targets, others)


def is_seen(seen: UInt32[Array, "R W 2"], keys: UInt32[Array, "C 2"]) -> Bool[Array, "R C"]:
    """Which candidates a user has seen, by their keys; one of the W at a time."""

    def look(found: jax.Array, one: jax.Array) -> tuple[jax.Array, None]:
        return found | _equal(one, keys), None

    nothing = jnp.zeros((len(seen), len(keys)), bool)
    return jax.lax.scan(look, nothing, jnp.moveaxis(seen, 1, 0))[0]


def _paired(same_query: jax.Array, is_target: jax.Array) -> jax.Array:
    """Whether some pair of the batch joins a query with a candidate.

    Args:
        same_query: [B, B] bool, whether two pairs have the same query.
        is_target: [B, C] bool, whether the target of a pair is a candidate.

    Returns:
        [B, C] bool.
    """
    # Counts of pairs; those of a batch are exact in float32.
    return jnp.matmul(same_query.astype(jnp.float32), is_target.astype(jnp.float32)) > 0


def _equal(left: jax.Array, right: jax.Array) -> jax.Array:
    """[B, 2] and [B, 2] or [B, M, 2] halves of keys -> [B, B] or [B, B * M]."""
    return (left[:, None, :] == right.reshape(1, -1, 2)).all(axis=-1)
