"""The batch of arrays that training and embedding pass around, and the layout of its rows.

Axis letters: B pairs of a batch, S sides of a pair (query, target, hard negatives), N tokens, F frames, C audio clips.
"""

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple


class TokenType(enum.IntEnum):
    """What stands at a position of the token sequence. VISION and AUDIO positions are filled by the towers."""

    PAD = 0
    PROMPT = 1
    TEXT = 2
    VISION = 3
    AUDIO = 4


# In `Batch.members`, where a sequence has no item.
NO_MEMBER = -(2**31)


class Batch(NamedTuple):
    """The arrays of one batch of pairs: the same structure from the first map to the device.

    Side 0 of a pair is the query, side 1 its target; sides from 2 on, where there are any, are hard negatives of the query.

    The frames of all items lie on one flat axis, and so do the audio clips, so that an item with one frame does not pay
    for eight. The pairs axis is seen as G equal groups, one per data-parallel shard, or per media chunk of one; both flat axes come in G equal
    blocks, and the frames of a pair lie in the block of its group, so nothing crosses devices before the loss. Within a
    group, the item on side s of the group's b-th pair has the index b * S + s.

    Attributes:
        tokens: [B, S, N] int32 token ids; 0 at PAD, VISION and AUDIO positions.
        token_types: [B, S, N] int8, `TokenType`.
        frames: [F, H, W, 3] uint8 RGB.
        frame_item: [F] int32 index of the frame's item within its group; -1 at padding.
        frame_slot: [F] int32 temporal position of the frame within its item.
        clips: [C, samples] int16 mono sound.
        clip_item: [C] int32 index of the clip's item within its group; -1 at padding.
        audio_vectors: [B, S, K] float32 precomputed audio embeddings; zeros where there is none.
        has_audio_vector: [B, S] bool.
        item_keys: [B, S, 2] uint32 halves of a 64-bit hash of the item's id, or of its text where it has no id.
        text_keys: [B, S, 2] uint32 halves of a 64-bit hash of the text that is shown, before fields are dropped.
        valid: [B, S] bool, False where the record was bad or nothing of it is shown; such an item is masked out of the loss.
        scores: [B] float32 graded similarity of query and target; NaN where the pair has none.
        dataset: [B] int32 index of the data set that the pair comes from.
        members: [B, 1 + L] int32, of sequences alone, where B counts sequences and sides are places for the distinct items of their
            group: the place of the target and of the items of the history, oldest first, as its index within the group less b * S;
            `NO_MEMBER` where there is none. Then `item_keys`, `text_keys` and `valid` are [B, 2, ...]: of the user, and of the target.
        seen_keys: [B, W, 2] uint32, of sequences alone: the keys of items that the user has seen, zeros where there are none.
        id_vectors: [B, S, E] float32, where they are taught: the recommender's ID embeddings one after the other, unit vectors.
        has_id: [B, S, T] bool, which of the T ID embeddings an item has.
    """

    tokens: Any
    token_types: Any
    frames: Any
    frame_item: Any
    frame_slot: Any
    clips: Any
    clip_item: Any
    audio_vectors: Any
    has_audio_vector: Any
    item_keys: Any
    text_keys: Any
    valid: Any
    scores: Any
    dataset: Any
    members: Any = None
    seen_keys: Any = None
    id_vectors: Any = None
    has_id: Any = None


# Views of the query side and, where there is one, of the target side; hard negatives are seen as targets are.
Views = Sequence[Sequence[str]]


def rows_of_views(views: Views, sides: int) -> list[tuple[int, str]]:
    """The (side, view) of every row that a pair takes in the fusion: query views, then for each target view its sides.

    Args:
        views: one tuple of views for a batch with one side, two for a batch with more.
        sides: S.
    """
    if len(views) != min(sides, 2):
        raise ValueError(f"a batch with {sides} sides takes views for {min(sides, 2)} of them, got {len(views)}")
    rows = [(0, view) for view in views[0]]
    return rows + [(side, view) for view in [*views[1:], ()][0] for side in range(1, sides)]
