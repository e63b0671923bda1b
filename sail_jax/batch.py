"""The batch of arrays that training and embedding pass around, the layout of its rows, and what models return for it.

Arrays may be NumPy's or JAX's; nothing here needs JAX.

Axis letters: B pairs of a batch, S sides of a pair (query, target, hard negatives), K = S - 1 of them targets, I = B * S items,
V views, R rows of a pair, N tokens, F frames, C audio clips, L latents, D width.
"""

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


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

    def by_axis(self, pairs: Any, frames: Any, clips: Any) -> "Batch":
        """One of three values for every array by what its first axis counts; None where there is no array."""
        of_axis = Batch(*[pairs] * len(self))._replace(
            frames=frames, frame_item=frames, frame_slot=frames, clips=clips, clip_item=clips
        )
        return Batch(*(None if array is None else value for array, value in zip(self, of_axis, strict=True)))

    def read_by_losses(self) -> "Batch":
        """The arrays that the objective reads, all with the axis of pairs first; None for those that the model alone reads."""
        return self._replace(
            tokens=None,
            token_types=None,
            frames=None,
            frame_item=None,
            frame_slot=None,
            clips=None,
            clip_item=None,
            audio_vectors=None,
            has_audio_vector=None,
            members=None,
        )


# Views of the query side and, where there is one, of the target side; hard negatives are seen as targets are.
Views = Sequence[Sequence[str]]
# An array of the queries, [V, B, ...], and where there are targets one of them, [V, B, K, ...].
BySide = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class RowLayout:
    """The R rows that a pair takes in the fusion: its query under each query view, then under each target view its K targets.

    Attributes:
        views: one tuple of views for a batch with one side, two for a batch with more.
        sides: S.

    Raises:
        ValueError: when the number of tuples does not fit the sides.
    """

    views: Views
    sides: int

    def __post_init__(self) -> None:
        if len(self.views) != min(self.sides, 2):
            raise ValueError(
                f"a batch with {self.sides} sides takes views for {min(self.sides, 2)} of them, got {len(self.views)}"
            )

    @property
    def rows(self) -> list[tuple[int, str]]:
        """The (side, view) of every row."""
        queries, targets = self.views[0], [*self.views[1:], ()][0]
        return [(0, view) for view in queries] + [(side, view) for view in targets for side in range(1, self.sides)]

    def of_items(self, values: Any) -> Any:
        """What belongs to the items, for every row of their pair: [I, ...] -> [B, R, ...]."""
        return self.of_sides(values.reshape(-1, self.sides, *values.shape[1:]))

    def of_sides(self, values: Any) -> Any:
        """What belongs to the sides of pairs, for every row: [B, S, ...] -> [B, R, ...]."""
        # Pairs stay the leading axis, so that no row leaves the device of its pair.
        return values[:, np.array([side for side, _ in self.rows])]

    def split(self, rows: Any) -> BySide:
        """[B, R, ...] -> [V, B, ...] of queries and, where there are targets, [V, B, K, ...] of them."""
        rows = rows.swapaxes(0, 1)
        queries, targets = rows[: len(self.views[0])], rows[len(self.views[0]) :]
        if self.sides == 1:
            return (queries,)
        return queries, targets.reshape(len(self.views[1]), self.sides - 1, *targets.shape[1:]).swapaxes(1, 2)

    def join(self, by_side: BySide) -> Any:
        """The way back from `split`: -> [B, R, ...]."""
        parts = [by_side[0].swapaxes(0, 1)]
        for targets in by_side[1:]:
            of_pairs = targets.swapaxes(0, 1)
            parts.append(of_pairs.reshape(len(of_pairs), -1, *of_pairs.shape[3:]))
        return parts[0].__array_namespace__().concat(parts, axis=1)


class Parts(NamedTuple):
    """What the losses read of items besides their embeddings, float32; zeros where a view does not show it, or an item lacks it.

    Attributes:
        visual: [V, B, D] and [V, B, K, D], the visual part of the embedding: in a fusion the mean over the visual positions.
        textual: in the same layout, the textual part: in a fusion the mean over the text positions.
        encoded: in the same layout, vision before any fusion: the mean of the vision tokens as the LLM receives them.
    """

    visual: BySide
    textual: BySide
    encoded: BySide


class Outputs(NamedTuple):
    """The intermediates that a model returns beside its embeddings; what it does not have is None.

    Attributes:
        filled: [V, B] and [V, B, K] bool, whether the item has what the view asks for.
        parts: what the losses read besides.
        vision: [I, L, D] tokens of vision; L is 1 in a model without latents.
        audio: [I, D] of sound.
        mask: [B, R, N] bool, the positions that take part in each row of the fusion; see `RowLayout`.
        hidden: [B, R, N, D] the fused states.
    """

    filled: BySide
    parts: Parts
    vision: Any = None
    audio: Any = None
    mask: Any = None
    hidden: Any = None
