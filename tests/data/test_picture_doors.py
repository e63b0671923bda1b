"""A picture is the same by every door: its path, its bytes, what Pillow opens, and the processor of an export."""

import importlib
import io

import numpy as np
import pytest
from PIL import Image

from sail_jax.config.data import IngestConfig
from sail_jax.data.item_dicts import to_item
from sail_jax.data.media.pictures import decode_image, decode_small
from sail_jax.data.thumbnail import webp_thumbnail
from sail_jax.errors import BadRecordError

SIZE = 16  # no decoder of a JPEG scales the pictures below
RAMP = np.arange(12 * 20).reshape(12, 20)
RGB = np.stack([RAMP, RAMP[::-1], 255 - RAMP], -1).astype(np.uint8)
IMAGES = {
    "RGB": Image.fromarray(RGB),
    "L": Image.fromarray(RAMP.astype(np.uint8)),
    "1": Image.fromarray(RAMP.astype(np.uint8)).convert("1"),
    "P": Image.fromarray(RGB).quantize(16),
    "LA": Image.fromarray(np.stack([RAMP, RAMP[:, ::-1]], -1).astype(np.uint8), "LA"),
    "RGBA": Image.fromarray(np.dstack([RGB, RAMP.astype(np.uint8)])),
    "CMYK": Image.fromarray(RGB).convert("CMYK"),
    "YCbCr": Image.fromarray(RGB).convert("YCbCr"),
    "I;16": Image.fromarray((RAMP * 273).astype(np.uint16)),
    "I;16, small values": Image.fromarray(RAMP.astype(np.uint16)),
    "I": Image.fromarray((RAMP * 273).astype(np.int32)),
    "F": Image.fromarray((RAMP / 239).astype(np.float32)),
}
LOSSLESS = ("PNG", "TIFF", "PPM", "BMP", "GIF")


def written(mode, kind, orientation=1):
    """The bytes of a picture, or None if the format holds no such mode."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    try:
        IMAGES[mode].save(out, kind, **({"exif": exif} if kind in ("PNG", "TIFF", "JPEG", "WEBP") else {}))
    except (OSError, KeyError, ValueError):
        return None
    return out.getvalue()


def by(door, data, path):
    """The pixels by a door, or None if it refuses them."""
    path.write_bytes(data)
    try:
        if door == "bytes":
            return decode_image(data, SIZE)
        if door == "export":
            return np.asarray(processing()._load_frame(str(path), SIZE))
        if door == "opened, export":
            return np.asarray(processing()._load_frame(Image.open(path), SIZE))
        image = {"path": str, "opened": Image.open, "loaded": loaded}[door](path)
        (frame,) = to_item({"image": image}, IngestConfig()).frames
        return decode_image(frame, SIZE)
    except (BadRecordError, ValueError):
        return None


def loaded(path):
    image = Image.open(path)
    image.load()
    return image


def processing():
    pytest.importorskip("torch")
    return importlib.import_module("sail_jax.convert.exported_code.processing_sail_embedding")


DOORS = ("bytes", "path", "opened", "export", "opened, export")


FILES = {(mode, kind): written(mode, kind) for mode in IMAGES for kind in (*LOSSLESS, "JPEG", "WEBP")}


@pytest.mark.parametrize(("mode", "kind"), [case for case, data in FILES.items() if data])
def test_modes_by_every_door(mode, kind, tmp_path):
    data = FILES[mode, kind]
    first, *others = [by(door, data, tmp_path / "picture") for door in (*DOORS, *["loaded"] * (kind in LOSSLESS))]
    for other in others:
        assert (other is None) == (first is None)
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_by_every_door(orientation, kind, tmp_path):
    data = written("RGB", kind, orientation)
    doors = [by(door, data, tmp_path / "picture") for door in (*DOORS, *["loaded"] * (kind in LOSSLESS))]
    upright = by("bytes", written("RGB", kind), tmp_path / "picture")
    turns = {2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.swapaxes(0, 1)}
    turns |= {6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: np.rot90}
    for pixels in doors:
        np.testing.assert_array_equal(pixels, turns.get(orientation, np.asarray)(upright))
    # The thumbnail is the same picture: not square, so that a quarter turn shows in its shape.
    assert decode_small(data, 10).size == ((10, 6) if orientation < 5 else (6, 10))


def test_a_jpeg_that_is_scaled_in_its_decoder_is_the_same_opened(tmp_path):
    """Decoded in full first, it would be another by a level or two."""
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (180, 260, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, "JPEG", quality=95)
    pixels = {door: by(door, out.getvalue(), tmp_path / "picture") for door in (*DOORS, "loaded")}
    for door in ("path", "opened"):
        np.testing.assert_array_equal(pixels[door], pixels["bytes"])
    np.testing.assert_array_equal(pixels["opened, export"], pixels["export"])
    assert (pixels["loaded"] != pixels["bytes"]).any()  # in memory it may have been changed, and is what it is


@pytest.mark.parametrize(
    ("mode", "kind", "message"),
    [
        ("F", "TIFF", "floating-point numbers, whose black and white are unknown.*Scale them to 8 bits"),
        ("I", "TIFF", "32-bit integers, whose black and white are unknown"),
        ("I;16, small values", "PNG", "use only 239 of 65,535: it would be black.*8 bits"),
    ],
)
def test_numbers_of_unknown_range_are_refused(mode, kind, message):
    data = written(mode, kind)
    for image in (data, IMAGES[mode]):
        with pytest.raises(BadRecordError, match=message):
            decode_image(to_item({"image": image}, IngestConfig()).frames[0], SIZE)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF"])
def test_damaged_pixels_are_refused_by_every_door(kind, tmp_path):
    out = io.BytesIO()
    options = {"TIFF": {"compression": "tiff_adobe_deflate"}}.get(kind, {})
    pixels = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind, **options)
    whole = out.getvalue()
    damaged = whole[: len(whole) // 2]
    if kind == "PNG":  # a byte of the compressed pixels
        at = whole.index(b"IDAT") + len(whole) // 2
        damaged = whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :]
    if kind == "TIFF":  # its table of contents stands at the end
        damaged = whole[:900] + bytes(2000) + whole[2900:]
    for door in (*DOORS, "loaded"):
        try:
            assert by(door, damaged, tmp_path / "picture") is None, door
        except OSError:  # Pillow's own, with the name of the file
            assert door != "bytes" and door != "path"
    assert webp_thumbnail(damaged, 16) is None


def test_a_thumbnail_has_the_formats_and_limits_of_training(monkeypatch):
    opened = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: opened.append(1))
    eps = io.BytesIO()
    IMAGES["RGB"].save(eps, "EPS")
    assert webp_thumbnail(eps.getvalue(), 16) is None and not opened
    huge = io.BytesIO()
    Image.new("1", (8000, 7000)).save(huge, "PNG")
    assert webp_thumbnail(huge.getvalue(), 16) is None
    small = Image.open(io.BytesIO(webp_thumbnail(written("RGBA", "PNG"), 10)))
    assert small.size == (10, 6) and np.asarray(small)[0, 0].min() > 200  # nearly transparent: white


def test_importing_changes_no_limit_of_pillow():
    assert Image.MAX_IMAGE_PIXELS is not None
