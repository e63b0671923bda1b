"""Decodes, checks and encodes pictures.

Every error on a broken file is raised as a `BadRecordError`. The size is read from the header, so that an oversized
file is refused before it is decoded.
"""

import contextlib
import io
import struct

import av
import numpy as np
import simplejpeg
from PIL import Image, ImageFile, UnidentifiedImageError

from sail_jax.data.media.decoding import MAX_PIXELS, check_time, decoding
from sail_jax.data.media.picture_limits import check_data, check_opened
from sail_jax.errors import BadRecordError, is_of_the_machine

# The formats that are tried. Pillow knows more, and some of those start external programs.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
Image.init()
_READABLE = tuple(name for name in _FORMATS if name in Image.OPEN)
# Formats that open as 32-bit integers where they hold 16 bits.
_16_BIT_FORMATS = ("PNG", "PPM")

_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Image size for decoding checks.
_CHECK_SIZE = 64


def decode_image(data: bytes, size: int, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes an image and resizes it to a square, with antialiasing and without a crop.

    The resize is that of the Hugging Face image processors (Pillow's bicubic on uint8). A JPEG larger than needed is
    first scaled down by its own decoder and then by an area filter; on photos the result differs from the bicubic of
    all pixels by about one level of 255 on average. Orientation and colour are those of `upright_rgb`; an animation
    gives its first frame.

    Args:
        data: the encoded image (JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF or JPEG 2000).
        size: side of the result in pixels.
        max_pixels: larger images are refused without being decoded.

    Returns:
        [size, size, 3] uint8 RGB.

    Raises:
        BadRecordError: the image is too large, truncated, corrupt, or in an unsupported format or mode.
    """
    with decoding("the image"), _open_image(data, max_pixels) as image:
        square = _scaled_jpeg(data, image, size)
        if square is None:
            image.draft(None, (size, size))
            image.load()  # a damaged file is found here: reading its orientation would hide the error
            square = np.array(_to_rgb(image).resize((size, size), Image.Resampling.BICUBIC))
        # A square may be turned after the resize, which is cheaper and gives the same.
        turn = _turn(image)
        return square if turn is None else np.array(Image.fromarray(square).transpose(turn))


def decode_small(data: bytes, side: int, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes an image for a thumbnail: upright RGB that fits into a square of `side` pixels.

    Raises:
        BadRecordError: as `decode_image`.
    """
    with decoding("the image"), _open_image(data, max_pixels) as image:
        image.draft(None, (2 * side, 2 * side))  # a JPEG is decoded at a fraction of its size
        image.load()
        small = upright_rgb(image)
        small.thumbnail((side, side))
        return small


def encode_opened(image: Image.Image) -> bytes:
    """Encodes an image that Pillow holds; `decode_image` gives of it what it gives of its file.

    An image that was opened and not decoded yet is its file; others are encoded as PNG, upright and in RGB.

    Raises:
        BadRecordError: the image cannot be read, or its range of values is unknown.
    """
    with decoding("the image"):
        if isinstance(image, ImageFile.ImageFile) and image.tile and image.fp and image.tell() == 0:
            image.fp.seek(0)
            return image.fp.read()
        image.load()
        return encode_image(np.asarray(upright_rgb(image)))


def _open_image(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Opens an image as Pillow's `open` does, with our limit in place of the one of the whole process."""
    for name in _READABLE:
        factory, accepts = Image.OPEN[name]
        if accepts is None or accepts(data[:16]) is True:
            with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
                check_data(name, data, max_pixels)
                image = factory(_Watched(data), "")
                check_opened(image, max_pixels)
                return image
    raise UnidentifiedImageError


class _Watched(io.BytesIO):
    """A file in memory, of which nothing is read once the time of the record is over."""

    def read(self, size: int | None = -1) -> bytes:
        check_time()
        return super().read(size)


def _scaled_jpeg(data: bytes, image: Image.Image, size: int) -> np.ndarray | None:
    """Decodes a JPEG at a reduced scale, to [size, size, 3] uint8; None if it is not large enough for that.

    It is also None on a decoder error: Pillow then tells harmless errors from truncated files.
    """
    if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return None
    least = {"min_height": size, "min_width": size}
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data, **least)
        if (width, height) == image.size:
            return None
        pixels = simplejpeg.decode_jpeg(data, "RGB", **least)
    except ValueError:
        return None
    # FFmpeg's scaler takes less than half the time of Pillow's, and its area filter half that of its bicubic.
    # One thread: the worker processes run in parallel already, and more threads would compete with them.
    frame = av.VideoFrame.from_numpy_buffer(pixels, format="rgb24")
    return frame.reformat(size, size, interpolation="AREA", threads=1).to_ndarray()


def check_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> None:
    """Decodes an image to check that it can be decoded.

    Raises:
        BadRecordError: as `decode_image`.
    """
    decode_image(data, _CHECK_SIZE, max_pixels=max_pixels)


def encode_image(pixels: np.ndarray) -> bytes:
    """Encodes pixels as PNG.

    Args:
        pixels: [H, W, 3] or [H, W, 1] uint8.
    """
    out = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def upright_rgb(image: Image.Image) -> Image.Image:
    """Converts a decoded image to upright RGB.

    EXIF orientation is applied, transparency is composed over white, and 16-bit grey is scaled to 8 bits.

    Raises:
        BadRecordError: the image holds numbers whose range is unknown.
    """
    turn, rgb = _turn(image), _to_rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Returns what makes a decoded image upright; a TIFF is upright once it is decoded, and then says so."""
    try:
        return _ORIENTATIONS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except BadRecordError:  # the time is over
        raise
    except Exception as error:  # EXIF is often broken in good pictures, and Pillow raises many types of errors on it
        if is_of_the_machine(error):
            raise
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _16_BIT_FORMATS):
        values = np.asarray(image)
        if 0 < values.max() <= 255:
            raise BadRecordError(
                f"the image has 16 bits, of which its values use only {values.max()} of 65,535: it would be black",
                remedy="Save them in 8 bits, or leave the cell empty",
            )
        # Pillow's own conversion clips at 255.
        return Image.fromarray(np.round(values / np.float32(257)).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = {"I": "32-bit integers", "F": "floating-point numbers"}[image.mode]
        raise BadRecordError(
            f"the image holds {kind}, whose black and white are unknown",
            remedy="Scale them to 8 bits, or leave the cell empty",
        )
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")
