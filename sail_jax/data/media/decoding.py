"""What decoders share: how errors are told, how much of a file must be there, how long it may take."""

import contextlib
import contextvars
import errno
import time
from collections.abc import Iterator

import av
from PIL import UnidentifiedImageError

from sail_jax.errors import BadRecordError, SailError, is_of_the_machine

# The share of the announced length that has to be there: many headers are slightly wrong.
PRESENT = 0.9
# Of a picture or a frame.
MAX_PIXELS = 50_000_000
REPAIR = "Export the file again, or leave the cell empty"

# When the time of a record is over, by the monotonic clock, and how much it had.
_deadline: contextvars.ContextVar[tuple[float, float]] = contextvars.ContextVar("deadline", default=(float("inf"), 0.0))


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Limits the time that all decoders in the block may take together, as those of one record."""
    token = _deadline.set((time.monotonic() + seconds, seconds))
    try:
        yield
    finally:
        _deadline.reset(token)


def check_time() -> None:
    """Raises BadRecordError once the time of the record is over; decoders call it between their steps."""
    end, seconds = _deadline.get()
    if time.monotonic() >= end:
        raise BadRecordError(
            f"the media of the record take over {seconds:g} s to decode",
            remedy="Shorten them, or raise config.ingest.max_decode_seconds",
        )


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raises BadRecordError if a picture or a frame has too many pixels."""
    if width * height > max_pixels:
        raise too_many_pixels(f"the picture is {width} x {height} pixels,", max_pixels)


def too_many_pixels(what: str, max_pixels: int) -> BadRecordError:
    """Returns the error of a picture or of frames, of which `what` is said, that have too many pixels."""
    return BadRecordError(
        f"{what} over the limit of {max_pixels:,}", remedy="Scale it down, or raise config.ingest.max_pixels"
    )


@contextlib.contextmanager
def decoding(what: str) -> Iterator[None]:
    """Turns errors of a decoder into `BadRecordError`; those of the machine (`is_of_the_machine`) pass."""
    check_time()
    try:
        yield
    except SailError:
        raise
    except UnidentifiedImageError as error:  # its message has the address of a buffer
        raise BadRecordError(f"{what} cannot be decoded: it is in no known format", remedy=REPAIR) from error
    except Exception as error:
        if is_of_the_machine(error) and not _is_of_the_file(error):
            raise
        if isinstance(error, MemoryError):
            raise BadRecordError(f"{what} asks for more memory than a file of its kind may", remedy=REPAIR) from error
        raise BadRecordError(f"{what} cannot be decoded ({type(error).__name__}: {error})", remedy=REPAIR) from error


def _is_of_the_file(error: Exception) -> bool:
    """Returns whether FFmpeg says of a damaged file what the operating system says of a machine."""
    return isinstance(error, av.FFmpegError) and (isinstance(error, MemoryError) or error.errno == errno.EIO)
