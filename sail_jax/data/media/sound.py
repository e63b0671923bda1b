"""Decodes, checks and encodes sound, and cuts it into clips.

Every error on a broken file is raised as a `BadRecordError`. The length is read from the header, so that an oversized
file is refused before it is decoded, and watched while it is decoded, since a header may lie.
"""

import contextlib
import io
import itertools
import re
from collections.abc import Iterator

import av
import numpy as np
import soundfile
import soxr

from sail_jax.data.media.containers import End, Watch, open_container, stream_seconds
from sail_jax.data.media.decoding import PRESENT, REPAIR, check_time, decoding
from sail_jax.errors import BadRecordError

MAX_SECONDS = 3600.0
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
# Full scale is 1, which sound that was mixed without a limiter passes by a little.
_LOUDEST = 10.0
# A shorter rest of a long sound, as a share of a clip, is dropped: it carries too little information for a clip.
_SHORTEST_REST = 0.1


def decode_audio(
    data: bytes, sample_rate: int, *, max_seconds: float = MAX_SECONDS, keep_seconds: float = float("inf")
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
    parts, samples = [np.zeros(0, np.int16)], 0
    with decoding("the sound"), _open_sound(data, max_seconds) as (rate, stream):
        resample = None if rate == sample_rate else soxr.ResampleStream(rate, sample_rate, 1).resample_chunk
        for block in stream:
            block = block[: int(min(keep_seconds * rate - samples, len(block)))]
            samples += len(block)
            parts.append(to_int16(resample(block) if resample else block))
            if samples >= keep_seconds * rate:
                break
        if resample:
            parts.append(to_int16(resample(np.zeros(0, np.float32), last=True)))
    mono = np.concatenate(parts)
    if not len(mono):
        raise _no_samples()
    return mono


def check_audio(data: bytes, *, max_seconds: float = MAX_SECONDS) -> None:
    """Decodes sound, block by block, to check that it can be decoded.

    Raises:
        BadRecordError: as `decode_audio`.
    """
    with decoding("the sound"), _open_sound(data, max_seconds) as (_, stream):
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
        samples = to_int16(_checked(samples))
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


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Rounds samples in [-1, 1] to 16 bits; overshoots are cut."""
    return np.clip(np.round(samples * 32768.0), -32768, 32767).astype(np.int16)


def _checked(samples: np.ndarray) -> np.ndarray:
    """Returns float samples; raises BadRecordError where they are no numbers, or not in [-1, 1] but for overshoots."""
    peak = np.abs(samples).max(initial=0.0)
    if not np.isfinite(peak):
        raise BadRecordError("the sound has samples that are no finite numbers", remedy=REPAIR)
    if peak > _LOUDEST:
        raise BadRecordError(
            f"the sound has floating-point samples up to {peak:,.0f}, where full scale is 1",
            remedy="Divide them by 32768 if they came from 16 bits, or leave the cell empty",
        )
    return samples


def _no_samples() -> BadRecordError:
    return BadRecordError("the sound has no samples", remedy=REPAIR)


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
        with open_container(data) as container:
            yield container_blocks(container, max_seconds)
        return
    with file:
        for announced, present in _ANNOUNCED.findall(file.extra_info):
            if int(present) < PRESENT * int(announced) and int(announced) < _UNKNOWN_BYTES:
                raise BadRecordError(f"the sound ends after {present} of {announced} bytes", remedy=REPAIR)
        if file.frames > max_seconds * file.samplerate:
            raise _too_long(file.frames / file.samplerate, max_seconds)
        yield file.samplerate, _soundfile_blocks(file)


def _soundfile_blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    samples = 0
    # Not SoundFile.blocks, which leaves uninitialised memory in a block of truncated sound.
    while len(block := file.read(max(1, _BLOCK // file.channels), dtype="float32", always_2d=True)):
        check_time()
        samples += len(block)
        yield _checked(block).mean(axis=1)
    if samples < PRESENT * file.frames:
        raise BadRecordError(f"the sound ends after {samples} of {file.frames} samples", remedy=REPAIR)


def container_blocks(container: av.container.InputContainer, max_seconds: float) -> tuple[int, Iterator[np.ndarray]]:
    """Returns (sample rate, stream of [n] float32 mono blocks) of an opened file whose length is checked."""
    if not container.streams.audio:
        raise BadRecordError("the file holds no sound", remedy=REPAIR)
    stream = container.streams.audio[0]
    seconds = stream_seconds(container, stream) or 0.0
    if seconds > max_seconds:
        raise _too_long(seconds, max_seconds)
    return stream.rate, _decoded_blocks(container, stream, max_seconds)


def _decoded_blocks(
    container: av.container.InputContainer, stream: av.AudioStream, max_seconds: float
) -> Iterator[np.ndarray]:
    resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
    samples, end, watch = 0, End(container), Watch()
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
