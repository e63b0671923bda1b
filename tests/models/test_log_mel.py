"""The log-mel spectrogram against transformers' feature extractor, which computes it with numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import ClapFeatureExtractor

from sail_jax.config.model import ClapConfig
from sail_jax.errors import SailError
from sail_jax.models.log_mel import log_mel

CONFIGS = {
    "48 kHz": ClapConfig(),
    "16 kHz": ClapConfig(
        sample_rate=16_000, clip_seconds=2.0, n_fft=512, hop=250, mel_bins=32, f_min=50.0, f_max=7600.0
    ),
    # Windows that neither overlap nor fill a hop, and a clip that isn't a whole number of hops.
    "sparse": ClapConfig(
        sample_rate=16_000, clip_seconds=1.0, n_fft=256, hop=300, mel_bins=16, f_min=0.0, f_max=8000.0
    ),
    "fused": ClapConfig(mel_scale="htk"),
}


def sound(kind, config):
    rng = np.random.default_rng(0)
    time = np.arange(config.clip_samples) / config.sample_rate
    return {
        "noise": lambda: 0.1 * rng.normal(size=time.size),
        "quiet noise": lambda: 1e-4 * rng.normal(size=time.size),
        "silence": lambda: np.zeros(time.size),
        "sine": lambda: 0.5 * np.sin(2 * np.pi * 440 * time),
        "short": lambda: 0.1 * rng.normal(size=time.size * 3 // 10),
    }[kind]().astype(np.float32)


def repeat_and_pad(audio, config):
    repeated = np.tile(audio, config.clip_samples // audio.size)
    return np.pad(repeated, (0, config.clip_samples - repeated.size))


def reference(audio, config):
    extractor = ClapFeatureExtractor(
        feature_size=config.mel_bins,
        sampling_rate=config.sample_rate,
        hop_length=config.hop,
        max_length_s=int(config.clip_seconds),
        fft_window_size=config.n_fft,
        frequency_min=config.f_min,
        frequency_max=config.f_max,
    )
    truncation = {"slaney": "rand_trunc", "htk": "fusion"}[config.mel_scale]
    features = extractor(
        audio, truncation=truncation, padding="repeatpad", sampling_rate=config.sample_rate, return_tensors="np"
    )
    return features["input_features"][0, 0]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("kind", ["noise", "quiet noise", "silence", "short"])
def test_equals_the_feature_extractor(kind, config):
    audio = sound(kind, config)
    ours = log_mel(jnp.asarray(repeat_and_pad(audio, config))[None], config)[0]
    theirs = reference(audio, config)
    assert ours.shape == theirs.shape and ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_pure_tone_agrees_as_far_as_float32_can(config):
    audio = sound("sine", config)
    ours = np.asarray(log_mel(jnp.asarray(audio)[None], config)[0])
    theirs = reference(audio, config)
    audible = theirs > theirs.max(axis=1, keepdims=True) - 60
    assert 0.05 < audible.mean() < 0.95
    np.testing.assert_allclose(ours[audible], theirs[audible], rtol=0, atol=1e-4)
    # 100 dB below the tone, float32 holds only rounding noise, which HTK's filters lift above the floor of -100 dB.
    tolerance = {"slaney": 0.2, "htk": 2.0}[config.mel_scale]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["noise", "quiet noise", "short"])
def test_int16_is_scaled_to_one(kind):
    config = CONFIGS["16 kHz"]
    audio = np.round(repeat_and_pad(sound(kind, config), config) * 32767).astype(np.int16)
    ours = log_mel(jnp.asarray(audio)[None], config)[0]
    np.testing.assert_allclose(ours, reference(audio / np.float32(32768), config), rtol=0, atol=1e-4)


def test_clips_are_independent():
    config = CONFIGS["16 kHz"]
    clips = jnp.stack([sound(kind, config) for kind in ("noise", "silence", "sine")])
    together = jax.jit(log_mel, static_argnums=1)(clips, config)
    for clip, row in zip(clips, together, strict=True):
        np.testing.assert_allclose(row, reference(np.asarray(clip), config), rtol=0, atol=0.2)
    assert np.all(together[1] == -100.0)


@pytest.mark.parametrize(
    ("audio", "changes", "message"),
    [
        (np.zeros(32_000, np.float32), {}, r"shape \(32000,\)"),
        (np.zeros((1, 32_000), np.uint8), {}, "uint8"),
        (np.zeros((1, 256), np.int16), {}, "256 samples.*clip_seconds"),
        (np.zeros((1, 32_000), np.int16), {"f_max": 9000.0}, "f_max 9000.0.*16000"),
        (np.zeros((1, 32_000), np.int16), {"f_min": 7700.0}, "f_min 7700.0"),
    ],
)
def test_errors_name_the_cause(audio, changes, message, unchecked_shapes):
    config = dataclasses.replace(CONFIGS["16 kHz"], **changes)
    with pytest.raises(SailError, match=message):
        log_mel(jnp.asarray(audio), config)
