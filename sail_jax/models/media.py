"""Functions that the models share: assigning frames and clips to items, pooling, and filled views.

Axis letters: B pairs, S sides, K = S - 1 of them targets, I = B * S items, F frames on a flat axis, C clips on a flat
axis, P patches, N tokens, D width, V views, G groups of pairs (data-parallel shards), J = I / G items of a group, M
frame slots of an item, E width of sound, X chunks of a group, Gn rows of a chunk in all groups, H and W height and
width of a frame in pixels.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int16, Int32, Shaped, UInt8

from sail_jax.batch import Batch, TokenType
from sail_jax.patterns import MODALITIES, OMNI
from sail_jax.vectors.unit import normalize

# Embeddings of the query views and, if there are targets, of the target views.
Embeddings = tuple[Float32[Array, "V B D"], Float32[Array, "_ B K D"]] | tuple[Float32[Array, "V B D"]]
TYPES = {"V": TokenType.VISION, "T": TokenType.TEXT, "A": TokenType.AUDIO}


def filled(has: Bool[Array, "*batch V 3"], views: Sequence[str]) -> Bool[Array, "*batch V"]:
    """Returns whether an item has all modalities of a view, or any modality for `OMNI`.

    Args:
        has: whether the item of each row has vision, text, sound.
        views: the V views.
    """
    wanted = jnp.array([[letter in view for letter in MODALITIES] for view in views]).reshape(len(views), 3)
    omni = jnp.array([view == OMNI for view in views], bool)
    return jnp.where(omni, has.any(-1), (has | ~wanted).all(-1))


def masked_mean(values: Float[Array, "*batch N D"], mask: Bool[Array, "*batch N"]) -> Float[Array, "*batch D"]:
    """Returns the mean over the valid positions; zeros if none is valid."""
    weights = mask[..., None].astype(values.dtype)
    return (values * weights).sum(-2) / jnp.maximum(weights.sum(-2), 1)


def frames_of_items(
    frame_item: Int32[Array, " F"], frame_slot: Int32[Array, " F"], *, items: int, slots: int, groups: int
) -> Int32[Array, "G J M"]:
    """Returns the index of the frame in each slot of each item.

    Args:
        frame_item: index of the item within the group, -1 at padding.
        frame_slot: slot within the item.
        items: I.
        slots: M, slots per item.
        groups: G.

    Returns:
        Index of the frame within the block of its group; F / G in empty slots.
    """
    per_group, block = items // groups * slots, len(frame_item) // groups

    def one_group(item: jax.Array, slot: jax.Array) -> jax.Array:
        place = jnp.where(item >= 0, item * slots + slot, per_group)
        return jnp.full(per_group, block, jnp.int32).at[place].set(jnp.arange(block, dtype=jnp.int32), mode="drop")

    of_groups = jax.vmap(one_group)(frame_item.reshape(groups, block), frame_slot.reshape(groups, block))
    return of_groups.reshape(groups, items // groups, slots)


def mean_per_item(
    vectors: Float[Array, "C E"], vector_item: Int32[Array, " C"], *, items: int, groups: int
) -> tuple[Float32[Array, "{items} E"], Bool[Array, " {items}"]]:
    """Returns the mean of the vectors of each item, and whether the item has any.

    `vector_item` is the index of the item within the group; -1 at padding.
    """
    per_group, block = items // groups, vectors.shape[0] // groups

    def one_group(block_vectors: jax.Array, item: jax.Array) -> tuple[jax.Array, jax.Array]:
        place = jnp.where(item >= 0, item, per_group)
        total = jax.ops.segment_sum(block_vectors.astype(jnp.float32), place, per_group + 1)[:-1]
        count = jax.ops.segment_sum(jnp.ones(block), place, per_group + 1)[:-1]
        return total / jnp.maximum(count, 1)[:, None], count > 0

    mean, heard = jax.vmap(one_group)(vectors.reshape(groups, block, -1), vector_item.reshape(groups, block))
    return mean.reshape(items, -1), heard.reshape(items)


def tower_outputs(
    tower: Callable[[Shaped[Array, " N *raw"]], Float[Array, " N *rest"]], media: Shaped[Array, " N *given"]
) -> Float[Array, " N *rest"]:
    """Returns what a tower makes of frames or clips; a batch may hold it already, in place of integers."""
    return media if jnp.issubdtype(media.dtype, jnp.floating) else tower(media)


class Media(NamedTuple):
    """The arrays of a batch that the vision and audio towers read; see `batch.Batch`.

    Attributes:
        frames: RGB frames, or outputs of a frozen tower.
        frame_item: index of the item within the group.
        frame_slot: temporal position of the frame.
        clips: mono sound, or outputs of a frozen tower.
        clip_item: index of the item within the group.
        audio_vectors: precomputed audio embeddings.
        has_audio_vector: which items have one.
        media_item: index within the group of the item whose frames and clips are those of each; None for its own.
    """

    frames: UInt8[Array, "F H W 3"] | Float[Array, " F *rest"]
    frame_item: Int32[Array, " F"]
    frame_slot: Int32[Array, " F"]
    clips: Int16[Array, "C samples"] | Float[Array, "C E"]
    clip_item: Int32[Array, " C"]
    audio_vectors: Float32[Array, "I E"]
    has_audio_vector: Bool[Array, " I"]
    media_item: Int32[Array, " I"] | None = None

    @classmethod
    def of(cls, batch: Batch) -> "Media":
        """Returns the media of a batch."""

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
            None if batch.media_item is None else of_items(batch.media_item),
        )


def of_media_items(
    encoded: Shaped[Array, " I *rest"], media_item: Int32[Array, " I"] | None, groups: int
) -> Shaped[Array, " I *rest"]:
    """Returns for each item what was encoded for the item that has its media; gradients add up there."""
    if media_item is None:
        return encoded
    by_group = encoded.reshape(groups, -1, *encoded.shape[1:])
    return jax.vmap(lambda rows, index: rows[index])(by_group, media_item.reshape(groups, -1)).reshape(encoded.shape)


def sound_vectors(
    tower: Callable[[Int16[Array, "C samples"]], Float[Array, "C E"]],
    media: Media,
    *,
    groups: int,
    normalized: bool = False,
) -> tuple[Float32[Array, "I E"], Bool[Array, " I"]]:
    """Returns the audio vector of each item: its precomputed vector, or the mean of its clips' embeddings.

    Args:
        tower: clips -> vectors; it does not run if the batch has no clips, or has the vectors.
        media: the media of the items.
        groups: G.
        normalized: whether to scale the vectors to a root mean square of 1.

    Returns:
        The vectors, and whether the item has sound.
    """
    vector, has = _sound_vectors(tower, media, groups)
    return (normalize(vector) * vector.shape[-1] ** 0.5 if normalized else vector), has


def _sound_vectors(tower: Callable[..., Any], media: Media, groups: int) -> tuple[jax.Array, jax.Array]:
    vector, given = media.audio_vectors, media.has_audio_vector
    if media.clips.shape[0] == 0:
        return vector, given
    vectors = tower_outputs(tower, media.clips)
    mean, heard = mean_per_item(vectors, media.clip_item, items=len(given), groups=groups)
    return jnp.where(given[:, None], vector, mean), given | heard


def chunks_of(media: Media, groups: int, chunks: int) -> Media:
    """Moves the X chunks of each group to a leading axis: [G * X * n, ...] -> [X, G * n, ...]."""

    def split(x: jax.Array) -> jax.Array:
        by_chunk = jnp.moveaxis(x.reshape(groups, chunks, -1, *x.shape[1:]), 1, 0)
        return by_chunk.reshape(chunks, -1, *x.shape[1:])

    return jax.tree.map(split, media)


def joined_chunks(of_chunks: Shaped[Array, "X Gn *rest"], groups: int) -> Shaped[Array, " X*Gn *rest"]:
    """Inverts `chunks_of` for one array: [X, G * n, ...] -> [G * X * n, ...]."""
    chunks, width = of_chunks.shape[0], of_chunks.shape[2:]
    by_group = jnp.moveaxis(of_chunks.reshape(chunks, groups, -1, *width), 0, 1)
    return by_group.reshape(-1, *width)
