"""Masks of negatives, computed from keys block by block, without a matrix of the whole batch.

Axis letters: B pairs of the global batch, M hard negatives of a pair, R rows and C columns of a block, K keys of an
item (1 or 2), L lists of targets.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, UInt32

from sail_jax.objectives.contrast import Contrast
from sail_jax.objectives.negative_masks import is_seen
from sail_jax.objectives.ring import Rows


def mask_inputs(given: Contrast) -> tuple[Rows, Rows, Rows, UInt32[Array, "L B K 2"]]:
    """Returns the arrays from which `is_negative` computes the masks of `negative_masks.find_negatives`.

    A candidate is not a negative of a query if it has the same content, if it is the target of any pair of the batch
    with that query, or, where the query is a history, if its user has seen it. Pairs that share a query or a target are
    covered by this.

    Returns:
        rows: arrays of the queries.
        columns: arrays of the targets.
        hard: arrays of the hard negatives.
        known: keys of the targets of all pairs, sorted by query: one list by the item of the query, and one by its text
            where that counts.
    """
    batch, pattern = given.batch, given.pattern

    def keys(side: int | slice, by_text: bool) -> jax.Array:
        """Returns the keys of the contents of a side, [n, 1 or 2, 2]: of the item, and of the text if `by_text`."""
        both = [batch.item_keys[:, side], batch.text_keys[:, side]] if by_text else [batch.item_keys[:, side]]
        return jnp.stack([part.reshape(-1, 2) for part in both], axis=1)

    texts, across, hard_side = pattern.target == "T", pattern.query == pattern.target == "T", slice(2, None)
    target = keys(1, texts)
    queries = jnp.moveaxis(keys(0, pattern.query == "T"), 1, 0)
    start, count, known = jax.vmap(_targets_by_query, in_axes=(0, None))(queries, target)
    count = jnp.where(given.valid, count, 0)  # skips the look-up for invalid queries, such as padding
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
        start, count: [B] int32; the targets of pair i's query are known[start[i] : start[i] + count[i]].
        known: [B, k, 2] uint32 keys of targets, sorted by query.
    """
    place = jnp.arange(len(query), dtype=jnp.int32)
    high, low, order = jax.lax.sort((*query.T, place), num_keys=3)
    begins = jnp.append(True, (high[1:] != high[:-1]) | (low[1:] != low[:-1]))
    start = jax.lax.cummax(jnp.where(begins, place, 0))
    # A run of equal queries ends where the next one begins.
    following = jnp.append(jnp.where(begins, place, len(query))[1:], len(query))
    count = jax.lax.cummin(following, reverse=True) - start
    known = target[order]
    _, start, count = jax.lax.sort((order, start, count), num_keys=1)
    return start, count, known


def is_negative(rows: Rows, columns: Rows, known: UInt32[Array, "L B K 2"]) -> Bool[Array, "R C"]:
    """Returns which columns are negatives of which rows.

    Args:
        rows: arrays of queries, from `mask_inputs`.
        columns: arrays of candidates, [1, C, ...] for all rows or [R, C, ...] for each row.
        known: lists of targets, from `mask_inputs`.
    """
    found = _same(rows["content"][:, None], columns["content"])
    for targets, start, count in zip(known, rows["start"].T, rows["count"].T, strict=True):
        found |= _is_listed(targets, start, count, columns["key"])
    if "seen" in rows:
        found |= is_seen(rows["seen"], columns["key"][0, :, 0])
    return ~found & columns["exists"] & rows["valid"][:, None]


def _is_listed(targets: jax.Array, start: jax.Array, count: jax.Array, keys: jax.Array) -> jax.Array:
    """Returns whether a candidate is among the targets of a row's query, [R, C] bool."""

    def look(step: jax.Array, found: jax.Array) -> jax.Array:
        key = targets[jnp.minimum(start + step, len(targets) - 1)]
        return found | (_same(key[:, None], keys) & (step < count)[:, None])

    # The number of rounds is the largest number of targets of one query; usually one.
    nothing = jnp.zeros((len(start), keys.shape[1]), bool)
    return jax.lax.fori_loop(0, count.max(), look, nothing)


def _same(left: jax.Array, right: jax.Array) -> jax.Array:
    """Returns whether any of the k keys of two contents agree, [..., k, 2] -> [...]."""
    return (left == right).all(-1).any(-1)
