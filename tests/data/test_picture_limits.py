"""Files that ask their decoder for too much memory or time are refused before it is called; others are read."""

import io
import struct
import zlib

import pytest
from PIL import Image

from sail_jax.data.media.pictures import decode_image
from sail_jax.errors import BadRecordError


def encoded(name, size=(64, 64), frames=1, **options):
    out = io.BytesIO()
    pictures = [Image.new("RGB", size, (number % 256, 200, 0)) for number in range(frames)]
    animated = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
    pictures[0].save(out, name, **animated, **options)
    return out.getvalue()


def webp(kind, body):
    return b"RIFF" + struct.pack("<I", len(body) + 12) + b"WEBP" + kind + struct.pack("<I", len(body)) + body


def canvas(width, height):
    """An animation of no frames, whose header has the size."""
    return webp(b"VP8X", b"\2\0\0\0" + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3])


def replaced(data, after, **fields):
    """The data with 32-bit numbers at some distances from a mark."""
    changed, at = bytearray(data), data.index(after)
    for distance, value in fields.items():
        struct.pack_into(">I", changed, at + int(distance.removeprefix("at")), value)
    return bytes(changed)


def codestream(side, tile=0, precincts=b"", block=4, layers=1, components=1):
    """A JPEG 2000 without boxes, of 8 bits and no content."""

    def segment(marker, body):
        return struct.pack(">HH", marker, len(body) + 2) + body

    tile = tile or side
    size = struct.pack(">H8IH", 0, side, side, 0, 0, tile, tile, 0, 0, components) + b"\7\1\1" * components
    levels = max(0, len(precincts) - 1)
    coding = struct.pack(">BBHBBBBBB", bool(precincts), 0, layers, 0, levels, block, block, 0, 1) + precincts
    content = b"\xff\x93" + bytes(400)
    part = struct.pack(">HHHIBB", 0xFF90, 10, 0, 12 + len(content), 0, 1) + content
    steps = b"\x40" * (3 * levels + 2)
    head = segment(0xFF51, size) + segment(0xFF52, coding) + segment(0xFF5C, steps)
    return b"\xff\x4f" + head + part + b"\xff\xd9"


def tiled_tiff(side, tile):
    """A grey picture in one tile, whose size stands apart from that of the picture."""
    content = zlib.compress(bytes(side * side))
    tags = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 134, 325: len(content)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + content


def lying_avif():
    """A picture of 1,000 x 1,000 pixels, whose header says 64 x 64."""
    return replaced(encoded("AVIF", (1000, 1000), speed=10), b"ispe", at8=64, at12=64)


HUGE = {
    "webp canvas": (canvas(60_000, 60_000), "is 60000 x 60000 pixels"),
    "webp": (webp(b"VP8 ", b"\0\0\0\x9d\1\x2a" + struct.pack("<HH", 16383, 16383)), "is 16383 x 16383"),
    "webp lossless": (webp(b"VP8L", b"\x2f" + struct.pack("<I", (1 << 28) - 1)), "is 16384 x 16384"),
    "avif": (lying_avif(), "a frame of the picture is over the limit of 500,000"),
    "jpeg 2000": (codestream(9000), "is 9000 x 9000"),
    "jpeg 2000, box": (replaced(encoded("JPEG2000"), b"\xff\x4f\xff\x51", at8=9000, at12=9000), "is 9000 x 9000"),
    "tiles": (codestream(255, 1), "made of 65,536 tiles"),
    "components": (codestream(64, components=2000), "made of 2,000 components"),
    "precincts": (codestream(700, precincts=b"\0"), "packets and code blocks"),
    "layers": (codestream(64, precincts=b"\x11" * 6, layers=65535), "packets and code blocks"),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_file_that_asks_for_too_much_is_refused_before_its_decoder_is_called(name, monkeypatch):
    data, message = HUGE[name]

    def decoder(*_):
        raise AssertionError("the decoder was called")

    for read in ("WEBP", "AVIF", "JPEG2000"):
        monkeypatch.setitem(Image.OPEN, read, (decoder, Image.OPEN[read][1]))
    with pytest.raises(BadRecordError, match=message):
        decode_image(data, 32, max_pixels=500_000)


def test_a_tile_of_a_tiff_is_limited_as_the_picture_is():
    assert decode_image(tiled_tiff(64, 64), 32).shape == (32, 32, 3)
    with pytest.raises(BadRecordError, match="is 8000 x 8000 pixels, over the limit"):
        decode_image(tiled_tiff(64, 8000), 32)


@pytest.mark.parametrize("name", ["WEBP", "AVIF", "JPEG2000", "TIFF"])
@pytest.mark.parametrize("size", [(64, 64), (700, 500)])
def test_pictures_within_the_limit_are_read(name, size):
    assert decode_image(encoded(name, size), 32, max_pixels=700 * 500)[16, 16, 1] == pytest.approx(200, abs=3)
    with pytest.raises(BadRecordError, match="over the limit of"):
        decode_image(encoded(name, size), 32, max_pixels=size[0] * size[1] - 1)


@pytest.mark.parametrize("name", ["WEBP", "AVIF", "PNG", "GIF"])
def test_of_an_animation_the_first_frame_is_decoded(name):
    one, many = (decode_image(encoded(name, frames=frames), 16) for frames in (1, 60))
    assert abs(one.astype(int) - many).max() <= 8
