"""A sound is the same by every door: training, encode, and the processor of an export."""

import importlib
import io

import numpy as np
import pytest
import soundfile

from sail_jax.config.data import IngestConfig
from sail_jax.data.item_dicts import to_item
from sail_jax.data.media.sound import decode_audio
from sail_jax.errors import BadRecordError

RATE = 16_000
TONE = (0.5 * np.sin(np.arange(3 * RATE) / 9)).astype(np.float32)


def file(samples, kind="WAV", subtype=None):
    out = io.BytesIO()
    soundfile.write(out, samples, RATE, format=kind, subtype=subtype)
    return out.getvalue()


def spoilt(value):
    samples = TONE.copy()
    samples[100] = value
    return samples


CASES = {
    "WAV": file(TONE),
    "WAV of floats": file(TONE, "WAV", "FLOAT"),
    "stereo": file(np.stack([TONE, -TONE / 2], -1)),
    "loud": file(TONE * 3, "WAV", "FLOAT"),
    "FLAC": file(TONE, "FLAC"),
    "half WAV": file(TONE)[:40_000],
    "half MP3": file(TONE, "MP3")[: len(file(TONE, "MP3")) // 2],
    "half FLAC": file(TONE, "FLAC")[:20_000],
    "half AIFF": file(TONE, "AIFF")[:40_000],
    "NaN": file(spoilt(np.nan), "WAV", "FLOAT"),
    "infinite": file(spoilt(np.inf), "WAV", "FLOAT"),
    "in the range of int16": file(TONE * 32768, "WAV", "FLOAT"),
    "nothing": b"",
}
REFUSED = {name for name in CASES if name.startswith("half")} | {"NaN", "infinite", "in the range of int16", "nothing"}


@pytest.mark.parametrize("name", CASES)
def test_files_by_every_door(name, tmp_path):
    pytest.importorskip("torch")
    processing = importlib.import_module("sail_jax.convert.exported_code.processing_sail_embedding")
    path = tmp_path / "sound"
    path.write_bytes(CASES[name])
    doors = {
        "bytes": lambda: decode_audio(CASES[name], RATE),
        "encode": lambda: decode_audio(to_item({"audio": path}, IngestConfig()).audio, RATE),
        "export": lambda: processing._load_sound(path, RATE) * 32768,
    }
    first = doors["bytes"]() if name not in REFUSED else None
    for door in doors.values():
        if name in REFUSED:
            with pytest.raises((BadRecordError, ValueError, soundfile.LibsndfileError)):
                door()
        else:
            np.testing.assert_array_equal(door(), first)


@pytest.mark.parametrize(("value", "message"), [(np.nan, "no finite numbers"), (20_000, "where full scale is 1")])
def test_samples_in_memory_are_checked_by_the_export(value, message):
    pytest.importorskip("torch")
    processing = importlib.import_module("sail_jax.convert.exported_code.processing_sail_embedding")
    with pytest.raises(ValueError, match=message):
        processing._load_sound({"array": spoilt(value), "sampling_rate": RATE}, RATE)


def test_a_vector_of_sound_is_checked_by_every_door():
    vector = np.array([0.1, np.nan], np.float32)
    with pytest.raises(BadRecordError, match="no finite numbers"):
        to_item({"audio_embedding": vector}, IngestConfig())
    pytest.importorskip("torch")
    processing = importlib.import_module("sail_jax.convert.exported_code.processing_sail_embedding")
    with pytest.raises(ValueError, match="no finite numbers"):
        processing._as_vector(vector)
