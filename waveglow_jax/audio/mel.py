"""The log-mel spectrogram of Tacotron 2 and WaveGlow in JAX, with their exact convention.

Arrays: audio `[..., T]` samples in [-1, 1]; mel `[..., F, M]`, natural logarithm of magnitudes.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.audio.fourier import rfft
from waveglow_jax.config import Config, DataConfig

LOG_FLOOR = 1e-5
FAR = 1 << 62
"""The length, in samples, that stands for a signal whose end is not yet known: see `mirrored`."""


def log_mel(audio: jax.Array, config: Config) -> jax.Array:
    """`[..., T] -> [..., 1 + T // hop, M]`: ln(max(filters . |STFT|, 1e-5)), centred frames.

    Frame f is centred on sample f * hop; the ends are reflected by half an FFT. The STFT has a
    periodic Hann window, the filters are librosa's default (Slaney) ones, and they apply to
    magnitudes, not powers. The result is float32, or float64 for float64 input. Raises ValueError
    if T is at most half an FFT, which is too short to reflect.
    """
    half = config.data.filter_length // 2
    if audio.shape[-1] <= half:
        raise ValueError(
            f"audio of {audio.shape[-1]} samples is too short for a mel: more than {half} needed"
        )
    pad = [(0, 0)] * (audio.ndim - 1) + [(half, half)]
    return log_mel_of_padded(jnp.pad(audio, pad, mode="reflect"), config)


def log_mel_of_padded(padded: jax.Array, config: Config) -> jax.Array:
    """`[..., (F - 1) * hop + filter_length] -> [..., F, M]`: as `log_mel`, without reflection.

    It is for a clip that includes half an FFT of its recording on either side, so that its frames
    equal those of the whole recording.
    """
    data = config.data
    frames = (padded.shape[-1] - data.filter_length) // data.hop_length + 1
    starts = np.arange(frames)[:, None] * data.hop_length + np.arange(data.filter_length)
    framed = padded[..., starts]
    window = jnp.asarray(stft_window(data), padded.dtype)
    spectrum = jnp.abs(rfft(framed * jnp.broadcast_to(window, framed.shape)))
    filters = jnp.asarray(mel_filters(data, config.waveglow.n_mel_channels), padded.dtype)
    mel = jnp.matmul(spectrum, filters.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.log(jnp.maximum(mel, LOG_FLOOR))


def mirrored(place: Any, length: Any) -> Any:
    """Mirrors sample numbers before 0 or from `length` on at the ends, as often as necessary.

    It follows NumPy's "reflect", and takes integers and arrays of NumPy or JAX.
    """
    last = length - 1
    return last - abs(place % (2 * last + (last == 0)) - last)


@cache
def stft_window(data: DataConfig) -> np.ndarray:
    """The periodic Hann window of `win_length`, centred in `[filter_length]`, float64."""
    n = np.arange(data.win_length)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / data.win_length)
    left = (data.filter_length - data.win_length) // 2
    return np.pad(hann, (left, data.filter_length - data.win_length - left))


@cache
def mel_filters(data: DataConfig, n_mel_channels: int) -> np.ndarray:
    """librosa's default mel filters `[M, filter_length / 2 + 1]`, float32 as in the original.

    They are triangles of unit area over bands that are even on Slaney's mel scale (Auditory
    Toolbox, 1998). They are computed here because importing librosa takes longer than everything
    else that `mel` does.
    """
    nyquist = data.sampling_rate / 2
    lowest, highest = _mel_of_hertz(np.array([data.mel_fmin, data.mel_fmax], np.float64))
    edges = _hertz_of_mel(np.linspace(lowest, highest, n_mel_channels + 2))[:, None]
    bins = np.linspace(0, nyquist, 1 + data.filter_length // 2)
    rising = (bins - edges[:-2]) / np.diff(edges[:-1], axis=0)
    falling = (edges[2:] - bins) / np.diff(edges[1:], axis=0)
    triangles = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    return (triangles * (2 / (edges[2:] - edges[:-2]))).astype(np.float32)


HERTZ_PER_MEL = 200 / 3
"""Hz per mel on Slaney's scale up to 1,000 Hz; above it, 27 mels are a factor of 6.4."""


def _mel_of_hertz(hertz: np.ndarray) -> np.ndarray:
    above = 15 + np.log(np.maximum(hertz, 1000) / 1000) / (np.log(6.4) / 27)
    return np.where(hertz < 1000, hertz / HERTZ_PER_MEL, above)


def _hertz_of_mel(mel: np.ndarray) -> np.ndarray:
    return np.where(
        mel < 15, HERTZ_PER_MEL * mel, 1000 * np.exp(np.log(6.4) / 27 * np.maximum(mel - 15, 0))
    )
