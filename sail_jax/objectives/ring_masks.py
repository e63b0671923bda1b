"""Which candidates are negatives of which queries, told block by block from keys, without the matrices of a whole batch.

Axis letters: B pairs of the global batch, M hard negatives of a pair, R and C rows and columns of a block, K keys of a
content (1 or 2), L lists of targets.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, UInt32

from sail_jax.objectives.contrast import Contrast
from sail_jax.objectives.negative_masks import is_seen
from sail_jax.objectives.ring import Rows


def describe(given: Contrast) -> tuple[Rows, Rows, Rows, UInt32[Array, "L B K 2"]]:
    """What the masks are made of, as `objectives.negative_masks.find_negatives` defines them: for queries, targets, hard
    negatives, and the targets that are known of queries.

    A candidate is no negative of a query that has the same content, nor of a history whose user has seen it, nor of a query that has it as a
    target in any pair of the batch: as
    the pair of that query and target is one of them, this covers pairs that share a query or a target too.
    """
    batch, pattern = given.batch, given.pattern

    def keys(side: int | slice, by_text: bool) -> jax.Array:
        """What makes two contents of a side the same, any of them: [n, 1 or 2, 2], the item, and the text where it counts."""
        both = [batch.item_keys[:, side], batch.text_keys[:, side]] if by_text else [batch.item_keys[:, side]]
        return jnp.stack([part.reshape(-1, 2) for part in both], axis=1)

    texts, across, hard_side = pattern.target == "T", pattern.query == pattern.target == "T", slice(2, None)
    target = keys(1, texts)
    queries = jnp.moveaxis(keys(0, pattern.query == "T"), 1, 0)
    start, count, known = jax.vmap(_targets_by_query, in_axes=(0, None))(queries, target)
    count = jnp.where(given.valid, count, 0)  # a query that does not count, such as a blank, has nothing to look up
    rows = {"content": keys(0, across), "valid": given.valid, "start": start.T, "count": count.T}
    if batch.seen_keys is not None:
        rows["seen"] = batch.seen_keys
    columns = {"content": keys(1, across), "key": target, "exists": given.valid}
    exists = (given.valid_hard & given.valid[:, None]).reshape(-1)
    hard = {"content": keys(hard_side, across), "key": keys(hard_side, texts), "exists": exists}
    return rows, columns, hard, known


def _targets_by_query(query: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Lists the targets of each query.

    Args:
        query: [B, 2] uint32 keys.
        target: [B, k, 2] uint32 keys, k of each target.

    Returns:
        start, count: [B] int32; the targets of pair i's query stand at start[i] and the count[i] - 1 places after it.
        known: [B, k, 2] uint32 keys of targets, sorted by query.
    """
    place = jnp.arange(len(query), dtype=jnp.int32)
    high, low, order = jax.lax.sort((*query.T, place), num_keys=3)
    begins = jnp.append(True, (high[1:] != high[:-1]) | (low[1:] != low[:-1]))
    start = jax.lax.cummax(jnp.where(begins, place, 0))
    # The first place after a run is the next one that begins another.
    following = jnp.append(jnp.where(begins, place, len(query))[1:], len(query))
    count = jax.lax.cummin(following, reverse=True) - start
    known = target[order]
    _, start, count = jax.lax.sort((order, start, count), num_keys=1)
    return start, count, known


def is_negative(rows: Rows, columns: Rows, known: UInt32[Array, "L B K 2"]) -> Bool[Array, "R C"]:
    """Which columns are negatives of which rows.

    Columns stand on an axis of their own, [1, C, ...], or belong to their row, [R, C, ...]. `known` are lists of
    targets: by the item of the query, and by its text where that counts.
    """
    found = _same(rows["content"][:, None], columns["content"])
    for targets, start, count in zip(known, rows["start"].T, rows["count"].T, strict=True):
        found |= _is_listed(targets, start, count, columns["key"])
    if "seen" in rows:
        found |= is_seen(rows["seen"], columns["key"][0, :, 0])
    return ~found & columns["exists"] & rows["valid"][:, None]


def _is_listed(targets: jax.Array, start: jax.Array, count: jax.Array, keys: jax.Array) -> jax.Array:
    """[R, C] bool, whether a candidate is among the targets of a row's query."""

    def look(step: jax.Array, found: jax.Array) -> jax.Array:
        key = targets[jnp.minimum(start + step, len(targets) - 1)]
        return found | (_same(key[:, None], keys) & (step < count)[:, None])

    # As many rounds as the query of a row that has most targets in the batch; one, as a rule.
    nothing = jnp.zeros((len(start), keys.shape[1]), bool)
    return jax.lax.fori_loop(0, count.max(), look, nothing)


def _same(left: jax.Array, right: jax.Array) -> jax.Array:
    """[..., k, 2] keys of two contents -> [...]: whether any of the k agree."""
    return (left == right).all(-1).any(-1)
