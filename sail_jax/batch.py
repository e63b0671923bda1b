"""The batch of arrays for training and embedding, the layout of its rows, and the outputs of models.

Arrays may be NumPy's or JAX's; nothing here needs JAX.

Axis letters: B pairs of a batch, S sides of a pair (query, target, hard negatives), K = S - 1 targets of a pair,
I = B * S items, V views, R rows of a pair, N tokens, F frames, C audio clips, L latents, D width.
"""

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class TokenType(enum.IntEnum):
    """The kind of a position in the token sequence; the towers fill VISION and AUDIO positions."""

    PAD = 0
    PROMPT = 1
    TEXT = 2
    VISION = 3
    AUDIO = 4


# Marks a place of `Batch.members` without an item.
NO_MEMBER = -(2**31)


class Batch(NamedTuple):
    """The arrays of one batch of pairs, with the same structure from the input pipeline to the device.

    Side 0 of a pair is the query, side 1 its target; sides from 2 on are hard negatives of the query, then random ones.

    All frames share one flat axis, and so do all audio clips, so that an item with one frame does not take the room of
    eight. The pairs axis consists of G equal groups, one per data-parallel shard or per media chunk of a shard. Both
    flat axes consist of G equal blocks, and the block of a group holds the frames of its pairs, so nothing crosses
    devices before the loss. Within a group, the item on side s of the b-th pair has the index b * S + s.

    Attributes:
        tokens: [B, S, N] int32 token ids; 0 at PAD, VISION and AUDIO positions.
        token_types: [B, S, N] int8, `TokenType`.
        frames: [F, H, W, 3] uint8 RGB; or [F, ...] floating-point outputs of a frozen vision tower (`frame_outputs` of
            the models), which then does not run.
        frame_item: [F] int32 index of the frame's item within its group; -1 at padding.
        frame_slot: [F] int32 temporal position of the frame within its item.
        clips: [C, samples] int16 mono sound; or, likewise, outputs of a frozen audio tower, [C, E].
        clip_item: [C] int32 index of the clip's item within its group; -1 at padding.
        audio_vectors: [B, S, K] float32 precomputed audio embeddings; zeros for items without one.
        has_audio_vector: [B, S] bool.
        item_keys: [B, S, 2] uint32 halves of a 64-bit hash of the item's id, or of its text if it has no id. Items with
            equal content have the hash of the first one's id.
        text_keys: [B, S, 2] uint32 halves of a 64-bit hash of the shown text, before fields are dropped.
        valid: [B, S] bool, False for a bad record or an item with nothing to show; the loss masks such items out.
        scores: [B] float32 graded similarity of query and target; NaN for pairs without one.
        dataset: [B] int32 index of the pair's data set.
        members: [B, 1 + L] int32, only for sequences. B then counts sequences, and sides are places for the distinct
            items of a group. Holds the target and then the history, oldest first, each as the index of its item within
            the group, minus b * S; `NO_MEMBER` at padding. `item_keys`, `text_keys` and `valid` are then [B, 2, ...]:
            of the user, and of the target.
        seen_keys: [B, W, 2] uint32, only for sequences: keys of items that the user has seen; zeros at padding.
        id_vectors: [B, S, E] float32, only for the loss `distill`: the recommender's ID embeddings of an item,
            concatenated, each a unit vector.
        has_id: [B, S, T] bool, which of the T ID embeddings an item has.
        media_item: [B, S] int32, only with `data.encode_once`: index within the group of the item whose frames and
            clips are those of this item; its own, or that of an earlier one.
        log_frequency: [B, S] float32, only where a data set of the batch has `correct_popularity`: how likely the item
            of a side is to come on it, as a query, a target or a hard negative; 0 where it is no candidate. For
            sequences [B, 2], of the history and of the target.
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
    log_frequency: Any = None
    media_item: Any = None

    def by_axis(self, pairs: Any, frames: Any, clips: Any) -> "Batch":
        """Returns, for every array, the value for what its first axis counts; None for absent arrays."""
        of_axis = Batch(*[pairs] * len(self))._replace(
            frames=frames, frame_item=frames, frame_slot=frames, clips=clips, clip_item=clips
        )
        return Batch(*(None if array is None else value for array, value in zip(self, of_axis, strict=True)))

    def read_by_losses(self) -> "Batch":
        """Returns the batch with only the arrays that the objective reads; all have the pairs axis first."""
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
            media_item=None,
        )


# Views of the query side and, if the batch has targets, of the target side; hard negatives have the targets' views.
Views = Sequence[Sequence[str]]
# An array of the queries, [V, B, ...], and, if the batch has targets, one of the targets, [V, B, K, ...].
BySide = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class RowLayout:
    """The R rows of a pair in the fusion: its query per query view, then its K targets per target view.

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
        """Returns the (side, view) of every row."""
        queries, targets = self.views[0], [*self.views[1:], ()][0]
        return [(0, view) for view in queries] + [(side, view) for view in targets for side in range(1, self.sides)]

    def of_items(self, values: Any) -> Any:
        """Returns the values of the items for every row of their pair: [I, ...] -> [B, R, ...]."""
        return self.of_sides(values.reshape(-1, self.sides, *values.shape[1:]))

    def of_sides(self, values: Any) -> Any:
        """Returns the values of the sides of pairs for every row: [B, S, ...] -> [B, R, ...]."""
        # Pairs stay the leading axis, so that no row leaves the device of its pair.
        return values[:, np.array([side for side, _ in self.rows])]

    def split(self, rows: Any) -> BySide:
        """Splits rows [B, R, ...] into queries [V, B, ...] and, if there are any, targets [V, B, K, ...]."""
        rows = rows.swapaxes(0, 1)
        queries, targets = rows[: len(self.views[0])], rows[len(self.views[0]) :]
        if self.sides == 1:
            return (queries,)
        return queries, targets.reshape(len(self.views[1]), self.sides - 1, *targets.shape[1:]).swapaxes(1, 2)

    def join(self, by_side: BySide) -> Any:
        """Returns the rows that `split` split, [B, R, ...]."""
        parts = [by_side[0].swapaxes(0, 1)]
        for targets in by_side[1:]:
            of_pairs = targets.swapaxes(0, 1)
            parts.append(of_pairs.reshape(len(of_pairs), -1, *of_pairs.shape[3:]))
        return parts[0].__array_namespace__().concat(parts, axis=1)


class Parts(NamedTuple):
    """Parts of embeddings that the losses read, float32.

    Zeros where a view does not show the modality, or the item does not have it.

    Attributes:
        visual: [V, B, D] and [V, B, K, D], the visual part of the embedding: in a fusion the mean over the visual
            positions.
        textual: in the same layout, the textual part: in a fusion the mean over the text positions.
        encoded: in the same layout, vision before any fusion: the mean of the vision tokens that the LLM receives.
    """

    visual: BySide
    textual: BySide
    encoded: BySide


class Outputs(NamedTuple):
    """The intermediates that a model returns with its embeddings; None for those it does not compute.

    Attributes:
        filled: [V, B] and [V, B, K] bool, whether the item has the modalities of the view.
        parts: the parts of embeddings that the losses read.
        vision: [I, L, D] vision tokens; L is 1 in a model without latents.
        audio: [I, D] audio embeddings.
        mask: [B, R, N] bool, the positions that take part in each row of the fusion; see `RowLayout`.
        hidden: [B, R, N, D] the fused states.
        power: [B, 3, 2] float32, of the vision, text and sound of a pair at the fusion's input: the sum of mean squares
            over their positions, and the number of positions; without gradient.
    """

    filled: BySide
    parts: Parts
    vision: Any = None
    audio: Any = None
    mask: Any = None
    hidden: Any = None
    power: Any = None
