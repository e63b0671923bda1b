"""The vocabulary that every other module speaks: items, modalities, text fields, and the batch of arrays.

Axis letters: B pairs of a batch, S sides of a pair (query, target, hard negatives), N tokens, F frames, C audio clips.
"""

import dataclasses
import enum
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from sail_jax.errors import SailError

# Text fields of an item, in the order in which they are shown to the model (arXiv 2510.12709, sec. 3.2.2).
TEXT_FIELDS = ("title", "asr", "ocr", "nickname", "tags")
# The one field of a free-text query; it is shown without a label.
QUERY_FIELD = "query"
# Vision, text, audio: the letters in which the report writes a set of modalities, "V", "T", "VTA".
MODALITIES = "VTA"
# A view that shows whatever an item has ("omni" in the report); a set such as "VT" asks for each of its modalities.
OMNI = "O"


class TokenType(enum.IntEnum):
    """What stands at a position of the token sequence. VISION and AUDIO positions are filled by the towers."""

    PAD = 0
    PROMPT = 1
    TEXT = 2
    VISION = 3
    AUDIO = 4


@dataclasses.dataclass(frozen=True)
class Item:
    """One item (a short video, a picture, a text): any subset of frames, text fields and sound.

    Attributes:
        item_id: unique id; the empty string for a free-text query.
        text: text field -> text, fields out of `TEXT_FIELDS` or `QUERY_FIELD`.
        frames: encoded images (JPEG, PNG, WebP, ...), in temporal order.
        audio: an encoded sound file (WAV, FLAC, Ogg, MP3, ...), or None.
        audio_embedding: a precomputed CLAP vector that takes the place of `audio`, [K] float32, or None.
        labels: class labels.
        id_embeddings: name -> a recommender's ID embedding, [K] float32.
    """

    item_id: str
    text: Mapping[str, str] = dataclasses.field(default_factory=dict)
    frames: tuple[bytes, ...] = ()
    audio: bytes | None = None
    audio_embedding: np.ndarray | None = None
    labels: tuple[str, ...] = ()
    id_embeddings: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises SailError on unknown text fields, and on paths given in place of bytes."""
        unknown = set(self.text) - {*TEXT_FIELDS, QUERY_FIELD}
        if unknown:
            raise SailError(f"The item {self.item_id!r} has unknown text fields {sorted(unknown)}; use {TEXT_FIELDS}.")
        if not all(isinstance(frame, bytes) for frame in self.frames) or not isinstance(self.audio, bytes | None):
            raise SailError(f"The item {self.item_id!r} takes frames and audio as the bytes of encoded files.")

    @property
    def modalities(self) -> str:
        """The modalities that the item has, as a subset of "VTA"."""
        has = {
            "V": bool(self.frames),
            "T": any(self.text.values()),
            "A": self.audio is not None or self.audio_embedding is not None,
        }
        return "".join(letter for letter in MODALITIES if has[letter])


def text_item(text: str) -> Item:
    """A free-text query as an item."""
    return Item(item_id="", text={QUERY_FIELD: text})


def check_modalities(modalities: str, *, setting: str) -> str:
    """Returns `modalities` in canonical order.

    Raises:
        SailError: on an empty set, an unknown letter or a repeated one; the message names `setting`.
    """
    if not modalities or set(modalities) - set(MODALITIES) or len(set(modalities)) != len(modalities):
        raise SailError(f"{setting} is {modalities!r}; write a set of modalities such as 'V', 'T' or 'VTA'.")
    return "".join(letter for letter in MODALITIES if letter in modalities)


class Pattern(NamedTuple):
    """What is matched with what (arXiv 2510.12709, sec. 3.3.4): the views of the query side and of the target side.

    A view is a set of modalities that an item has to have, all of them, or `OMNI`: whatever it has.
    """

    query: str
    target: str

    def __str__(self) -> str:
        return f"{self.query}->{self.target}"


def parse_pattern(text: str, *, setting: str) -> Pattern:
    """Reads a pattern such as "VTA->T", "A->VT" or "O->O".

    Raises:
        SailError: when it is not two views with an arrow between; the message names `setting`.
    """
    sides = [side.strip() for side in text.split("->")]
    if len(sides) != 2:
        raise SailError(f"{setting} is {text!r}; write a pattern such as 'VTA->VTA', 'T->V' or 'O->O'.")
    return Pattern(
        *(side if side == OMNI else check_modalities(side, setting=f"{setting}, {text!r},") for side in sides)
    )


def views_of(patterns: Iterable[Pattern]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The views of the query side and of the target side that some patterns need, each once."""
    queries, targets = zip(*patterns, strict=True)
    return tuple(dict.fromkeys(queries)), tuple(dict.fromkeys(targets))


def shown_modalities(views: Iterable[str]) -> str:
    """The modalities that are shown by at least one of some views, as a subset of "VTA"."""
    letters = "".join(MODALITIES if view == OMNI else view for view in views)
    return "".join(letter for letter in MODALITIES if letter in letters)


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
