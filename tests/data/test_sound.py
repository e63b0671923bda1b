"""Sound: decoding against what was written, limits, and files that are refused."""

import io
import pathlib
import tracemalloc

import av
import numpy as np
import pytest
import soundfile
import soxr
from media_files import av_file, frequency, sine, sound_file
from transformers import ClapFeatureExtractor

from sail_jax.data.media import sound, video
from sail_jax.errors import BadRecordError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_lossless_sound_comes_back_bit_for_bit(kind):
    samples = np.concatenate([RNG.integers(-32768, 32768, 5000), [-32768, 32767, 0]]).astype(np.int16)
    decoded = sound.decode_audio(sound_file(samples, 16_000, kind), 16_000)
    assert decoded.dtype == np.int16
    np.testing.assert_array_equal(decoded, samples)


def test_channels_are_averaged():
    stereo = np.stack([sine(1, 8000), -0.5 * sine(1, 8000)], -1)
    expected = np.round(stereo.mean(1) * 32768)
    np.testing.assert_allclose(sound.decode_audio(sound_file(stereo, 8000), 8000), expected, atol=1)


@pytest.mark.parametrize("rates", [(44_100, 48_000), (48_000, 16_000), (8_000, 48_000)])
def test_resampling_keeps_a_sine(rates):
    decoded = sound.decode_audio(sound_file(sine(1, rates[0]), rates[0]), rates[1])
    expected = sine(1, rates[1]) * 32768
    assert len(decoded) == rates[1]
    edge = rates[1] // 50
    np.testing.assert_allclose(decoded[edge:-edge], expected[edge:-edge], atol=40)


@pytest.mark.parametrize(("kind", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None), ("AIFF", None)])
def test_formats_of_libsndfile(kind, subtype):
    decoded = sound.decode_audio(sound_file(sine(2, 48_000), 48_000, kind, subtype), 16_000)
    assert abs(len(decoded) - 32_000) < 1_200
    assert abs(frequency(decoded, 16_000) - 440) < 2


@pytest.mark.parametrize(("kind", "codec"), [("mp4", "aac"), ("adts", "aac"), ("matroska", "aac")])
def test_formats_of_ffmpeg(kind, codec):
    decoded = sound.decode_audio(av_file(sine(2, 44_100), 44_100, kind=kind, codec=codec), 16_000)
    assert abs(len(decoded) - 32_000) < 1_600
    assert abs(frequency(decoded, 16_000) - 440) < 2
    assert decoded.std() == pytest.approx(16_384 / np.sqrt(2), rel=0.05)


def test_flac_that_does_not_tell_its_length():
    data = bytearray(sound_file(np.arange(4000, dtype=np.int16), 16_000, "FLAC"))
    data[8 + 13] &= 0xF0
    data[8 + 14 : 8 + 18] = bytes(4)  # number of samples in STREAMINFO: unknown
    np.testing.assert_array_equal(sound.decode_audio(bytes(data), 16_000), np.arange(4000))
    with pytest.raises(BadRecordError, match="over the limit of 0 s"):
        sound.decode_audio(bytes(data), 16_000, max_seconds=0.2)


@pytest.mark.parametrize("kind", ["WAV", "OGG", "FLAC", "MP3"])
def test_empty_sound(kind):
    with pytest.raises(BadRecordError, match="no samples|cannot be decoded"):
        sound.decode_audio(sound_file(np.zeros(0, np.float32), 16_000, kind), 16_000)


def test_three_hours_are_refused_undecoded(monkeypatch):
    data = sound_file(np.zeros(3 * 3600 * 100, np.int16), 100)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("the sound was decoded"))
    for check in (sound.check_audio, lambda data: sound.decode_audio(data, 16_000)):
        with pytest.raises(BadRecordError, match="10,800 s long, over the limit of 3,600 s"):
            check(data)


def test_long_aac_is_refused_undecoded(monkeypatch):
    data = av_file(sine(3, 44_100), 44_100)
    monkeypatch.setattr(sound, "_decoded_blocks", lambda *_: pytest.fail("the sound was decoded"))
    with pytest.raises(BadRecordError, match="over the limit of 2 s"):
        sound.check_audio(data, max_seconds=2.0)


def test_length_is_watched_where_no_header_tells_it(monkeypatch):
    monkeypatch.setattr(sound, "stream_seconds", lambda *_: None)
    with pytest.raises(BadRecordError, match="over the limit of 2 s"):
        sound.check_audio(av_file(sine(3, 44_100), 44_100), max_seconds=2.0)


@pytest.mark.parametrize("data", [b"", b"no sound", b"RIFF\xff\xff\xff\xffWAVEfmt ", b"fLaC" + b"\0" * 60])
def test_garbage_is_no_sound(data):
    with pytest.raises(BadRecordError):
        sound.check_audio(data)


def test_only_the_beginning_is_decoded():
    samples = RNG.integers(-9999, 9999, 5 * 16_000).astype(np.int16)
    decoded = sound.decode_audio(sound_file(samples, 16_000), 16_000, keep_seconds=1.5)
    np.testing.assert_array_equal(decoded, samples[:24_000])


def test_encode_audio():
    samples = RNG.integers(-32768, 32768, 3000)
    np.testing.assert_array_equal(sound.decode_audio(sound.encode_audio(samples, 8000), 8000), samples)
    floats = sine(0.5, 8000)
    np.testing.assert_array_equal(sound.decode_audio(sound.encode_audio(floats, 8000), 8000), np.round(floats * 32768))


@pytest.mark.parametrize("length", [1, 700, 4800, 4801, 7000, 9600, 14_399, 14_400])
def test_short_sound_is_repeated_as_in_clap(length):
    extractor = ClapFeatureExtractor(sampling_rate=48_000, max_length_s=0.3)
    samples = RNG.integers(-9999, 9999, length).astype(np.int16)
    clips = sound.clip_audio(samples, 14_400, max_clips=6)
    assert clips.shape == (1, 14_400)
    assert clips.dtype == np.int16

    def mel(waveform):
        return extractor._get_input_mel(waveform / 32768.0, 14_400, "rand_trunc", "repeatpad")[0]

    np.testing.assert_array_equal(mel(clips[0]), mel(samples))


@pytest.mark.parametrize("length", [10, 11, 20, 25, 109, 110])
def test_long_sound_is_cut(length):
    samples = np.arange(1, length + 1, dtype=np.int16)
    out = sound.clip_audio(samples, 10, max_clips=20)
    assert out.shape == (-(-length // 10), 10)  # no rest is shorter than a tenth of 10 samples
    whole = length // 10
    np.testing.assert_array_equal(out[:whole].ravel(), samples[: whole * 10])
    if rest := length % 10:
        repeats = 10 // rest
        np.testing.assert_array_equal(out[-1, : rest * repeats], np.tile(samples[-rest:], repeats))
        assert not out[-1, rest * repeats :].any()


@pytest.mark.parametrize(("rest", "kept"), [(99, False), (100, True)])
def test_a_very_short_rest_is_dropped(rest, kept):
    assert len(sound.clip_audio(np.ones(2000 + rest, np.int16), 1000, max_clips=9)) == 2 + kept


def test_later_clips_are_dropped():
    samples = np.arange(95, dtype=np.int16)
    np.testing.assert_array_equal(sound.clip_audio(samples, 10, max_clips=3).ravel(), samples[:30])


def test_no_samples_make_no_clip():
    with pytest.raises(BadRecordError, match="no samples"):
        sound.clip_audio(np.zeros(0, np.int16), 10, max_clips=3)


def halved(data):
    return data[: len(data) // 2]


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU", "W64", "RF64", "FLAC", "MP3", "CAF"])
def test_half_a_sound_is_refused(kind):
    data = sound_file(sine(3, 48_000), 48_000, kind)
    sound.check_audio(data)
    for check in (sound.check_audio, lambda half: sound.decode_audio(half, 16_000)):
        with pytest.raises(BadRecordError, match="ends after|cannot be decoded"):
            check(halved(data))


def test_sound_that_was_written_to_a_pipe_tells_no_length_and_is_read():
    data = bytearray(sound_file(np.arange(4000, dtype=np.int16), 16_000))
    data[4:8] = data[data.index(b"data") + 4 : data.index(b"data") + 8] = b"\xff" * 4
    np.testing.assert_array_equal(sound.decode_audio(bytes(data), 16_000), np.arange(4000))


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
    assert len(video.video_frames(whole, 4)) == 4
    sound.check_audio(whole.read_bytes())
    for check in (
        lambda: video.video_frames(half, 4),
        lambda: video.video_audio(half),
        lambda: sound.check_audio(half.read_bytes()),
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
        lambda: sound.check_audio(data),
        lambda: sound.decode_audio(data, 16_000),
        lambda: sound.encode_audio(samples, 16_000),
    ):
        with pytest.raises(BadRecordError, match=message):
            check()


def test_float_sound_may_pass_full_scale_by_a_little():
    data = sound_file(np.full(100, 1.5, np.float32), 16_000, "WAV", "FLOAT")
    assert (sound.decode_audio(data, 16_000) == 32767).all()


def test_whole_numbers_beyond_16_bits_are_refused():
    with pytest.raises(BadRecordError, match="up to 70,000, beyond 16 bits"):
        sound.encode_audio(np.array([1, 70_000]), 16_000)


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
        lambda: sound.check_audio(data),
        lambda: video.video_audio(tmp_path / "given"),
        lambda: video.video_frames(tmp_path / "given", 2),
        lambda: video.video_frames(data, 2),
    ):
        with pytest.raises(BadRecordError, match="cannot be decoded|holds no sound"):
            check()
    assert {link.name for link in pathlib.Path("/proc/self/fd").iterdir()} <= before


def test_sound_of_many_channels_takes_bounded_memory(monkeypatch):
    seen, read = [], soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda self, frames, **of: seen.append(frames) or read(self, frames, **of)
    )
    sound.check_audio(sound_file(np.zeros((9000, 200), np.int16), 8000))
    assert max(seen) * 200 <= 1 << 18


def test_sound_at_a_high_rate_takes_the_memory_of_what_comes_out():
    samples = sine(40, 192_000)
    data = sound_file(samples, 192_000, "FLAC")
    expected = sound.to_int16(soxr.resample(np.round(samples * 32768) / np.float32(32768), 192_000, 8000))
    tracemalloc.start()
    try:
        found = sound.decode_audio(data, 8000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, expected)
    assert peak < samples.nbytes / 3
    part = sound.decode_audio(data, 8000, keep_seconds=1.5)
    assert len(part) == 12_000 and np.abs(part[:11_900].astype(int) - expected[:11_900]).max() <= 1
