"""Small pictures for pages."""

import base64
import io

from PIL import Image


def webp_thumbnail(encoded: bytes, side: int) -> bytes | None:
    """A small WebP that fits into a square.

    Args:
        encoded: a picture.
        side: of the square, in pixels.

    Returns:
        The encoded thumbnail, or None where the picture cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            # JPEG decodes at a fraction of its size from here on.
            image.draft("RGB", (2 * side, 2 * side))
            small = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=70)
    return buffer.getvalue()


_SIDE = 96

_CAPTION = 90  # characters of an item's text that are shown


def short_caption(text: str) -> str:
    """As much of an item's text as a card shows."""
    return text if len(text) <= _CAPTION else text[: _CAPTION - 1].rstrip() + "…"


def thumbnail(encoded: bytes | None) -> str | None:
    """A picture as stored -> a small WebP as a data URI; None where there is no picture or it cannot be decoded."""
    small = None if encoded is None else webp_thumbnail(encoded, _SIDE)
    return None if small is None else "data:image/webp;base64," + base64.b64encode(small).decode()
