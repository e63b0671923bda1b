"""Frames and sound of videos, and files that are refused."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
from media_files import frequency, make_video, sine, sound_file
from PIL import Image

from sail_jax.data.media import containers, sound, video
from sail_jax.errors import BadRecordError


def greys(frames):
    return [np.asarray(Image.open(io.BytesIO(frame)))[-10:, -10:].mean() / 4 for frame in frames]


@pytest.mark.parametrize("as_bytes", [False, True])
def test_frames_are_evenly_spaced(tmp_path, as_bytes):
    path = make_video(tmp_path / "video.mp4")
    frames = video.video_frames(path.read_bytes() if as_bytes else path, 5)
    assert Image.open(io.BytesIO(frames[0])).size == (64, 48)
    np.testing.assert_allclose(greys(frames), [5, 15, 25, 35, 45], atol=1)


def test_frames_where_no_header_tells_the_length(tmp_path, monkeypatch):
    path = make_video(tmp_path / "video.mkv")
    monkeypatch.setattr(video, "stream_seconds", lambda *_: None)
    # How long the last frame is shown is not known, so that the stretches are a little shorter.
    np.testing.assert_allclose(greys(video.video_frames(path, 5)), [5, 15, 25, 35, 45], atol=1.5)


def test_short_video_gives_each_frame_once(tmp_path):
    frames = video.video_frames(make_video(tmp_path / "video.mp4", frames=3), 8)
    np.testing.assert_allclose(greys(frames), [0, 1, 2], atol=0.6)


@pytest.mark.parametrize(("rotation", "corner"), [(90, (-1, 0)), (-90, (0, -1)), (180, (-1, -1))])
def test_rotated_video_is_turned_upright(tmp_path, rotation, corner):
    path = make_video(tmp_path / "video.mp4", frames=5, rotation=rotation)
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0)).rotation
    image = Image.open(io.BytesIO(video.video_frames(path, 1)[0]))
    pixels = np.asarray(image.convert("L"))
    assert image.size == ((64, 48) if abs(rotation) == 180 else (48, 64))
    # FFmpeg's display rotation counts anticlockwise: turned by 90 degrees, the upper left corner comes to lie below.
    assert stored % 360 == rotation % 360
    assert pixels[corner] > 200
    assert np.sum(pixels > 200) < 0.35 * pixels.size


def test_sound_of_a_video(tmp_path):
    data = video.video_audio(make_video(tmp_path / "video.mp4", sound=sine(3, 44_100)))
    assert soundfile.info(io.BytesIO(data)).samplerate == 44_100
    decoded = sound.decode_audio(data, 44_100)
    assert abs(len(decoded) - 3 * 44_100) < 4_000
    assert abs(frequency(decoded, 44_100) - 440) < 2


def test_silent_video_has_no_sound(tmp_path):
    assert video.video_audio(make_video(tmp_path / "video.mp4", frames=3)) is None


def test_bad_videos(tmp_path):
    with pytest.raises(BadRecordError, match="cannot be decoded"):
        video.video_frames(b"no video", 3)
    with pytest.raises(BadRecordError, match="holds no video"):
        video.video_frames(sound_file(sine(1, 8000), 8000), 3)
    path = make_video(tmp_path / "video.mp4", sound=sine(3, 44_100))
    with pytest.raises(BadRecordError, match="over the limit of 3,000"):
        video.video_frames(path, 3, max_pixels=3000)
    with pytest.raises(BadRecordError, match="over the limit of 2 s"):
        video.video_audio(path, max_seconds=2.0)
    with pytest.raises(BadRecordError):
        video.video_frames(path.read_bytes()[:2000], 3)


def test_a_frame_that_is_larger_than_those_before_is_refused(tmp_path):
    """What the header and the first frames say is within the limit."""
    path = tmp_path / "video.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 64, 48, "yuvj420p", Fraction(1, 10)
        for number, (width, height) in enumerate([(64, 48)] * 10 + [(640, 480)] * 10):
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuvj420p"
            encoder.time_base = Fraction(1, 10)
            frame = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24")
            for packet in encoder.encode(frame):
                packet.stream, packet.pts, packet.dts = stream, number, number
                container.mux(packet)
    assert [Image.open(io.BytesIO(frame)).size for frame in video.video_frames(path, 2)] == [(64, 48), (640, 480)]
    with pytest.raises(BadRecordError, match="cannot be decoded"):
        video.video_frames(path, 2, max_pixels=10_000)


def test_a_file_that_takes_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "_MAX_DECODING", -1.0)
    path = make_video(tmp_path / "video.mp4", sound=sine(3, 44_100))
    for check in (lambda: video.video_frames(path, 2), lambda: video.video_audio(path)):
        with pytest.raises(BadRecordError, match="s to decode"):
            check()
