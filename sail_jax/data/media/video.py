"""Takes frames and sound out of videos; every error on a broken file is raised as a `BadRecordError`."""

import io
import itertools
import pathlib

import av
import soundfile

from sail_jax.data.media.containers import End, Watch, limit_frames, open_container, stream_seconds
from sail_jax.data.media.decoding import MAX_PIXELS, REPAIR, decoding
from sail_jax.data.media.sound import MAX_SECONDS, container_blocks, to_int16
from sail_jax.errors import BadRecordError


def video_frames(source: pathlib.Path | bytes, count: int, *, max_pixels: int = MAX_PIXELS) -> list[bytes]:
    """Extracts evenly spaced frames of a video by seeking; holds one decoded frame at a time.

    The video is divided into `count` equal time spans; the middle frame of each is taken. A video with fewer frames
    gives fewer.

    Args:
        source: the video file or its content.
        count: number of frames.
        max_pixels: a video with larger frames is refused, without being decoded if the header tells.

    Returns:
        Frames in temporal order, upright, as JPEG.

    Raises:
        BadRecordError: the file is not a video, or it is corrupt or too large.
    """
    with decoding("the video"), open_container(source, max_pixels) as container:
        if not container.streams.video:
            raise BadRecordError("the file holds no video", remedy=REPAIR)
        stream = container.streams.video[0]
        limit_frames(stream, max_pixels)
        begin, length = stream.start_time or 0, _length(container, stream)
        frames, watch, at = {}, Watch(), begin
        for i in range(count):
            at = begin + int(length * (i + 0.5) / count)
            frame = _frame_at(container, stream, at, watch)
            if frame is not None and frame.pts not in frames:
                frames[frame.pts] = _to_jpeg(frame)
        container.seek(at, stream=stream)
        end = End(container)
        for _ in end.of(container.demux()):
            pass
        end.check()
    if not frames:
        raise BadRecordError("the video has no frames", remedy=REPAIR)
    return list(frames.values())


def video_audio(source: pathlib.Path | bytes, *, max_seconds: float = MAX_SECONDS) -> bytes | None:
    """Extracts the sound of a video as 16-bit mono FLAC at its own sample rate; None for a silent video.

    Raises:
        BadRecordError: the sound is too long or corrupt, or the file is not a video.
    """
    with decoding("the sound of the video"), open_container(source) as container:
        if not container.streams.audio:
            return None
        rate, blocks = container_blocks(container, max_seconds)
        out = io.BytesIO()
        with soundfile.SoundFile(out, "w", rate, channels=1, format="FLAC", subtype="PCM_16") as file:
            for block in blocks:
                file.write(to_int16(block))
        return out.getvalue()


def _length(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """Length in units of the stream's time base."""
    seconds = stream_seconds(container, stream)
    if seconds is not None:
        return int(seconds / stream.time_base)
    # A live recording: the header has no length, but the packets have times and need not be decoded.
    stamps = [packet.pts for packet in End(container).of(container.demux(stream)) if packet.pts is not None]
    return max(stamps, default=0) - (stream.start_time or 0) + 1


def _frame_at(
    container: av.container.InputContainer, stream: av.VideoStream, pts: int, watch: Watch
) -> av.VideoFrame | None:
    """The frame that is on screen at a time: the last one that begins at or before it."""
    container.seek(pts, stream=stream)
    shown = None
    packets = End(container).of(container.demux(stream))
    for frame in itertools.chain.from_iterable(packet.decode() for packet in packets):
        watch.check()
        if shown is not None and frame.pts is not None and frame.pts > pts:
            break
        shown = frame
    return shown


def _to_jpeg(frame: av.VideoFrame) -> bytes:
    image = frame.to_image()
    if frame.rotation:
        image = image.rotate(frame.rotation, expand=True)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()
