"""Collates the features of pairs into the arrays of a batch; packs frames and clips on flat axes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sail_jax.batch import Batch
from sail_jax.data.features import ItemFeatures
from sail_jax.vectors.unit import unit_rows

# (shape, dtype) -> an uninitialised array.
Empty = Callable[[tuple[int, ...], Any], np.ndarray]


def capacity(items: int, budget: float, groups: int) -> int:
    """Length of a flat axis.

    Args:
        items: number of items of the batch that show the modality.
        budget: frames (or clips) per item, averaged over a group.
        groups: number of equal groups of pairs; each gets a block of the same length.
    """
    return math.ceil(items / groups * budget) * groups


def thin(counts: np.ndarray, room: int) -> np.ndarray:
    """Reduces the counts of frames per item to fit into a limit; items with the most frames lose first.

    Args:
        counts: [items] int, frames per item.
        room: the limit of the sum.

    Returns:
        [items] int, at most `counts`, with a sum of at most `room`, as equal as possible.
    """
    kept = counts.copy()
    while (excess := kept.sum() - room) > 0:
        tallest = np.flatnonzero(kept == kept.max())
        lower = kept[kept < kept.max()].max(initial=0)
        # Lower all of the largest to the next lower count at most; the first ones give a remainder of less than one
        # each.
        kept[tallest] -= min(kept.max() - lower, excess // len(tallest))
        if excess < len(tallest):
            kept[tallest[:excess]] -= 1
    return kept


def collate(
    pairs: Sequence[Sequence[ItemFeatures]],
    datasets: Sequence[int],
    scores: Sequence[float | None],
    *,
    groups: int,
    frame_capacity: int,
    clip_capacity: int,
    audio_width: int,
    teachers: Mapping[str, int] = {},
    once: bool = False,
    empty: Empty = np.empty,
) -> tuple[Batch, int]:
    """Stacks features into a batch.

    Args:
        pairs: B pairs of S items each.
        datasets: [B] index of each pair's data set.
        scores: [B] graded similarity of each pair, or None.
        groups: number of equal groups of pairs, one per data-parallel shard or media chunk of a shard.
        frame_capacity: F, length of the flat frames axis, a multiple of `groups`.
        clip_capacity: C, length of the flat clips axis, a multiple of `groups`.
        audio_width: K, width of precomputed audio embeddings.
        teachers: ID embedding -> width, for the embeddings in the batch.
        once: whether the media of an item that comes several times in a group take room once.
        empty: allocates the arrays of pixels and of sound.

    Returns:
        The batch of numpy arrays, and the number of frames and clips dropped because they did not fit.
    """
    items = [item for pair in pairs for item in pair]
    sides = len(pairs[0])
    shown = first_alike(items, groups) if once else _places(len(items), groups)
    lengths = np.where(shown == _places(len(items), groups), None, 0)  # None leaves all
    of_frames = [item.frames[:length] for item, length in zip(items, lengths, strict=True)]
    of_clips = [item.clips[:length] for item, length in zip(items, lengths, strict=True)]
    frames, frame_item, frame_slot, frames_cut = _pack(of_frames, groups, frame_capacity, empty)
    clips, clip_item, _, clips_cut = _pack(of_clips, groups, clip_capacity, empty)
    vectors = np.zeros((len(items), audio_width), np.float32)
    for row, item in enumerate(items):
        if item.audio_vector is not None:
            vectors[row] = item.audio_vector

    def by_pair(array: np.ndarray) -> np.ndarray:
        return array.reshape(len(pairs), sides, *array.shape[1:])

    batch = Batch(
        tokens=by_pair(np.stack([i.tokens for i in items])),
        token_types=by_pair(np.stack([i.token_types for i in items])),
        frames=frames,
        frame_item=frame_item,
        frame_slot=frame_slot,
        clips=clips,
        clip_item=clip_item,
        audio_vectors=by_pair(vectors),
        has_audio_vector=by_pair(np.array([i.audio_vector is not None for i in items])),
        item_keys=by_pair(as_halves([i.item_key for i in items])),
        text_keys=by_pair(as_halves([i.text_key for i in items])),
        valid=by_pair(np.array([i.valid for i in items])),
        scores=np.array([np.nan if score is None else score for score in scores], np.float32),
        dataset=np.asarray(datasets, np.int32),
    )
    if once:
        batch = batch._replace(media_item=by_pair(shown))
    if teachers:
        vectors, has = _id_vectors(items, teachers)
        batch = batch._replace(id_vectors=by_pair(vectors), has_id=by_pair(has))
    return batch, frames_cut + clips_cut


def first_alike(items: Sequence[ItemFeatures], groups: int) -> np.ndarray:
    """Returns the index within its group of the first item with the same media, [items] int32.

    Items are the same if their keys are, and their views show the same modalities. An item without frames and clips is
    its own first.
    """
    first = _places(len(items), groups)
    known: dict[tuple, int] = {}
    for at, item in enumerate(items):
        if len(item.frames) or len(item.clips):
            shown = len(item.frames), len(item.clips), item.audio_vector is None
            first[at] = known.setdefault((at // (len(items) // groups), item.item_key, *shown), first[at])
    return first


def count_again(batch: Batch, groups: int) -> int:
    """Returns the number of items of a batch whose media an earlier item of their group has."""
    if batch.media_item is None:
        return 0
    return int(np.count_nonzero(batch.media_item.ravel() != _places(batch.media_item.size, groups)))


def _places(items: int, groups: int) -> np.ndarray:
    """Returns the index of each item within its group, [items] int32."""
    return np.tile(np.arange(items // groups, dtype=np.int32), groups)


def _id_vectors(items: Sequence[ItemFeatures], teachers: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """([n, E] float32 concatenated unit vectors of the teachers, [n, T] bool, false for a missing or zero vector)."""
    parts, has = [], []
    for name, width in teachers.items():
        vectors = [item.id_vectors.get(name) for item in items]
        parts.append(unit_rows(np.stack([np.zeros(width) if vector is None else vector for vector in vectors])))
        has.append(parts[-1].any(axis=1))
    return np.concatenate(parts, axis=1), np.stack(has, axis=1)


def as_halves(keys: Sequence[int]) -> np.ndarray:
    """Splits 64-bit keys into [n, 2] uint32, because devices have no 64-bit integers by default."""
    whole = np.array(keys, np.uint64)
    return np.stack([whole >> np.uint64(32), whole & np.uint64(0xFFFFFFFF)], -1).astype(np.uint32)


def _pack(
    media: Sequence[np.ndarray], groups: int, room: int, empty: Empty
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Packs the media of all items on one flat axis of length `room`, in `groups` blocks.

    Returns (flat [room, ...], item [room], slot [room], number of media dropped).
    """
    flat = empty((room, *media[0].shape[1:]), media[0].dtype)
    item = np.full(room, -1, np.int32)
    slot = np.zeros(room, np.int32)
    per_group, block = len(media) // groups, room // groups
    cut = 0
    for group in range(groups):
        members = media[group * per_group : (group + 1) * per_group]
        counts = np.array([len(m) for m in members])
        kept = thin(counts, block)
        cut += int((counts - kept).sum())
        at = group * block
        for index, (entry, count) in enumerate(zip(members, kept, strict=True)):
            chosen = slice(None)
            if count < len(entry):
                chosen = np.linspace(0, len(entry) - 1, count).round().astype(int)
            flat[at : at + count] = entry[chosen]
            item[at : at + count] = index
            slot[at : at + count] = np.arange(count)
            at += count
        flat[at : (group + 1) * block] = 0
    return flat, item, slot, cut
