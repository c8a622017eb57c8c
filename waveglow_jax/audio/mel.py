"""The mel-spectrogram of a config's convention in JAX; by default that of Tacotron 2 and WaveGlow.

Arrays: audio `[..., T]` samples in [-1, 1]; mel `[..., F, M]`, written as `MelConfig` says: by
default the natural logarithm of magnitudes.
"""

from functools import cache
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.audio.fourier import rfft
from waveglow_jax.config import Config
from waveglow_jax.config_data import DataConfig, MelConfig

FAR = 1 << 62
"""The length, in samples, that stands for a signal whose end is not yet known: see `mirrored`."""


def log_mel(audio: jax.Array, config: Config) -> jax.Array:
    """`[..., T] -> [..., F, M]`: the mel of the config's convention, F = `frames_of(T)`.

    By default ln(max(filters . |STFT|, 1e-5)) with centred frames: F = 1 + T // hop, frame f is
    centred on sample f * hop, and the ends are reflected by half an FFT. The window is a periodic
    Hann window. Frames that lie half a hop late are T // hop, and the ends are reflected by
    (FFT - hop) / 2. A pre-emphasis applies to the reflected signal. The result is float32, or
    float64 for float64 input. Raises ValueError if T is too short to reflect.
    """
    shortest = config.data.shortest
    if audio.shape[-1] <= shortest:
        raise ValueError(
            f"audio of {audio.shape[-1]} samples is too short for a mel: more than {shortest} "
            "needed"
        )
    pad = [(0, 0)] * (audio.ndim - 1) + [(config.data.lead, config.data.lead)]
    return log_mel_of_padded(jnp.pad(audio, pad, mode="reflect"), config)


def log_mel_of_padded(padded: jax.Array, config: Config) -> jax.Array:
    """`[..., (F - 1) * hop + filter_length] -> [..., F, M]`: as `log_mel`, without reflection.

    It is for a clip that includes `data.lead` samples of its recording before its first sample, and
    enough after its last, so that its frames equal those of the whole recording.
    """
    data, mel_config = config.data, config.data.mel
    if mel_config.emphasis:
        # The first sample has no predecessor; the window is 0 there.
        before = jnp.concatenate([padded[..., :1], padded[..., :-1]], axis=-1)
        padded = padded - mel_config.emphasis * before
    frames = (padded.shape[-1] - data.filter_length) // data.hop_length + 1
    starts = np.arange(frames)[:, None] * data.hop_length + np.arange(data.filter_length)
    framed = padded[..., starts]
    window = jnp.asarray(stft_window(data), padded.dtype)
    spectrum = _magnitudes(rfft(framed * jnp.broadcast_to(window, framed.shape)), mel_config)
    filters = jnp.asarray(mel_filters(data, config.waveglow.n_mel_channels), padded.dtype)
    return written(jnp.matmul(spectrum, filters.T, precision=jax.lax.Precision.HIGHEST), data)


def _magnitudes(spectrum: jax.Array, mel: MelConfig) -> jax.Array:
    """`[..., bins]` complex -> what the filters apply to: magnitudes or powers."""
    if mel.epsilon:
        power = spectrum.real**2 + spectrum.imag**2 + mel.epsilon
        return power if mel.power == 2 else jnp.sqrt(power)
    magnitude = jnp.abs(spectrum)
    return magnitude**2 if mel.power == 2 else magnitude


def written(bands: jax.Array, data: DataConfig) -> jax.Array:
    """Bands m `[..., M]` -> the mel's values."""
    return cast(jax.Array, data.mel.written(bands, jnp))


def bands_of(mel: jax.Array, data: DataConfig) -> jax.Array:
    """The mel's values `[..., M]` -> the bands m that they stand for: the inverse of `written`."""
    form = data.mel
    if (form.slope, form.offset) == (1, 0):
        return jnp.exp(mel)
    if form.log == "none":
        return jnp.maximum((mel - form.offset) / form.gain, 0)
    return jnp.exp((mel - form.offset) / form.slope)


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
    """librosa's mel filters `[M, filter_length / 2 + 1]`, float32 as in the original.

    They are triangles over bands that are even on Slaney's mel scale (Auditory Toolbox, 1998) or on
    HTK's (2595 log10(1 + f / 700)), of unit area, or of unit height without a norm. They are
    computed here because importing librosa takes longer than everything else that `mel` does.
    """
    nyquist = data.sampling_rate / 2
    to_mel, to_hertz = _SCALES[data.mel.scale]
    lowest, highest = to_mel(np.array([data.mel_fmin, data.mel_fmax], np.float64))
    edges = to_hertz(np.linspace(lowest, highest, n_mel_channels + 2))[:, None]
    bins = np.linspace(0, nyquist, 1 + data.filter_length // 2)
    rising = (bins - edges[:-2]) / np.diff(edges[:-1], axis=0)
    falling = (edges[2:] - bins) / np.diff(edges[1:], axis=0)
    triangles = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    if data.mel.norm == "none":
        return triangles
    return (triangles * (2 / (edges[2:] - edges[:-2]))).astype(np.float32)


HERTZ_PER_MEL = 200 / 3
"""Hz per mel on Slaney's scale up to 1,000 Hz; above it, 27 mels are a factor of 6.4."""


def _slaney_of_hertz(hertz: np.ndarray) -> np.ndarray:
    above = 15 + np.log(np.maximum(hertz, 1000) / 1000) / (np.log(6.4) / 27)
    return np.where(hertz < 1000, hertz / HERTZ_PER_MEL, above)


def _hertz_of_slaney(mel: np.ndarray) -> np.ndarray:
    return np.where(
        mel < 15, HERTZ_PER_MEL * mel, 1000 * np.exp(np.log(6.4) / 27 * np.maximum(mel - 15, 0))
    )


def _htk_of_hertz(hertz: np.ndarray) -> np.ndarray:
    return 2595.0 * np.log10(1.0 + hertz / 700.0)


def _hertz_of_htk(mel: np.ndarray) -> np.ndarray:
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)


_SCALES = {
    "slaney": (_slaney_of_hertz, _hertz_of_slaney),
    "htk": (_htk_of_hertz, _hertz_of_htk),
}
