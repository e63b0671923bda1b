"""Shows an item of the search page: texts, pictures and sound; says which items a filter keeps."""

import contextlib
from typing import Any

from sail_jax.data.prompts import clean_text
from sail_jax.data.store import ItemStore
from sail_jax.data.thumbnail import webp_thumbnail
from sail_jax.errors import BadRecordError
from sail_jax.items import Item
from sail_jax.search.searcher import caption

LABEL, MODALITIES = "label", "has"  # what results are filtered by beside the text fields
_SIDE = 320
# First bytes of a sound -> what it is.
_SOUNDS = {
    b"RIFF": "audio/wav",
    b"OggS": "audio/ogg",
    b"fLaC": "audio/flac",
    b"ID3": "audio/mpeg",
    b"\xff": "audio/mpeg",
}


class ItemView:
    """Reads items of stores, for the page; all methods take ids that may be unknown.

    Args:
        stores: the items; the first one that has an item shows it. None stands for a store that cannot be opened.
    """

    def __init__(self, *stores: ItemStore | None) -> None:
        self._stores = [store for store in stores if store is not None]

    def get(self, item_id: str) -> Item | None:
        """Returns an item, or None if it is not known."""
        for store in self._stores:
            with contextlib.suppress(BadRecordError):
                return store.get(item_id)
        return None

    def card(self, item_id: str) -> dict[str, Any]:
        """Returns what the grid shows of an item: id, caption, and whether it has a picture and a sound."""
        item = self.get(item_id)
        shown = item.modalities if item is not None else ""
        words = caption(item) if item is not None else ""
        return {"id": item_id, "caption": words, "picture": "V" in shown, "sound": "A" in shown}

    def details(self, item_id: str) -> dict[str, Any] | None:
        """Returns what is known of an item: texts by field, labels, number of frames, whether sound plays."""
        item = self.get(item_id)
        if item is None:
            return None
        texts = {field: words for field, text in item.text.items() if (words := clean_text(text))}
        playable = item.audio is not None
        return {"id": item_id, "texts": texts, "labels": item.labels, "frames": len(item.frames), "sound": playable}

    def thumbnail(self, item_id: str, frame: int = 0) -> bytes | None:
        """Returns a small WebP of a frame of an item, or None if there is none."""
        item = self.get(item_id)
        if item is None or not 0 <= frame < len(item.frames):
            return None
        return webp_thumbnail(item.frames[frame], _SIDE)

    def sound(self, item_id: str) -> tuple[bytes, str] | None:
        """Returns the sound of an item and its media type, or None if it has none."""
        item = self.get(item_id)
        if item is None or item.audio is None:
            return None
        kind = next((kind for begin, kind in _SOUNDS.items() if item.audio.startswith(begin)), "audio/mp4")
        return item.audio, kind

    def keeps(self, item_id: str, field: str, words: str) -> bool:
        """Returns whether a field of an item has some words; of `MODALITIES`, whether it has these modalities."""
        item = self.get(item_id)
        if item is None:
            return False
        if field == MODALITIES:
            return set(words.upper()) <= set(item.modalities)
        texts = item.labels if field == LABEL else [item.text.get(field, "")]
        return any(words.lower() in text.lower() for text in texts)
