"""Opens files of sound and video by FFmpeg, which reads these alone; watches their length and time."""

import io
import pathlib
import time
from collections.abc import Iterator

import av

from sail_jax.data.media.decoding import MAX_PIXELS, PRESENT, REPAIR, check_pixels, check_time, too_many_pixels
from sail_jax.errors import BadRecordError

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


def open_container(source: pathlib.Path | bytes, max_pixels: int = MAX_PIXELS) -> av.container.InputContainer:
    """Opens sound or video by FFmpeg, which reads this file alone, and to look at it no larger frame."""
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
    file = io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}"
    try:
        return av.open(file, options={"max_pixels": str(max_pixels)}, container_options=options)
    except av.error.ArgumentError as error:  # recognised, and not among the formats
        raise BadRecordError("the file holds no sound and no video in a format that is read", remedy=REPAIR) from error


def limit_frames(stream: av.VideoStream, max_pixels: int) -> None:
    """Lets a stream of an opened file decode no frame of more pixels.

    Raises:
        BadRecordError: its header or its first frame has more.
    """
    width, height = stream.codec_context.width, stream.codec_context.height
    if not width * height:  # no frame within the limit was found when the file was opened
        raise too_many_pixels("the frames have no size, or are", max_pixels)
    check_pixels(width, height, max_pixels)
    stream.codec_context.options = {"max_pixels": str(max_pixels)}


class End:
    """The end of the last packet of a container, of any stream, beside the length that its header has."""

    def __init__(self, container: av.container.InputContainer) -> None:
        tells = _TELL_LENGTH & set(container.format.name.split(","))
        self._announced = (container.duration or 0) / av.time_base if tells else 0.0
        self._begin, self._end = (container.start_time or 0) / av.time_base, 0.0

    def of(self, packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
        """Yields the packets, whose ends it notes."""
        for packet in packets:
            check_time()
            if packet.pts is not None and packet.time_base:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - self._begin
                self._end = max(self._end, end)
            yield packet

    def check(self) -> None:
        """Raises BadRecordError if the file ends long before its header says."""
        if self._end < PRESENT * self._announced:
            raise BadRecordError(f"it ends after {self._end:.1f} of {self._announced:.1f} s", remedy=REPAIR)


class Watch:
    """Ends the decoding of a file that takes too long, also where no record limits it."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def check(self) -> None:
        """Raises BadRecordError once the time of the file or of its record is over."""
        check_time()
        if time.monotonic() - self._began > _MAX_DECODING:
            raise BadRecordError(
                f"it takes over {_MAX_DECODING:.0f} s to decode", remedy="Shorten it, or leave the cell empty"
            )


def stream_seconds(container: av.container.InputContainer, stream: av.stream.Stream) -> float | None:
    """Returns the length of a stream by its header, or that of the whole file; None if neither is told."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / av.time_base
