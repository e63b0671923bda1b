"""Log-mel spectrograms on the device, matching CLAP's feature extractor on the host.

Axis letters: C audio clips, T frames of the spectrogram, M mel bins.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int16
from transformers.audio_utils import mel_filter_bank, window_function

from sail_jax.config.model import ClapConfig
from sail_jax.errors import SailError

# Power below which a mel bin counts as silent; it maps to -100 dB.
MIN_POWER = 1e-10


def num_frames(samples: int, config: ClapConfig) -> int:
    """Returns the number of frames of a spectrogram; frames are centred, so both ends have one."""
    return 1 + samples // config.hop


def log_mel(
    audio: Float32[Array, "C samples"] | Int16[Array, "C samples"], config: ClapConfig
) -> Float32[Array, "C T M"]:
    """Returns log-mel spectrograms in decibels.

    Matches `transformers.ClapFeatureExtractor` on clips of its full length: a periodic Hann window, reflect padding,
    the power spectrum, mel filters, and decibels relative to 1. `config.mel_scale` "slaney" matches its truncation
    "rand_trunc", of checkpoints without fusion; "htk" matches each of the four equal spectrograms of its truncation
    "fusion".

    The reference transforms in float64, this function in float32. Bins within 60 dB of the loudest bin of their frame
    agree to 1e-4 dB. Bins 100 dB below a pure tone are rounding noise here and may differ by 0.1 dB; at 140 dB, which
    only "htk" reaches, by 1 dB.

    Args:
        audio: mono sound in [-1, 1], or int16, which is divided by 32768.
        config: sampling rate, window, hop and mel filters.

    Returns:
        Decibels, -100 or more; T is 1 + samples // hop, M is `config.mel_bins`.

    Raises:
        SailError: if the shape or type is wrong, the clip is shorter than half a window, or the filters reach beyond
            half the sampling rate.
    """
    _check(audio, config)
    margin = config.n_fft // 2
    padded = jnp.pad(audio, ((0, 0), (margin, margin)), mode="reflect")
    frames = _frames(padded, num_frames(audio.shape[1], config), config)
    # The window includes the scale, so that int16 frames are gathered as int16, in half the bytes.
    window = window_function(config.n_fft, "hann") / (32768 if audio.dtype == jnp.int16 else 1)
    filters = mel_filters(config)
    heard = np.flatnonzero(filters.any(axis=1)).max(initial=-1) + 1  # no filter covers frequencies beyond
    spectrum = jnp.fft.rfft(frames.astype(jnp.float32) * window.astype(np.float32))[..., :heard]
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    # Accelerators multiply float32 at lower precision by default, which would change decibels near silence.
    mel = jnp.einsum("ctf,fm->ctm", power, filters[:heard], precision=jax.lax.Precision.HIGHEST)
    return 10.0 * jnp.log10(jnp.maximum(mel, MIN_POWER))


def mel_filters(config: ClapConfig) -> Float32[np.ndarray, "{config.n_fft}//2+1 {config.mel_bins}"]:
    """Returns the triangular mel filters; Slaney's have unit area, HTK's have unit height."""
    filters = mel_filter_bank(
        num_frequency_bins=config.n_fft // 2 + 1,
        num_mel_filters=config.mel_bins,
        min_frequency=config.f_min,
        max_frequency=config.f_max,
        sampling_rate=config.sample_rate,
        norm="slaney" if config.mel_scale == "slaney" else None,
        mel_scale=config.mel_scale,
    )
    return filters.astype(np.float32)


def _frames(padded: jax.Array, count: int, config: ClapConfig) -> jax.Array:
    """Returns overlapping frames [C, count, n_fft], built from slices of whole hops.

    A gather of single samples is slow on accelerators.
    """
    hops_per_frame = -(-config.n_fft // config.hop)
    length = (count - 1 + hops_per_frame) * config.hop
    missing = max(0, length - padded.shape[1])
    hops = jnp.pad(padded, ((0, 0), (0, missing)))[:, :length].reshape(padded.shape[0], -1, config.hop)
    frames = jnp.concatenate([hops[:, start : start + count] for start in range(hops_per_frame)], axis=-1)
    return frames[..., : config.n_fft]


def _check(audio: jax.Array, config: ClapConfig) -> None:
    if audio.ndim != 2 or audio.dtype not in (jnp.int16, jnp.float32):
        raise SailError(f"Sound is [clips, samples] int16 or float32, not {audio.dtype} of shape {audio.shape}.")
    if audio.shape[1] <= config.n_fft // 2:
        raise SailError(
            f"A clip of {audio.shape[1]} samples is shorter than half a Fourier window of {config.n_fft} samples; "
            "raise model.audio.clip_seconds or lower model.audio.n_fft."
        )
    if not 0 <= config.f_min < config.f_max <= config.sample_rate / 2:
        raise SailError(
            f"model.audio.f_min {config.f_min} and f_max {config.f_max} must be in ascending order, between 0 and half "
            f"of sample_rate {config.sample_rate}."
        )
