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
    try:
        small = decode_small(encoded, side)
    except BadRecordError:
        return None
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=70)
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
