"""Pictures: decoding against Pillow and transformers, limits, and files that are refused."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps
from transformers import SiglipImageProcessorPil

from sail_jax.data.media import pictures
from sail_jax.errors import BadRecordError

RNG = np.random.default_rng(0)


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def smooth_image(width, height):
    """A picture with detail at several scales, but without pixel noise, as a photo has."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + y / 17), np.cos(x / 31), np.sin((x + 2 * y) / 47)]
    return Image.fromarray(np.stack([127 + 120 * wave for wave in waves], -1).astype(np.uint8))


def flat(mode, color, size=(6, 4)):
    return Image.new(mode, size, color)


@pytest.mark.parametrize("shape", [(97, 131), (300, 40), (20, 20)])
def test_image_equals_the_hugging_face_processor(shape):
    image = Image.fromarray(RNG.integers(0, 256, (*shape, 3), dtype=np.uint8))
    processor = SiglipImageProcessorPil(
        size={"height": 56, "width": 56}, resample=Image.Resampling.BICUBIC, do_rescale=False, do_normalize=False
    )
    expected = np.asarray(processor(image, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    decoded = pictures.decode_image(encoded(image), 56)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, expected)


def watched(monkeypatch):
    """The list of images that the JPEG decoder will have given, as (height, width)."""
    shapes, decode = [], pictures.simplejpeg.decode_jpeg

    def watch(*arguments, **options):
        pixels = decode(*arguments, **options)
        shapes.append(pixels.shape[:2])
        return pixels

    monkeypatch.setattr(pictures.simplejpeg, "decode_jpeg", watch)
    return shapes


@pytest.mark.parametrize(
    ("size", "scaled"), [((1600, 1200), (300, 400)), ((640, 360), (225, 400)), ((290, 262), (230, 254))]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_large_jpeg_is_scaled_in_its_decoder_and_looks_the_same(monkeypatch, size, scaled, mode, options):
    data = encoded(smooth_image(*size).convert(mode), "JPEG", quality=95, **options)
    shapes = watched(monkeypatch)
    decoded = pictures.decode_image(data, 224).astype(float)
    assert shapes == [scaled]
    full = Image.open(io.BytesIO(data)).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
    assert np.abs(decoded - np.asarray(full)).mean() < 2.0


@pytest.mark.parametrize("size", [(224, 224), (500, 226), (100, 90)])
def test_jpeg_that_is_not_larger_than_needed_equals_pillow(monkeypatch, size):
    data = encoded(smooth_image(*size), "JPEG", quality=95)
    shapes = watched(monkeypatch)
    expected = Image.open(io.BytesIO(data)).resize((224, 224), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pictures.decode_image(data, 224), np.asarray(expected))
    assert not shapes


def test_harmless_bytes_between_the_segments_of_a_jpeg_are_skipped(monkeypatch):
    data = encoded(smooth_image(400, 400), "JPEG", quality=95)
    end = data.rindex(b"\xff\xd9")
    dirty = data[:end] + bytes(8) + data[end:]
    with pytest.raises(ValueError, match="extraneous"):
        pictures.simplejpeg.decode_jpeg(dirty, "RGB")
    difference = pictures.decode_image(dirty, 100).astype(float) - pictures.decode_image(data, 100)
    assert np.abs(difference).mean() < 2.0


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_every_format_is_read(kind):
    decoded = pictures.decode_image(encoded(flat("RGB", (200, 100, 50), (64, 64)), kind), 16)
    assert np.abs(decoded.astype(int) - (200, 100, 50)).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth_image(64, 64), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    expected = np.asarray(upright.resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    # The decoder of a JPEG halves it in its own way.
    assert np.abs(pictures.decode_image(data, 32) - expected).mean() < (0.1 if kind == "PNG" else 3.0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_beside_sound_pixels_is_ignored():
    data = encoded(flat("RGB", "red", (32, 32)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    assert pictures.decode_image(data, 8)[0, 0, 0] > 250


TRANSPARENT_PALETTE = flat("P", 0)
TRANSPARENT_PALETTE.putpalette([0, 0, 255, 255, 0, 0])


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (flat("RGBA", (255, 0, 0, 0)), {}, (255, 255, 255)),
        (flat("RGBA", (255, 0, 0, 128)), {}, (255, 127, 127)),
        (flat("RGBA", (255, 0, 0, 255)), {}, (255, 0, 0)),
        (flat("LA", (0, 64)), {}, (191, 191, 191)),
        (TRANSPARENT_PALETTE, {}, (0, 0, 255)),
        (TRANSPARENT_PALETTE, {"transparency": 0}, (255, 255, 255)),
        (flat("RGB", (9, 9, 9)), {"transparency": (9, 9, 9)}, (255, 255, 255)),
        (flat("L", 77), {}, (77, 77, 77)),
        (flat("1", 1), {}, (255, 255, 255)),
        (flat("I;16", 65535), {}, (255, 255, 255)),
        (flat("I;16", 32896), {}, (128, 128, 128)),
        (flat("I;16", 300), {}, (1, 1, 1)),
    ],
)
def test_modes_of_png(image, options, expected):
    decoded = pictures.decode_image(encoded(image, **options), 4)
    assert np.abs(decoded.astype(int) - expected).max() <= 1


def test_sixteen_bit_pgm_is_scaled_not_clipped():
    data = b"P5 2 2 65535\n" + np.array([0, 65535, 32896, 32896], ">u2").tobytes()
    assert Image.open(io.BytesIO(data)).mode in ("I", "I;16")
    np.testing.assert_allclose(pictures.decode_image(data, 2)[..., 0], [[0, 255], [128, 128]], atol=1)


def test_cmyk_jpeg():
    # Full cyan, no ink otherwise.
    decoded = pictures.decode_image(encoded(flat("CMYK", (255, 0, 0, 0), (32, 32)), "JPEG"), 8)
    assert np.abs(decoded.astype(int) - (0, 255, 255)).max() <= 3


def test_huge_image_is_refused_undecoded(monkeypatch):
    data = encoded(Image.new("1", (16_000, 16_000)))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("the image was decoded"))
    with pytest.raises(BadRecordError, match="16000 x 16000 pixels, over the limit of 50,000,000"):
        pictures.check_image(data)


def test_limit_of_pixels_is_the_setting_alone(recwarn):
    data = encoded(Image.new("1", (9_500, 9_500)))  # Pillow would warn
    pictures.check_image(data, max_pixels=9_500**2)
    assert not recwarn.list
    with pytest.raises(BadRecordError):
        pictures.check_image(data, max_pixels=9_500**2 - 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [64, 200])  # a JPEG is scaled in its decoder, and not
def test_truncated_image(kind, size):
    data = encoded(smooth_image(200, 200), kind)
    pictures.decode_image(data, size)
    with pytest.raises(BadRecordError, match="cannot be decoded"):
        pictures.decode_image(data[: len(data) // 2], size)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image",
        b"\xff\xd8\xff\xe0corrupt JPEG" * 9,
        b"\x89PNG\r\n\x1a\n" + b"\0" * 99,
        encoded(flat("RGB", "red"), "PCX"),  # Pillow reads it; it isn't among the formats that we do
    ],
)
def test_garbage_is_no_image(data):
    with pytest.raises(BadRecordError, match="cannot be decoded"):
        pictures.check_image(data)


def test_floating_point_image_is_refused():
    with pytest.raises(BadRecordError, match="floating-point"):
        pictures.check_image(encoded(flat("F", 0.5), "TIFF"))


@pytest.mark.parametrize("channels", [1, 3])
def test_encode_image_is_lossless(channels):
    pixels = RNG.integers(0, 256, (16, 16, channels), dtype=np.uint8)
    np.testing.assert_array_equal(
        pictures.decode_image(pictures.encode_image(pixels), 16), np.broadcast_to(pixels, (16, 16, 3))
    )
