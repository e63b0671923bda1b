"""Refuses pictures that take too much memory or time, before the decoder is called that would take it.

A decoder of WebP, AVIF, JPEG 2000 or TIFF works in one call that nothing interrupts, and takes its memory by what the
data say, of which the size that Pillow shows may be another.
"""

import re
import struct
from collections.abc import Callable, Iterator

import av
from PIL import Image

from sail_jax.data.media.containers import limit_frames, open_container
from sail_jax.data.media.decoding import REPAIR, check_pixels, too_many_pixels
from sail_jax.errors import BadRecordError

# A marker of a JPEG; those in the data of a scan are no markers.
_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
_BEGIN_OF_JPEG, _END_OF_JPEG, _SCAN = b"\xff\xd8", b"\xff\xd9", b"\xff\xda"
# A progressive JPEG has ten or so.
_MOST_SCANS = 100
# What a JPEG 2000 may be made of: one of 50 million pixels in colour has 150,000 code blocks of 32 x 32.
_MOST_TILES, _MOST_PARTS, _MOST_COMPONENTS = 4096, 1 << 18, 4
_BEGIN_OF_CODESTREAM = b"\xff\x4f\xff\x51"
_CODING, _CODING_OF_COMPONENT, _TILE_PART, _DATA, _END_OF_CODESTREAM = 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of a TIFF


def check_data(name: str, data: bytes, max_pixels: int) -> None:
    """Raises BadRecordError if the decoder of a format, called with the data, would take too much.

    Args:
        name: the format, as Pillow calls it.
        data: the encoded picture.
        max_pixels: the most pixels of a picture.
    """
    if name in _CHECKS:
        _CHECKS[name](data, max_pixels)


def check_opened(image: Image.Image, max_pixels: int) -> None:
    """Raises BadRecordError if a picture that Pillow opened, and did not decode, has too many pixels."""
    check_pixels(*image.size, max_pixels)
    if image.format == "TIFF":
        width, height = (image.tag_v2.get(tag, 0) for tag in (_TILE_WIDTH, _TILE_LENGTH))
        check_pixels(int(width), int(height), max_pixels)


def _check_scans(data: bytes, max_pixels: int) -> None:
    """Checks how often a JPEG goes over all its pixels, which a few bytes can make it do."""
    scans, at = 0, 0
    while marker := _JPEG_MARKER.search(data, at):
        at = marker.end()
        if marker[0] == _END_OF_JPEG:
            return
        if marker[0] != _BEGIN_OF_JPEG:  # the others have a length, and may hold what looks like a marker
            at += int.from_bytes(data[at : at + 2], "big")
        scans += marker[0] == _SCAN
        if scans > _MOST_SCANS:
            raise BadRecordError(f"the image has over {_MOST_SCANS} scans", remedy=REPAIR)


def _check_webp(data: bytes, max_pixels: int) -> None:
    """Checks the canvas of a WebP, which its decoder allocates when it opens the file; all frames lie in it."""
    kind, head = data[12:16], data[20:30].ljust(10, b"\0")
    width = height = 0
    if kind == b"VP8X":
        width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (4, 7))
    elif kind == b"VP8 ":
        width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", head, 6))
    elif kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    check_pixels(width, height, max_pixels)


def _check_avif(data: bytes, max_pixels: int) -> None:
    """Decodes the first frame of each stream by FFmpeg, which takes a limit; Pillow's decoder takes none."""
    with open_container(data, max_pixels) as container:
        streams, seen = container.streams.video, set()
        for stream in streams:
            limit_frames(stream, max_pixels)
        for packet in container.demux(streams):
            if packet.stream.index not in seen:
                seen.add(packet.stream.index)
                _decode_within(packet, max_pixels)
        if not seen:
            raise BadRecordError("the image has no frame", remedy=REPAIR)


def _decode_within(packet: av.Packet, max_pixels: int) -> None:
    try:
        packet.decode()
        packet.stream.decode(None)
    except OverflowError as error:  # FFmpeg's, of a frame over its limit
        raise too_many_pixels("a frame of the picture is", max_pixels) from error


def _check_jpeg2000(data: bytes, max_pixels: int) -> None:
    """Checks the codestream of a JPEG 2000, of which the boxes before it may say otherwise."""
    begin = _codestream(data)
    *sizes, components = struct.unpack_from(">8IH", data, begin + 8)
    width, height = max(0, sizes[0] - sizes[2]), max(0, sizes[1] - sizes[3])
    check_pixels(width, height, max_pixels)
    tiles = (width // max(1, sizes[4]) + 1) * (height // max(1, sizes[5]) + 1)
    _check_count(tiles, "tiles", _MOST_TILES)
    _check_count(components, "components", _MOST_COMPONENTS)
    layers = 1
    for marker, segment in _segments(data, begin + 2):
        if marker == _CODING:
            layers = int.from_bytes(segment[2:4], "big")
        coding = segment[:1] + segment[5:] if marker == _CODING else segment[1:]
        parts = _parts(coding, width, height, layers) * components
        _check_count(parts, "packets and code blocks", _MOST_PARTS)


def _check_count(count: int, what: str, most: int) -> None:
    if count > most:
        raise BadRecordError(f"the image is made of {count:,} {what}, over {most:,}", remedy=REPAIR)


def _codestream(data: bytes) -> int:
    """Returns where the codestream of a JPEG 2000 begins: after the boxes before it, if there are any."""
    at = 0
    while not data.startswith(_BEGIN_OF_CODESTREAM, at):
        length, kind = struct.unpack_from(">I4s", data, at)
        head = 16 if length == 1 else 8
        length = int.from_bytes(data[at + 8 : at + 16], "big") if length == 1 else length
        at += head if kind == b"jp2c" else max(length, head)
    return at


def _segments(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """Yields the segments of a codestream, in all its tile parts, that say how it is coded."""
    tile_end = 0
    while at + 4 <= len(data):
        marker, length = struct.unpack_from(">HH", data, at)
        if marker == _TILE_PART:
            tile_end = at + int.from_bytes(data[at + 6 : at + 10], "big")
        if marker == _END_OF_CODESTREAM or (marker == _DATA and tile_end <= at):
            return
        if marker in (_CODING, _CODING_OF_COMPONENT):
            yield marker, data[at + 4 : at + 2 + length]
        at = tile_end if marker == _DATA else at + 2 + length


def _parts(coding: bytes, width: int, height: int, layers: int) -> int:
    """Returns the number of packets and code blocks of one component, or a little more.

    Args:
        coding: style, levels, exponents of a code block's width and height (less 2), its style, the transform, and
            for each level, where the style has it, the exponents of its precincts.
        width: pixels.
        height: pixels.
        layers: of quality.
    """
    if len(coding) < 6:
        return 0
    levels = min(coding[1], 32)
    precincts = coding[6 : 7 + levels] if coding[0] & 1 else b"\xff" * (levels + 1)
    block = 4 << (coding[2] & 15), 4 << (coding[3] & 15)
    parts = -(-width // block[0]) * -(-height // block[1])
    for level, size in enumerate(precincts):
        across, down = ((of >> levels - level) + 1 for of in (width, height))
        parts += ((across >> (size & 15)) + 1) * ((down >> (size >> 4)) + 1) * layers
    return parts


_CHECKS: dict[str, Callable[[bytes, int], None]] = {
    "JPEG": _check_scans,
    "MPO": _check_scans,
    "WEBP": _check_webp,
    "AVIF": _check_avif,
    "JPEG2000": _check_jpeg2000,
}
