"""Decodes, checks and resamples images, sound and video.

Every error on a broken file is raised as a `BadRecordError`. Sizes and lengths are read from the header, so that an
oversized file is refused before it is decoded, and watched while it is decoded, since a header may lie.
"""

import contextlib
import io
import itertools
import pathlib
import re
import struct
import time
from collections.abc import Iterator

import av
import numpy as np
import simplejpeg
import soundfile
import soxr
from PIL import Image, ImageFile, UnidentifiedImageError

from sail_jax.errors import BadRecordError, SailError

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

_MAX_PIXELS = 50_000_000
_MAX_SECONDS = 3600.0
# Image size for decoding checks.
_CHECK_SIZE = 64
# Samples of all channels that are decoded at once.
_BLOCK = 1 << 18
# libsndfile's error for a file of a kind that it knows, such as half a CAF, of which FFmpeg reads what is there.
_MALFORMED = 3
# libsndfile's value for an unknown number of frames.
_UNKNOWN_FRAMES = 1 << 62
# What libsndfile logs of a header that announces more bytes, or fewer, than there are; and what a header announces that
# was written before the length was known.
_ANNOUNCED = re.compile(r": (\d+) \(should be (\d+)\)")
_UNKNOWN_BYTES = (1 << 31) - (1 << 16)
# The share of the announced length that has to be there: many headers are slightly wrong.
_PRESENT = 0.9
# Full scale is 1, which sound that was mixed without a limiter passes by a little.
_LOUDEST = 10.0
# FFmpeg's readers of media in a single file. Others open sockets, devices, further files or scripts.
_CONTAINERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,av1,avi,caf,dts,dtshd,dv,eac3,flac,flv,gif,gsm,h261,h263,h264,hevc,ivf,"
    "loas,m4v,matroska,mjpeg,mlp,mov,mp3,mpc,mpc8,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,oma,rm,sbc,sox,swf,tta,truehd,"
    "vc1,voc,vvc,w64,wav,webm,wtv,wv,xwma,yuv4mpegpipe"
)
# Those whose header has the length; that of others is estimated.
_TELL_LENGTH = {"mov", "matroska", "avi", "asf", "flv", "caf", "wav", "aiff", "au"}
# Seconds that the decoding of one file may take.
_MAX_DECODING = 600.0
# A shorter rest of a long sound, as a share of a clip, is dropped: it carries too little information for a clip.
_SHORTEST_REST = 0.1
_REPAIR = "Export the file again, or leave the cell empty"


@contextlib.contextmanager
def _decoding(what: str) -> Iterator[None]:
    """Turns any error of a decoder into a `BadRecordError`."""
    try:
        yield
    except (SailError, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its message has the address of a buffer
        raise BadRecordError(f"{what} cannot be decoded: it is in no known format", remedy=_REPAIR) from error
    except Exception as error:
        raise BadRecordError(f"{what} cannot be decoded ({type(error).__name__}: {error})", remedy=_REPAIR) from error


# ---------------------------------------------------------------------------------------------------------- images


def decode_image(data: bytes, size: int, *, max_pixels: int = _MAX_PIXELS) -> np.ndarray:
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
    with _decoding("the image"), _open_image(data, max_pixels) as image:
        square = _scaled_jpeg(data, image, size)
        if square is None:
            image.draft(None, (size, size))
            image.load()  # a damaged file is found here: reading its orientation would hide the error
            square = np.array(_to_rgb(image).resize((size, size), Image.Resampling.BICUBIC))
        # A square may be turned after the resize, which is cheaper and gives the same.
        turn = _turn(image)
        return square if turn is None else np.array(Image.fromarray(square).transpose(turn))


def decode_small(data: bytes, side: int, *, max_pixels: int = _MAX_PIXELS) -> Image.Image:
    """Decodes an image for a thumbnail: upright RGB that fits into a square of `side` pixels.

    Raises:
        BadRecordError: as `decode_image`.
    """
    with _decoding("the image"), _open_image(data, max_pixels) as image:
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
    with _decoding("the image"):
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
                image = factory(io.BytesIO(data), "")
                _check_pixels(*image.size, max_pixels)
                return image
    raise UnidentifiedImageError


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


def check_image(data: bytes, *, max_pixels: int = _MAX_PIXELS) -> None:
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


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadRecordError(
            f"the picture is {width} x {height} pixels, over the limit of {max_pixels:,}",
            remedy="Scale it down, or raise config.ingest.max_pixels",
        )


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
    except Exception:  # EXIF is often broken in good pictures, and Pillow raises many types of errors on it
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


# ----------------------------------------------------------------------------------------------------------- sound


def decode_audio(
    data: bytes, sample_rate: int, *, max_seconds: float = _MAX_SECONDS, keep_seconds: float = float("inf")
) -> np.ndarray:
    """Decodes sound, averages its channels and resamples it.

    Args:
        data: the encoded sound: what libsndfile reads (WAV, FLAC, Ogg, MP3, AIFF, ...), else what FFmpeg reads (AAC,
            MP4, WebM, ...).
        sample_rate: samples per second of the result.
        max_seconds: longer sound is refused, without being decoded if the header gives the length.
        keep_seconds: only so much from the beginning is decoded and returned.

    Returns:
        [samples] int16 mono; full scale is 32768, so that 16-bit sound at its own rate is returned unchanged.

    Raises:
        BadRecordError: the sound is empty, too long, truncated, corrupt, or in an unsupported format.
    """
    blocks, samples = [], 0
    with _decoding("the sound"), _open_sound(data, max_seconds) as (rate, stream):
        for block in stream:
            blocks.append(block)
            samples += len(block)
            if samples >= keep_seconds * rate:
                break
        mono = np.concatenate(blocks)[: int(min(keep_seconds * rate, samples))]
        mono = mono if rate == sample_rate else soxr.resample(mono, rate, sample_rate)
    if not len(mono):
        raise _no_samples()
    return _to_int16(mono)


def check_audio(data: bytes, *, max_seconds: float = _MAX_SECONDS) -> None:
    """Decodes sound, block by block, to check that it can be decoded.

    Raises:
        BadRecordError: as `decode_audio`.
    """
    with _decoding("the sound"), _open_sound(data, max_seconds) as (_, stream):
        for _ in stream:
            pass


def encode_audio(samples: np.ndarray, sample_rate: int) -> bytes:
    """Encodes sound as FLAC of 16 bits.

    Args:
        samples: [samples] or [samples, channels]; int16, or integers in its range, or floats in [-1, 1].
        sample_rate: samples per second.

    Raises:
        BadRecordError: samples are beyond these ranges, or no numbers.
    """
    if np.issubdtype(samples.dtype, np.floating):
        samples = _to_int16(_checked(samples))
    elif len(samples) and not -32768 <= samples.min() <= samples.max() <= 32767:
        raise BadRecordError(
            f"the sound has whole numbers up to {np.abs(samples.astype(np.int64)).max():,}, beyond 16 bits",
            remedy="Scale them to 16 bits, or to floats in [-1, 1]",
        )
    out = io.BytesIO()
    soundfile.write(out, samples.astype(np.int16), sample_rate, format="FLAC", subtype="PCM_16")
    return out.getvalue()


def clip_audio(samples: np.ndarray, clip_samples: int, max_clips: int) -> np.ndarray:
    """Cuts or repeats sound into clips of one length (arXiv 2510.12709, sec. 3.2).

    Sound that fits in a clip is repeated a whole number of times and padded with zeros, as `ClapFeatureExtractor` does
    with padding="repeatpad". Longer sound is cut into consecutive clips; the rest at its end is repeated and padded
    likewise if it is at least a tenth of a clip (1 s of 10 s), or else dropped.

    Args:
        samples: [samples] int16, at least one.
        clip_samples: length of a clip.
        max_clips: most clips returned, from the beginning of the sound.

    Returns:
        [C, clip_samples] int16, 1 <= C <= max_clips.
    """
    if not len(samples):
        raise _no_samples()
    whole = min(len(samples) // clip_samples, max_clips)
    clips = samples[: whole * clip_samples].reshape(whole, clip_samples)
    rest = samples[whole * clip_samples :]
    if whole == max_clips or (whole and len(rest) < _SHORTEST_REST * clip_samples):
        return clips
    repeated = np.tile(rest, clip_samples // len(rest))
    return np.concatenate([clips, np.pad(repeated, (0, clip_samples - len(repeated)))[None]])


def _to_int16(samples: np.ndarray) -> np.ndarray:
    return np.clip(np.round(samples * 32768.0), -32768, 32767).astype(np.int16)


def _checked(samples: np.ndarray) -> np.ndarray:
    """Returns float samples; raises BadRecordError where they are no numbers, or not in [-1, 1] but for overshoots."""
    peak = np.abs(samples).max(initial=0.0)
    if not np.isfinite(peak):
        raise BadRecordError("the sound has samples that are no finite numbers", remedy=_REPAIR)
    if peak > _LOUDEST:
        raise BadRecordError(
            f"the sound has floating-point samples up to {peak:,.0f}, where full scale is 1",
            remedy="Divide them by 32768 if they came from 16 bits, or leave the cell empty",
        )
    return samples


def _no_samples() -> BadRecordError:
    return BadRecordError("the sound has no samples", remedy=_REPAIR)


def _too_long(seconds: float, max_seconds: float) -> BadRecordError:
    return BadRecordError(
        f"the sound is {seconds:,.0f} s long, over the limit of {max_seconds:,.0f} s",
        remedy="Cut it, or raise config.ingest.max_audio_seconds",
    )


@contextlib.contextmanager
def _open_sound(data: bytes, max_seconds: float) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
    """Yields (sample rate, stream of [n] float32 mono blocks), after a check of the length in the header."""
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError as error:
        if error.code == _MALFORMED:
            raise
        file = None
    if file is None or not 0 < file.frames < _UNKNOWN_FRAMES:
        with _open_container(data) as container:
            yield _av_blocks(container, max_seconds)
        return
    with file:
        for announced, present in _ANNOUNCED.findall(file.extra_info):
            if int(present) < _PRESENT * int(announced) and int(announced) < _UNKNOWN_BYTES:
                raise BadRecordError(f"the sound ends after {present} of {announced} bytes", remedy=_REPAIR)
        if file.frames > max_seconds * file.samplerate:
            raise _too_long(file.frames / file.samplerate, max_seconds)
        yield file.samplerate, _soundfile_blocks(file)


def _soundfile_blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    samples = 0
    # Not SoundFile.blocks, which leaves uninitialised memory in a block of truncated sound.
    while len(block := file.read(max(1, _BLOCK // file.channels), dtype="float32", always_2d=True)):
        samples += len(block)
        yield _checked(block).mean(axis=1)
    if samples < _PRESENT * file.frames:
        raise BadRecordError(f"the sound ends after {samples} of {file.frames} samples", remedy=_REPAIR)


def _av_blocks(container: av.container.InputContainer, max_seconds: float) -> tuple[int, Iterator[np.ndarray]]:
    if not container.streams.audio:
        raise BadRecordError("the file holds no sound", remedy=_REPAIR)
    stream = container.streams.audio[0]
    seconds = _stream_seconds(container, stream) or 0.0
    if seconds > max_seconds:
        raise _too_long(seconds, max_seconds)
    return stream.rate, _decoded_blocks(container, stream, max_seconds)


def _decoded_blocks(
    container: av.container.InputContainer, stream: av.AudioStream, max_seconds: float
) -> Iterator[np.ndarray]:
    resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
    samples, end, watch = 0, _End(container), _Watch()
    frames = itertools.chain.from_iterable(
        packet.decode() for packet in end.of(container.demux()) if packet.stream is stream
    )
    for frame in itertools.chain(frames, [None]):  # None flushes the resampler
        watch.check()
        for planar in resampler.resample(frame):
            samples += planar.samples
            if samples > max_seconds * stream.rate:
                raise _too_long(samples / stream.rate, max_seconds)
            yield _checked(planar.to_ndarray()).mean(axis=0)
    if not samples:
        raise _no_samples()
    end.check()


class _End:
    """The end of the last packet of a container, of any stream, beside the length that its header has."""

    def __init__(self, container: av.container.InputContainer) -> None:
        tells = _TELL_LENGTH & set(container.format.name.split(","))
        self._announced = (container.duration or 0) / av.time_base if tells else 0.0
        self._begin, self._end = (container.start_time or 0) / av.time_base, 0.0

    def of(self, packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
        """Yields the packets, whose ends it notes."""
        for packet in packets:
            if packet.pts is not None and packet.time_base:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - self._begin
                self._end = max(self._end, end)
            yield packet

    def check(self) -> None:
        """Raises BadRecordError if the file ends long before its header says."""
        if self._end < _PRESENT * self._announced:
            raise BadRecordError(f"it ends after {self._end:.1f} of {self._announced:.1f} s", remedy=_REPAIR)


class _Watch:
    """Ends the decoding of a file that takes too long."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def check(self) -> None:
        """Raises BadRecordError once the time is over."""
        if time.monotonic() - self._began > _MAX_DECODING:
            raise BadRecordError(
                f"it takes over {_MAX_DECODING:.0f} s to decode", remedy="Shorten it, or leave the cell empty"
            )


def _stream_seconds(container: av.container.InputContainer, stream: av.stream.Stream) -> float | None:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / av.time_base


# ----------------------------------------------------------------------------------------------------------- video


def video_frames(source: pathlib.Path | bytes, count: int, *, max_pixels: int = _MAX_PIXELS) -> list[bytes]:
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
    with _decoding("the video"), _open_container(source) as container:
        if not container.streams.video:
            raise BadRecordError("the file holds no video", remedy=_REPAIR)
        stream = container.streams.video[0]
        _check_pixels(stream.codec_context.width, stream.codec_context.height, max_pixels)
        stream.codec_context.options = {"max_pixels": str(max_pixels)}
        begin, length = stream.start_time or 0, _length(container, stream)
        frames, watch, at = {}, _Watch(), begin
        for i in range(count):
            at = begin + int(length * (i + 0.5) / count)
            frame = _frame_at(container, stream, at, watch)
            if frame is not None and frame.pts not in frames:
                frames[frame.pts] = _to_jpeg(frame)
        container.seek(at, stream=stream)
        end = _End(container)
        for _ in end.of(container.demux()):
            pass
        end.check()
    if not frames:
        raise BadRecordError("the video has no frames", remedy=_REPAIR)
    return list(frames.values())


def video_audio(source: pathlib.Path | bytes, *, max_seconds: float = _MAX_SECONDS) -> bytes | None:
    """Extracts the sound of a video as 16-bit mono FLAC at its own sample rate; None for a silent video.

    Raises:
        BadRecordError: the sound is too long or corrupt, or the file is not a video.
    """
    with _decoding("the sound of the video"), _open_container(source) as container:
        if not container.streams.audio:
            return None
        rate, blocks = _av_blocks(container, max_seconds)
        out = io.BytesIO()
        with soundfile.SoundFile(out, "w", rate, channels=1, format="FLAC", subtype="PCM_16") as file:
            for block in blocks:
                file.write(_to_int16(block))
        return out.getvalue()


def _open_container(source: pathlib.Path | bytes) -> av.container.InputContainer:
    """Opens sound or video by FFmpeg, which then reads this file alone."""
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
    try:
        return av.open(io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}", container_options=options)
    except av.error.ArgumentError as error:  # recognised, and not among the formats
        raise BadRecordError("the file holds no sound and no video in a format that is read", remedy=_REPAIR) from error


def _length(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """Length in units of the stream's time base."""
    seconds = _stream_seconds(container, stream)
    if seconds is not None:
        return int(seconds / stream.time_base)
    # A live recording: the header has no length, but the packets have times and need not be decoded.
    stamps = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
    return max(stamps, default=0) - (stream.start_time or 0) + 1


def _frame_at(
    container: av.container.InputContainer, stream: av.VideoStream, pts: int, watch: _Watch
) -> av.VideoFrame | None:
    """The frame that is on screen at a time: the last one that begins at or before it."""
    container.seek(pts, stream=stream)
    shown = None
    for frame in container.decode(stream):
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
