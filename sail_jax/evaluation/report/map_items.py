"""Describes the items of a map for the page: texts, labels, sheets of small pictures, neighbours."""

import base64
import io
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import soundfile
from PIL import Image

from sail_jax.data.media.pictures import decode_small
from sail_jax.data.media.sound import decode_audio
from sail_jax.errors import BadRecordError
from sail_jax.evaluation.report.cards import caption_of
from sail_jax.items import Item
from sail_jax.vectors.top_k import top_k

SHEET, TILE = 256, 48  # items on a sheet, and the side of a picture in pixels
ACROSS = 16  # pictures in a row of a sheet
_NEIGHBOURS = 8
_SOUNDS, _SECONDS, _RATE = 120, 3.0, 16_000  # items whose sound is kept, how much of it, and samples per second
_BLOCK = 4096


class Described(NamedTuple):
    """What a map says of its items, in their order; see `SpaceMap`."""

    labels: list[str]
    ids: list[str]
    captions: list[str]
    modalities: list[str]
    all_labels: list[list[str]]
    sheets: list[str]
    sounds: dict[str, str]


def described(items: Iterable[Item]) -> Described:
    """Describes items, which are read one at a time."""
    found = Described([], [], [], [], [], [], {})
    sheet, filled = _blank(), 0
    for number, item in enumerate(items):
        if number and number % SHEET == 0:
            found.sheets.append(_uri(sheet) if filled else "")
            sheet, filled = _blank(), 0
        filled += _paste(sheet, number % SHEET, item)
        if len(found.sounds) < _SOUNDS and (sound := _sound(item)):
            found.sounds[str(number)] = sound
        found.labels.append(item.labels[0] if item.labels else "")
        found.ids.append(item.item_id)
        found.captions.append(caption_of(item))
        found.modalities.append("".join(item.modalities))
        found.all_labels.append(list(item.labels))
    found.sheets.append(_uri(sheet) if filled else "")
    return found


def near(vectors: np.ndarray) -> list[list[int]]:
    """Returns the rows nearest to each of some vectors, [N, K], best first, without the vector itself."""
    count = min(_NEIGHBOURS, len(vectors) - 1)
    if count < 1:
        return [[] for _ in vectors]
    return top_k(vectors, vectors, count, block=_BLOCK, exclude=np.arange(len(vectors)))[0].tolist()


def _blank() -> Image.Image:
    return Image.new("RGB", (ACROSS * TILE, SHEET // ACROSS * TILE))


def _paste(sheet: Image.Image, place: int, item: Item) -> bool:
    """Puts the first frame of an item in its place, cut to a square; returns whether it has one."""
    if not item.frames:
        return False
    try:
        small = decode_small(item.frames[0], 2 * TILE).convert("RGB")
    except BadRecordError:
        return False
    side = min(small.size)
    left, top = ((length - side) // 2 for length in small.size)
    small = small.resize((TILE, TILE), box=(left, top, left + side, top + side))
    sheet.paste(small, (place % ACROSS * TILE, place // ACROSS * TILE))
    return True


def _sound(item: Item) -> str:
    """Returns the beginning of the sound of an item as a data URI; empty if it has none that can be decoded."""
    if item.audio is None:
        return ""
    try:
        samples = decode_audio(item.audio, _RATE, keep_seconds=_SECONDS)
    except BadRecordError:
        return ""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, _RATE, format="MP3")
    return "data:audio/mpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _uri(sheet: Image.Image) -> str:
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=45)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
