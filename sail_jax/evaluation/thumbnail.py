"""Small pictures for pages."""

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
