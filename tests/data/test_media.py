import io
import pathlib
import struct
import time

import av
import numpy as np
import pytest
import soundfile
from PIL import Image, ImageFile, ImageOps
from transformers import ClapFeatureExtractor, SiglipImageProcessorPil

from sail_jax.data import media
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


# ---------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("shape", [(97, 131), (300, 40), (20, 20)])
def test_image_equals_the_hugging_face_processor(shape):
    image = Image.fromarray(RNG.integers(0, 256, (*shape, 3), dtype=np.uint8))
    processor = SiglipImageProcessorPil(
        size={"height": 56, "width": 56}, resample=Image.Resampling.BICUBIC, do_rescale=False, do_normalize=False
    )
    expected = np.asarray(processor(image, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    decoded = media.decode_image(encoded(image), 56)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, expected)


def watched(monkeypatch):
    """The list of images that the JPEG decoder will have given, as (height, width)."""
    shapes, decode = [], media.simplejpeg.decode_jpeg

    def watch(*arguments, **options):
        pixels = decode(*arguments, **options)
        shapes.append(pixels.shape[:2])
        return pixels

    monkeypatch.setattr(media.simplejpeg, "decode_jpeg", watch)
    return shapes


@pytest.mark.parametrize(
    ("size", "scaled"), [((1600, 1200), (300, 400)), ((640, 360), (225, 400)), ((290, 262), (230, 254))]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_large_jpeg_is_scaled_in_its_decoder_and_looks_the_same(monkeypatch, size, scaled, mode, options):
    data = encoded(smooth_image(*size).convert(mode), "JPEG", quality=95, **options)
    shapes = watched(monkeypatch)
    decoded = media.decode_image(data, 224).astype(float)
    assert shapes == [scaled]
    full = Image.open(io.BytesIO(data)).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
    assert np.abs(decoded - np.asarray(full)).mean() < 2.0


@pytest.mark.parametrize("size", [(224, 224), (500, 226), (100, 90)])
def test_jpeg_that_is_not_larger_than_needed_equals_pillow(monkeypatch, size):
    data = encoded(smooth_image(*size), "JPEG", quality=95)
    shapes = watched(monkeypatch)
    expected = Image.open(io.BytesIO(data)).resize((224, 224), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(media.decode_image(data, 224), np.asarray(expected))
    assert not shapes


def test_harmless_bytes_between_the_segments_of_a_jpeg_are_skipped(monkeypatch):
    data = encoded(smooth_image(400, 400), "JPEG", quality=95)
    end = data.rindex(b"\xff\xd9")
    dirty = data[:end] + bytes(8) + data[end:]
    with pytest.raises(ValueError, match="extraneous"):
        media.simplejpeg.decode_jpeg(dirty, "RGB")
    difference = media.decode_image(dirty, 100).astype(float) - media.decode_image(data, 100)
    assert np.abs(difference).mean() < 2.0


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_every_format_is_read(kind):
    decoded = media.decode_image(encoded(flat("RGB", (200, 100, 50), (64, 64)), kind), 16)
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
    assert np.abs(media.decode_image(data, 32) - expected).mean() < (0.1 if kind == "PNG" else 3.0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_beside_sound_pixels_is_ignored():
    data = encoded(flat("RGB", "red", (32, 32)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    assert media.decode_image(data, 8)[0, 0, 0] > 250


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
    decoded = media.decode_image(encoded(image, **options), 4)
    assert np.abs(decoded.astype(int) - expected).max() <= 1


def test_sixteen_bit_pgm_is_scaled_not_clipped():
    data = b"P5 2 2 65535\n" + np.array([0, 65535, 32896, 32896], ">u2").tobytes()
    assert Image.open(io.BytesIO(data)).mode in ("I", "I;16")
    np.testing.assert_allclose(media.decode_image(data, 2)[..., 0], [[0, 255], [128, 128]], atol=1)


def test_cmyk_jpeg():
    # Full cyan, no ink otherwise.
    decoded = media.decode_image(encoded(flat("CMYK", (255, 0, 0, 0), (32, 32)), "JPEG"), 8)
    assert np.abs(decoded.astype(int) - (0, 255, 255)).max() <= 3


def test_huge_image_is_refused_undecoded(monkeypatch):
    data = encoded(Image.new("1", (16_000, 16_000)))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("the image was decoded"))
    began = time.perf_counter()
    with pytest.raises(BadRecordError, match="16000 x 16000 pixels, over the limit of 50,000,000"):
        media.check_image(data)
    assert time.perf_counter() - began < 1.0


def test_limit_of_pixels_is_the_setting_alone(recwarn):
    data = encoded(Image.new("1", (9_500, 9_500)))  # Pillow would warn
    media.check_image(data, max_pixels=9_500**2)
    assert not recwarn.list
    with pytest.raises(BadRecordError):
        media.check_image(data, max_pixels=9_500**2 - 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [64, 200])  # a JPEG is scaled in its decoder, and not
def test_truncated_image(kind, size):
    data = encoded(smooth_image(200, 200), kind)
    media.decode_image(data, size)
    with pytest.raises(BadRecordError, match="cannot be decoded"):
        media.decode_image(data[: len(data) // 2], size)


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
        media.check_image(data)


def test_floating_point_image_is_refused():
    with pytest.raises(BadRecordError, match="floating-point"):
        media.check_image(encoded(flat("F", 0.5), "TIFF"))


@pytest.mark.parametrize("channels", [1, 3])
def test_encode_image_is_lossless(channels):
    pixels = RNG.integers(0, 256, (16, 16, channels), dtype=np.uint8)
    np.testing.assert_array_equal(
        media.decode_image(media.encode_image(pixels), 16), np.broadcast_to(pixels, (16, 16, 3))
    )


# ----------------------------------------------------------------------------------------------------------- sound


def sine(seconds, rate, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def sound_file(samples, rate, kind="WAV", subtype=None):
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=kind, subtype=subtype)
    return out.getvalue()


def av_file(samples, rate, *, kind="mp4", codec="aac"):
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        add_sound(container, container.add_stream(codec, rate=rate, layout="mono"), samples, rate)
    return out.getvalue()


def add_sound(container, stream, samples, rate):
    for first in range(0, len(samples), 1024):
        chunk = np.ascontiguousarray(samples[first : first + 1024])[None]
        frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, first
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def frequency(samples, rate):
    return np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_lossless_sound_comes_back_bit_for_bit(kind):
    samples = np.concatenate([RNG.integers(-32768, 32768, 5000), [-32768, 32767, 0]]).astype(np.int16)
    decoded = media.decode_audio(sound_file(samples, 16_000, kind), 16_000)
    assert decoded.dtype == np.int16
    np.testing.assert_array_equal(decoded, samples)


def test_channels_are_averaged():
    stereo = np.stack([sine(1, 8000), -0.5 * sine(1, 8000)], -1)
    expected = np.round(stereo.mean(1) * 32768)
    np.testing.assert_allclose(media.decode_audio(sound_file(stereo, 8000), 8000), expected, atol=1)


@pytest.mark.parametrize("rates", [(44_100, 48_000), (48_000, 16_000), (8_000, 48_000)])
def test_resampling_keeps_a_sine(rates):
    decoded = media.decode_audio(sound_file(sine(1, rates[0]), rates[0]), rates[1])
    expected = sine(1, rates[1]) * 32768
    assert len(decoded) == rates[1]
    edge = rates[1] // 50
    np.testing.assert_allclose(decoded[edge:-edge], expected[edge:-edge], atol=40)


@pytest.mark.parametrize(("kind", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None), ("AIFF", None)])
def test_formats_of_libsndfile(kind, subtype):
    decoded = media.decode_audio(sound_file(sine(2, 48_000), 48_000, kind, subtype), 16_000)
    assert abs(len(decoded) - 32_000) < 1_200
    assert abs(frequency(decoded, 16_000) - 440) < 2


@pytest.mark.parametrize(("kind", "codec"), [("mp4", "aac"), ("adts", "aac"), ("matroska", "aac")])
def test_formats_of_ffmpeg(kind, codec):
    decoded = media.decode_audio(av_file(sine(2, 44_100), 44_100, kind=kind, codec=codec), 16_000)
    assert abs(len(decoded) - 32_000) < 1_600
    assert abs(frequency(decoded, 16_000) - 440) < 2
    assert decoded.std() == pytest.approx(16_384 / np.sqrt(2), rel=0.05)


def test_flac_that_does_not_tell_its_length():
    data = bytearray(sound_file(np.arange(4000, dtype=np.int16), 16_000, "FLAC"))
    data[8 + 13] &= 0xF0
    data[8 + 14 : 8 + 18] = bytes(4)  # number of samples in STREAMINFO: unknown
    np.testing.assert_array_equal(media.decode_audio(bytes(data), 16_000), np.arange(4000))
    with pytest.raises(BadRecordError, match="over the limit of 0 s"):
        media.decode_audio(bytes(data), 16_000, max_seconds=0.2)


@pytest.mark.parametrize("kind", ["WAV", "OGG", "FLAC", "MP3"])
def test_empty_sound(kind):
    with pytest.raises(BadRecordError, match="no samples|cannot be decoded"):
        media.decode_audio(sound_file(np.zeros(0, np.float32), 16_000, kind), 16_000)


def test_three_hours_are_refused_undecoded(monkeypatch):
    data = sound_file(np.zeros(3 * 3600 * 100, np.int16), 100)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("the sound was decoded"))
    for check in (media.check_audio, lambda data: media.decode_audio(data, 16_000)):
        with pytest.raises(BadRecordError, match="10,800 s long, over the limit of 3,600 s"):
            check(data)


def test_long_aac_is_refused_undecoded(monkeypatch):
    data = av_file(sine(3, 44_100), 44_100)
    monkeypatch.setattr(media, "_decoded_blocks", lambda *_: pytest.fail("the sound was decoded"))
    with pytest.raises(BadRecordError, match="over the limit of 2 s"):
        media.check_audio(data, max_seconds=2.0)


def test_length_is_watched_where_no_header_tells_it(monkeypatch):
    monkeypatch.setattr(media, "_stream_seconds", lambda *_: None)
    with pytest.raises(BadRecordError, match="over the limit of 2 s"):
        media.check_audio(av_file(sine(3, 44_100), 44_100), max_seconds=2.0)


@pytest.mark.parametrize("data", [b"", b"no sound", b"RIFF\xff\xff\xff\xffWAVEfmt ", b"fLaC" + b"\0" * 60])
def test_garbage_is_no_sound(data):
    with pytest.raises(BadRecordError):
        media.check_audio(data)


def test_only_the_beginning_is_decoded():
    samples = RNG.integers(-9999, 9999, 5 * 16_000).astype(np.int16)
    decoded = media.decode_audio(sound_file(samples, 16_000), 16_000, keep_seconds=1.5)
    np.testing.assert_array_equal(decoded, samples[:24_000])


def test_encode_audio():
    samples = RNG.integers(-32768, 32768, 3000)
    np.testing.assert_array_equal(media.decode_audio(media.encode_audio(samples, 8000), 8000), samples)
    floats = sine(0.5, 8000)
    np.testing.assert_array_equal(media.decode_audio(media.encode_audio(floats, 8000), 8000), np.round(floats * 32768))


@pytest.mark.parametrize("length", [1, 700, 4800, 4801, 7000, 9600, 14_399, 14_400])
def test_short_sound_is_repeated_as_in_clap(length):
    extractor = ClapFeatureExtractor(sampling_rate=48_000, max_length_s=0.3)
    samples = RNG.integers(-9999, 9999, length).astype(np.int16)
    clips = media.clip_audio(samples, 14_400, max_clips=6)
    assert clips.shape == (1, 14_400)
    assert clips.dtype == np.int16

    def mel(waveform):
        return extractor._get_input_mel(waveform / 32768.0, 14_400, "rand_trunc", "repeatpad")[0]

    np.testing.assert_array_equal(mel(clips[0]), mel(samples))


@pytest.mark.parametrize("length", [10, 11, 20, 25, 109, 110])
def test_long_sound_is_cut(length):
    samples = np.arange(1, length + 1, dtype=np.int16)
    out = media.clip_audio(samples, 10, max_clips=20)
    assert out.shape == (-(-length // 10), 10)  # no rest is shorter than a tenth of 10 samples
    whole = length // 10
    np.testing.assert_array_equal(out[:whole].ravel(), samples[: whole * 10])
    if rest := length % 10:
        repeats = 10 // rest
        np.testing.assert_array_equal(out[-1, : rest * repeats], np.tile(samples[-rest:], repeats))
        assert not out[-1, rest * repeats :].any()


@pytest.mark.parametrize(("rest", "kept"), [(99, False), (100, True)])
def test_a_very_short_rest_is_dropped(rest, kept):
    assert len(media.clip_audio(np.ones(2000 + rest, np.int16), 1000, max_clips=9)) == 2 + kept


def test_later_clips_are_dropped():
    samples = np.arange(95, dtype=np.int16)
    np.testing.assert_array_equal(media.clip_audio(samples, 10, max_clips=3).ravel(), samples[:30])


def test_no_samples_make_no_clip():
    with pytest.raises(BadRecordError, match="no samples"):
        media.clip_audio(np.zeros(0, np.int16), 10, max_clips=3)


# ----------------------------------------------------------------------------------------------------------- video


def make_video(path, *, frames=50, rate=10, sound=None, size=(64, 48), rotation=0):
    """A video whose frame i is a flat grey of 4 * i, with its left upper quarter white."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.bit_rate, stream.gop_size = 4_000_000, 12
        if rotation:
            stream.set_display_rotation(rotation)
        audio = None if sound is None else container.add_stream("aac", rate=44_100, layout="mono")
        for i in range(frames):
            pixels = np.full((size[1], size[0], 3), 4 * i, np.uint8)
            pixels[: size[1] // 2, : size[0] // 2] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
        if audio is not None:
            add_sound(container, audio, sound, 44_100)
    return path


def greys(frames):
    return [np.asarray(Image.open(io.BytesIO(frame)))[-10:, -10:].mean() / 4 for frame in frames]


@pytest.mark.parametrize("as_bytes", [False, True])
def test_frames_are_evenly_spaced(tmp_path, as_bytes):
    path = make_video(tmp_path / "video.mp4")
    frames = media.video_frames(path.read_bytes() if as_bytes else path, 5)
    assert Image.open(io.BytesIO(frames[0])).size == (64, 48)
    np.testing.assert_allclose(greys(frames), [5, 15, 25, 35, 45], atol=1)


def test_frames_where_no_header_tells_the_length(tmp_path, monkeypatch):
    path = make_video(tmp_path / "video.mkv")
    monkeypatch.setattr(media, "_stream_seconds", lambda *_: None)
    # How long the last frame is shown is not known, so that the stretches are a little shorter.
    np.testing.assert_allclose(greys(media.video_frames(path, 5)), [5, 15, 25, 35, 45], atol=1.5)


def test_short_video_gives_each_frame_once(tmp_path):
    frames = media.video_frames(make_video(tmp_path / "video.mp4", frames=3), 8)
    np.testing.assert_allclose(greys(frames), [0, 1, 2], atol=0.6)


@pytest.mark.parametrize(("rotation", "corner"), [(90, (-1, 0)), (-90, (0, -1)), (180, (-1, -1))])
def test_rotated_video_is_turned_upright(tmp_path, rotation, corner):
    path = make_video(tmp_path / "video.mp4", frames=5, rotation=rotation)
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0)).rotation
    image = Image.open(io.BytesIO(media.video_frames(path, 1)[0]))
    pixels = np.asarray(image.convert("L"))
    assert image.size == ((64, 48) if abs(rotation) == 180 else (48, 64))
    # FFmpeg's display rotation counts anticlockwise: turned by 90 degrees, the upper left corner comes to lie below.
    assert stored % 360 == rotation % 360
    assert pixels[corner] > 200
    assert np.sum(pixels > 200) < 0.35 * pixels.size


def test_sound_of_a_video(tmp_path):
    data = media.video_audio(make_video(tmp_path / "video.mp4", sound=sine(3, 44_100)))
    assert soundfile.info(io.BytesIO(data)).samplerate == 44_100
    decoded = media.decode_audio(data, 44_100)
    assert abs(len(decoded) - 3 * 44_100) < 4_000
    assert abs(frequency(decoded, 44_100) - 440) < 2


def test_silent_video_has_no_sound(tmp_path):
    assert media.video_audio(make_video(tmp_path / "video.mp4", frames=3)) is None


def test_bad_videos(tmp_path):
    with pytest.raises(BadRecordError, match="cannot be decoded"):
        media.video_frames(b"no video", 3)
    with pytest.raises(BadRecordError, match="holds no video"):
        media.video_frames(sound_file(sine(1, 8000), 8000), 3)
    path = make_video(tmp_path / "video.mp4", sound=sine(3, 44_100))
    with pytest.raises(BadRecordError, match="64 x 48 pixels"):
        media.video_frames(path, 3, max_pixels=3000)
    with pytest.raises(BadRecordError, match="over the limit of 2 s"):
        media.video_audio(path, max_seconds=2.0)
    with pytest.raises(BadRecordError):
        media.video_frames(path.read_bytes()[:2000], 3)


def halved(data):
    return data[: len(data) // 2]


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU", "W64", "RF64", "FLAC", "MP3", "CAF"])
def test_half_a_sound_is_refused(kind):
    data = sound_file(sine(3, 48_000), 48_000, kind)
    media.check_audio(data)
    for check in (media.check_audio, lambda half: media.decode_audio(half, 16_000)):
        with pytest.raises(BadRecordError, match="ends after|cannot be decoded"):
            check(halved(data))


def test_sound_that_was_written_to_a_pipe_tells_no_length_and_is_read():
    data = bytearray(sound_file(np.arange(4000, dtype=np.int16), 16_000))
    data[4:8] = data[data.index(b"data") + 4 : data.index(b"data") + 8] = b"\xff" * 4
    np.testing.assert_array_equal(media.decode_audio(bytes(data), 16_000), np.arange(4000))


@pytest.mark.parametrize("kind", ["matroska", "avi", "mp4", "flv"])
def test_half_a_container_is_refused(kind, tmp_path):
    whole, half = tmp_path / "whole", tmp_path / "half"
    out = io.BytesIO()
    options = {"movflags": "faststart"} if kind == "mp4" else {}
    with av.open(out if kind != "mp4" else str(whole), "w", format=kind, options=options) as container:
        stream = container.add_stream("flv1" if kind == "flv" else "mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("aac", rate=44_100, layout="mono")
        for i in range(50):
            pixels = RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            add_sound_part(container, audio, sine(5, 44_100), i)
        container.mux(stream.encode(None))
        container.mux(audio.encode(None))
    if kind != "mp4":
        whole.write_bytes(out.getvalue())
    half.write_bytes(halved(whole.read_bytes()))
    assert len(media.video_frames(whole, 4)) == 4
    media.check_audio(whole.read_bytes())
    for check in (
        lambda: media.video_frames(half, 4),
        lambda: media.video_audio(half),
        lambda: media.check_audio(half.read_bytes()),
    ):
        with pytest.raises(BadRecordError, match="ends after|cannot be decoded"):
            check()


def add_sound_part(container, stream, samples, part):
    """Adds a tenth of a second of sound, so that sound and frames lie side by side."""
    for first in range(part * 4410, (part + 1) * 4410, 1024):
        chunk = np.ascontiguousarray(samples[first : min(first + 1024, (part + 1) * 4410)])[None]
        frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 44_100, first
        container.mux(stream.encode(frame))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.array([0.1, np.nan, 0.1]), "no finite numbers"),
        (np.array([0.1, -np.inf, 0.1]), "no finite numbers"),
        (np.array([0.0, 12_000.0, -9.0]), "floating-point samples up to 12,000, where full scale is 1.*32768"),
    ],
)
def test_samples_that_are_no_sound_are_refused(samples, message):
    data = sound_file(np.tile(samples, 500).astype(np.float32), 16_000, "WAV", "FLOAT")
    for check in (
        lambda: media.check_audio(data),
        lambda: media.decode_audio(data, 16_000),
        lambda: media.encode_audio(samples, 16_000),
    ):
        with pytest.raises(BadRecordError, match=message):
            check()


def test_float_sound_may_pass_full_scale_by_a_little():
    data = sound_file(np.full(100, 1.5, np.float32), 16_000, "WAV", "FLOAT")
    assert (media.decode_audio(data, 16_000) == 32767).all()


def test_whole_numbers_beyond_16_bits_are_refused():
    with pytest.raises(BadRecordError, match="up to 70,000, beyond 16 bits"):
        media.encode_audio(np.array([1, 70_000]), 16_000)


SDP = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 40404 RTP/AVP 0\n"


@pytest.mark.parametrize("kind", ["sdp", "ffconcat", "hls"])
def test_a_container_opens_no_socket_and_no_other_file(kind, tmp_path, monkeypatch):
    (tmp_path / "other.wav").write_bytes(sound_file(sine(1, 8000), 8000))
    other = f"file:{tmp_path / 'other.wav'}"
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n".encode()
    data = {"sdp": SDP, "ffconcat": f"ffconcat version 1.0\nfile '{other}'\n".encode(), "hls": playlist}[kind]
    (tmp_path / "given").write_bytes(data)
    before = {link.name for link in pathlib.Path("/proc/self/fd").iterdir()}
    for check in (
        lambda: media.check_audio(data),
        lambda: media.video_audio(tmp_path / "given"),
        lambda: media.video_frames(tmp_path / "given", 2),
        lambda: media.video_frames(data, 2),
    ):
        with pytest.raises(BadRecordError, match="cannot be decoded|holds no sound"):
            check()
    assert {link.name for link in pathlib.Path("/proc/self/fd").iterdir()} <= before


def test_a_frame_larger_than_the_header_says_is_refused(tmp_path):
    """The header of the container says 64 x 48, its frames are 640 x 480."""
    path = make_video(tmp_path / "video.avi", frames=20, size=(640, 480))
    data = path.read_bytes()
    small = data.replace(struct.pack("<II", 640, 480), struct.pack("<II", 64, 48))
    assert small != data
    with pytest.raises(BadRecordError):
        media.video_frames(small, 2, max_pixels=10_000)


def test_a_file_that_takes_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(media, "_MAX_DECODING", -1.0)
    path = make_video(tmp_path / "video.mp4", sound=sine(3, 44_100))
    for check in (lambda: media.video_frames(path, 2), lambda: media.video_audio(path)):
        with pytest.raises(BadRecordError, match="s to decode"):
            check()


def test_sound_of_many_channels_takes_bounded_memory(monkeypatch):
    seen, read = [], soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda self, frames, **of: seen.append(frames) or read(self, frames, **of)
    )
    media.check_audio(sound_file(np.zeros((9000, 200), np.int16), 8000))
    assert max(seen) * 200 <= 1 << 18
