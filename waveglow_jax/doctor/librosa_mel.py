"""Mels of any convention with NumPy and librosa alone, in float32 and without compilation.

The doctor tries hundreds of conventions on a recording; tests take these mels as a reference that
is independent of `audio/mel.py`. Arrays: audio `[T]` samples in [-1, 1]; mel `[F, M]`.
"""

from functools import cache

import numpy as np

from waveglow_jax.conventions import HALF_HOP, Spectrum


def magnitudes(audio: np.ndarray, spectrum: Spectrum) -> np.ndarray:
    """Audio `[T]` at the spectrum's rate -> `[F, n_fft / 2 + 1]`.

    F is 0 if it is too short, or if frames half a hop late would not touch each other.
    """
    import librosa

    if spectrum.emphasis:
        audio = np.append(audio[:1], audio[1:] - spectrum.emphasis * audio[:-1])
    pad = spectrum.n_fft // 2
    if spectrum.frames == HALF_HOP:
        pad = (spectrum.n_fft - spectrum.hop) // 2
    if pad < 0 or len(audio) <= max(pad, spectrum.n_fft):
        return np.zeros((0, spectrum.n_fft // 2 + 1), np.float32)
    padded = np.pad(audio, (pad, pad), mode="reflect")
    stft = librosa.stft(
        padded,
        n_fft=spectrum.n_fft,
        hop_length=spectrum.hop,
        win_length=spectrum.win,
        center=False,
    )
    return np.abs(stft).T


def mel_of_magnitudes(magnitude: np.ndarray, spectrum: Spectrum) -> np.ndarray:
    """The mel `[F, M]` of magnitudes `[F, bins]`, without a logarithm."""
    return magnitude**spectrum.power @ filters(spectrum).T


@cache
def filters(spectrum: Spectrum) -> np.ndarray:
    """The mel filters `[M, n_fft / 2 + 1]`, float32."""
    import warnings

    import librosa

    rate = spectrum.filter_rate or spectrum.rate
    with warnings.catch_warnings():
        # librosa warns of bands that contain no bin, but some conventions have such bands.
        warnings.simplefilter("ignore", UserWarning)
        return librosa.filters.mel(
            sr=rate,
            n_fft=spectrum.n_fft,
            n_mels=spectrum.n_mels,
            fmin=spectrum.fmin,
            fmax=min(spectrum.fmax, rate / 2),
            htk=spectrum.scale == "htk",
            norm=None if spectrum.norm == "none" else "slaney",
        )
