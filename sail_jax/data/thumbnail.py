"""Small pictures and captions for HTML pages."""

import base64
import io

from sail_jax.data.media.pictures import decode_small
from sail_jax.errors import BadRecordError


def webp_thumbnail(encoded: bytes, side: int) -> bytes | None:
    """Scales a picture down to a WebP that fits into a square.

    Args:
        encoded: a picture, in a format and of a size that training reads.
        side: of the square, in pixels.

    Returns:
        The encoded thumbnail, or None if the picture cannot be decoded.
    """
    return _thumbnail(encoded, side, "WEBP", quality=70)


def jpeg_thumbnail(encoded: bytes, side: int) -> bytes | None:
    """Scales a picture down as `webp_thumbnail` does, to a JPEG: larger, encoded in a tenth of the time."""
    return _thumbnail(encoded, side, "JPEG", quality=80)


def _thumbnail(encoded: bytes, side: int, kind: str, *, quality: int) -> bytes | None:
    try:
        small = decode_small(encoded, side)
    except BadRecordError:
        return None
    buffer = io.BytesIO()
    small.save(buffer, kind, quality=quality)
    return buffer.getvalue()


_SIDE = 96

_CAPTION = 90  # most characters of a caption


def short_caption(text: str) -> str:
    """Truncates an item's text to the length of a caption."""
    return text if len(text) <= _CAPTION else text[: _CAPTION - 1].rstrip() + "…"


def thumbnail(encoded: bytes | None) -> str | None:
    """Converts a stored picture to a small WebP data URI; None if it is missing or cannot be decoded."""
    small = None if encoded is None else webp_thumbnail(encoded, _SIDE)
    return None if small is None else "data:image/webp;base64," + base64.b64encode(small).decode()
