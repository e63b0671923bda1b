"""Items: an id with any subset of frames, text fields and sound."""

import dataclasses
import hashlib
from collections.abc import Mapping

import numpy as np

from sail_jax.errors import SailError
from sail_jax.patterns import MODALITIES

# Text fields of an item, in the order in which they are shown to the model (arXiv 2510.12709, sec. 3.2.2).
TEXT_FIELDS = ("title", "asr", "ocr", "nickname", "tags")
# The only field of a free-text query; it is shown without a label.
QUERY_FIELD = "query"


@dataclasses.dataclass(frozen=True)
class Item:
    """One item (a short video, a picture, a text): any subset of frames, text fields and sound.

    Attributes:
        item_id: unique id; the empty string for a free-text query.
        text: text field -> text; fields of `TEXT_FIELDS`, or `QUERY_FIELD`.
        frames: encoded images (JPEG, PNG, WebP, ...), in temporal order.
        audio: an encoded sound file (WAV, FLAC, Ogg, MP3, ...), or None.
        audio_embedding: a precomputed CLAP vector instead of `audio`, [K] float32, or None.
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
        """Returns the modalities that the item has, as a subset of "VTA"."""
        has = {
            "V": bool(self.frames),
            "T": any(self.text.values()),
            "A": self.audio is not None or self.audio_embedding is not None,
        }
        return "".join(letter for letter in MODALITIES if has[letter])

    def only(self, modalities: str) -> "Item":
        """Returns the item with some of its modalities alone, a subset of "VTA"."""
        sound = {} if "A" in modalities else {"audio": None, "audio_embedding": None}
        others = ({} if "V" in modalities else {"frames": ()}) | ({} if "T" in modalities else {"text": {}})
        return dataclasses.replace(self, **others, **sound)


def text_item(text: str) -> Item:
    """Returns a free-text query as an item."""
    return Item(item_id="", text={QUERY_FIELD: text})


def item_key(text: str) -> int:
    """Returns a 64-bit hash of an id or a text, equal in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def content_key(item: Item) -> int:
    """Returns a 64-bit hash of the texts, frames and sound of an item; 0 if it has none.

    Its id, labels and ID embeddings do not count.
    """
    if not item.modalities:
        return 0
    texts = [part.encode("utf-8", "surrogatepass") for pair in sorted(item.text.items()) if pair[1] for part in pair]
    vector = b"" if item.audio_embedding is None else np.asarray(item.audio_embedding, "<f4").tobytes()
    digest = hashlib.blake2b(digest_size=8)
    for parts in (texts, item.frames, [item.audio or b""], [vector]):
        for part in (len(parts).to_bytes(8, "little"), *parts):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return int.from_bytes(digest.digest(), "little")
