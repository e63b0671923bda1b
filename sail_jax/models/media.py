"""What the models share: frames and clips on their flat axes come to their items, and which views an item fills.

Axes: B pairs, S sides, I = B * S items, F frames on a flat axis, C clips on a flat axis, P patches, N tokens, D width,
V views, G groups of pairs (data-parallel shards), M frame slots of an item, K chunks of a group.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sail_jax.batch import Batch, TokenType
from sail_jax.patterns import MODALITIES, OMNI

TYPES = {"V": TokenType.VISION, "T": TokenType.TEXT, "A": TokenType.AUDIO}


def filled(has: jax.Array, views: Sequence[str]) -> jax.Array:
    """Whether an item has what a view asks for: all of its modalities, or any for `OMNI`.

    Args:
        has: [..., V, 3] bool, whether the item of each row has vision, text, sound.
        views: the V views.

    Returns:
        [..., V] bool.
    """
    wanted = jnp.array([[letter in view for letter in MODALITIES] for view in views]).reshape(len(views), 3)
    omni = jnp.array([view == OMNI for view in views], bool)
    return jnp.where(omni, has.any(-1), (has | ~wanted).all(-1))


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the valid positions: [..., N, D], [..., N] bool -> [..., D]; zeros where nothing is valid."""
    weights = mask[..., None].astype(values.dtype)
    return (values * weights).sum(-2) / jnp.maximum(weights.sum(-2), 1)


def frames_of_items(frame_item: jax.Array, frame_slot: jax.Array, *, items: int, slots: int, groups: int) -> jax.Array:
    """Which frame stands in which slot of an item.

    Args:
        frame_item: [F] int32 index of the item within the group, -1 at padding.
        frame_slot: [F] int32 slot within the item.
        items: I.
        slots: M, slots per item.
        groups: G.

    Returns:
        [G, I / G, M] int32 index of the frame within the block of its group; F / G in empty slots.
    """
    per_group, block = items // groups * slots, len(frame_item) // groups

    def one_group(item: jax.Array, slot: jax.Array) -> jax.Array:
        place = jnp.where(item >= 0, item * slots + slot, per_group)
        return jnp.full(per_group, block, jnp.int32).at[place].set(jnp.arange(block, dtype=jnp.int32), mode="drop")

    of_groups = jax.vmap(one_group)(frame_item.reshape(groups, block), frame_slot.reshape(groups, block))
    return of_groups.reshape(groups, items // groups, slots)


def mean_per_item(
    vectors: jax.Array, vector_item: jax.Array, *, items: int, groups: int
) -> tuple[jax.Array, jax.Array]:
    """Mean of the vectors of each item: [C, K], [C] index within the group or -1 -> ([I, K], [I] bool any)."""
    per_group, block = items // groups, vectors.shape[0] // groups

    def one_group(block_vectors: jax.Array, item: jax.Array) -> tuple[jax.Array, jax.Array]:
        place = jnp.where(item >= 0, item, per_group)
        total = jax.ops.segment_sum(block_vectors.astype(jnp.float32), place, per_group + 1)[:-1]
        count = jax.ops.segment_sum(jnp.ones(block), place, per_group + 1)[:-1]
        return total / jnp.maximum(count, 1)[:, None], count > 0

    mean, heard = jax.vmap(one_group)(vectors.reshape(groups, block, -1), vector_item.reshape(groups, block))
    return mean.reshape(items, -1), heard.reshape(items)


class Media(NamedTuple):
    """The arrays of a batch that the towers of vision and sound read; see `batch.Batch`.

    Attributes:
        frames: [F, H, W, 3] uint8.
        frame_item: [F] int32.
        frame_slot: [F] int32.
        clips: [C, samples] int16.
        clip_item: [C] int32.
        audio_vectors: [I, K] float32.
        has_audio_vector: [I] bool.
    """

    frames: jax.Array
    frame_item: jax.Array
    frame_slot: jax.Array
    clips: jax.Array
    clip_item: jax.Array
    audio_vectors: jax.Array
    has_audio_vector: jax.Array

    @classmethod
    def of(cls, batch: Batch) -> "Media":
        """The media of a batch."""

        def of_items(of_sides: jax.Array) -> jax.Array:
            return of_sides.reshape(-1, *of_sides.shape[2:])

        return cls(
            batch.frames,
            batch.frame_item,
            batch.frame_slot,
            batch.clips,
            batch.clip_item,
            of_items(batch.audio_vectors),
            of_items(batch.has_audio_vector),
        )


def sound_vectors(
    tower: Callable[[jax.Array], tuple[jax.Array, Any]], media: Media, *, groups: int
) -> tuple[jax.Array, jax.Array]:
    """The sound of the items: the mean of what an audio tower makes of their clips, or the precomputed vector.

    Args:
        tower: clips [C, samples] -> ([C, K], anything); it is not run where there are no clips.
        media: of the items.
        groups: G.

    Returns:
        [I, K] and [I] bool, whether the item has sound.
    """
    vector, given = media.audio_vectors, media.has_audio_vector
    if media.clips.shape[0] == 0:
        return vector, given
    mean, heard = mean_per_item(tower(media.clips)[0], media.clip_item, items=len(given), groups=groups)
    return jnp.where(given[:, None], vector, mean), given | heard


def chunks_of(media: Media, groups: int, chunks: int) -> Media:
    """Brings the chunks of each group to a leading axis: [G * K * n, ...] -> [K, G * n, ...] for K chunks."""

    def split(x: jax.Array) -> jax.Array:
        by_chunk = jnp.moveaxis(x.reshape(groups, chunks, -1, *x.shape[1:]), 1, 0)
        return by_chunk.reshape(chunks, -1, *x.shape[1:])

    return jax.tree.map(split, media)


def joined_chunks(of_chunks: jax.Array, groups: int) -> jax.Array:
    """The way back, [K, G * n, ...] -> [G * K * n, ...]."""
    chunks, width = of_chunks.shape[0], of_chunks.shape[2:]
    by_group = jnp.moveaxis(of_chunks.reshape(chunks, groups, -1, *width), 0, 1)
    return by_group.reshape(-1, *width)
