"""The mel-spectrogram conventions of other software: a table, and the mel of any of its rows.

Arrays: audio `[T]` samples in [-1, 1]; mel `[F, M]`, frames and bands. The module computes mels
with NumPy and librosa alone, independently of `audio/mel.py`, whose convention is one of the rows.
"""

import math
from dataclasses import dataclass, fields, replace
from functools import cache

import numpy as np

from waveglow_jax.audio.mel import LOG_FLOOR
from waveglow_jax.config import Config

HALF_HOP = "half a hop late"
DB = 20 / math.log(10)
"""Decibels per unit of the natural logarithm of a magnitude."""


@dataclass(frozen=True)
class Spectrum:
    """The parameters of a mel, except how its values are written.

    rate: sampling rate in Hz. scale, norm: of the filters, as librosa and torchaudio call them.
    power: 1 magnitude, 2 power, before the filters. frames: "centred" on multiples of the hop, or
    "half a hop late" (reflected by (n_fft - hop) / 2 and not centred). filter_rate: the rate that
    the filters were made for, 0 for that of the samples. emphasis: the coefficient of the
    pre-emphasis y_t = x_t - emphasis x_(t-1).
    """

    rate: int = 22050
    hop: int = 256
    n_fft: int = 1024
    win: int = 1024
    n_mels: int = 80
    fmin: float = 0.0
    fmax: float = 8000.0
    scale: str = "slaney"
    norm: str = "slaney"
    power: int = 1
    frames: str = "centred"
    filter_rate: int = 0
    emphasis: float = 0.0

    def differences(self, other: "Spectrum") -> tuple[str, ...]:
        """The names of the fields in which the other spectrum differs."""
        names = (each.name for each in fields(self))
        return tuple(name for name in names if getattr(self, name) != getattr(other, name))


@dataclass(frozen=True)
class Values:
    """How a mel m is written: x = slope ln(max(m, floor)) + offset; slope 0 is m itself.

    floor None: the mel has no visible floor, or one that depends on the recording.
    """

    name: str
    slope: float
    offset: float = 0.0
    floor: float | None = None


@dataclass(frozen=True)
class Convention:
    name: str
    spectrum: Spectrum
    values: Values


LN = Values("natural logarithm", 1.0)
LINEAR = Values("no logarithm", 0.0)
# For magnitudes; for powers the decibels per unit are halved, see `values_of`.
KNOWN_VALUES = (
    LN,
    LINEAR,
    Values("log10", 1 / math.log(10)),
    Values("log2", 1 / math.log(2)),
    Values("dB", DB),
    Values("[0, 1]: (dB + 100) / 100", DB / 100, 1.0),
    Values("[0, 1]: (dB + 80) / 100", DB / 100, 0.8),
    Values("[-1, 1]: (dB + 80) / 50 - 1", DB / 50, 0.6),
    Values("[0, 4]: (dB + 80) / 25", DB / 25, 3.2),
    Values("[-4, 4]: 8 (dB + 80) / 100 - 4", 8 * DB / 100, 2.4),
)


def values_of(power: int) -> tuple[Values, ...]:
    """The ways to write a mel of this power.

    Decibels are 10 log10 of a power but 20 log10 of a magnitude, so their slope is halved for
    powers; the slopes of plain logarithms are not.
    """
    plain = {LN.name, LINEAR.name, "log10", "log2"}
    return tuple(
        v if power == 1 or v.name in plain else replace(v, slope=v.slope / 2) for v in KNOWN_VALUES
    )


def _values(name: str, floor: float | None = None, power: int = 1) -> Values:
    return replace(next(v for v in values_of(power) if v.name == name), floor=floor)


_TACOTRON = Spectrum()
# torchaudio's normalized=True divides by the window's root of summed squares.
_NORMALIZED = 0.5 * math.log(384.0)
_DIFFWAVE = _values("[0, 1]: (dB + 80) / 100", 1e-5)

CONVENTIONS = (
    Convention("Tacotron 2 / WaveGlow", _TACOTRON, replace(LN, floor=1e-5)),
    Convention("HiFi-GAN / BigVGAN", replace(_TACOTRON, frames=HALF_HOP), replace(LN, floor=1e-5)),
    Convention(
        "BigVGAN, 24 kHz, 100 bands",
        Spectrum(rate=24000, n_mels=100, fmax=12000.0, frames=HALF_HOP),
        replace(LN, floor=1e-5),
    ),
    Convention(
        "BigVGAN, 44.1 kHz, 128 bands",
        Spectrum(44100, 512, 2048, 2048, 128, fmax=22050.0, frames=HALF_HOP),
        replace(LN, floor=1e-5),
    ),
    Convention(
        "Vocos, 24 kHz",
        Spectrum(rate=24000, n_mels=100, fmax=12000.0, scale="htk", norm="none"),
        replace(LN, floor=1e-7),
    ),
    Convention(
        "ParallelWaveGAN / ESPnet",
        Spectrum(fmin=80.0, fmax=7600.0),
        _values("log10", 1e-10),
    ),
    Convention(
        "ParallelWaveGAN / ESPnet, 24 kHz",
        Spectrum(24000, 300, 2048, 1200, fmin=80.0, fmax=7600.0),
        _values("log10", 1e-10),
    ),
    Convention(
        "librosa's default, in dB",
        Spectrum(22050, 512, 2048, 2048, 128, fmax=11025.0, power=2),
        _values("dB", power=2),
    ),
    Convention(
        "librosa's default, no logarithm",
        Spectrum(22050, 512, 2048, 2048, 128, fmax=11025.0, power=2),
        LINEAR,
    ),
    Convention(
        "torchaudio's default",
        Spectrum(22050, 200, 400, 400, 128, fmax=11025.0, scale="htk", norm="none", power=2),
        LINEAR,
    ),
    Convention(
        "torchaudio's default, 16 kHz",
        Spectrum(16000, 200, 400, 400, 128, fmax=8000.0, scale="htk", norm="none", power=2),
        LINEAR,
    ),
    Convention(
        "WaveRNN (fatchord)",
        Spectrum(22050, 275, 2048, 1100, fmin=40.0, fmax=11025.0),
        _values("[0, 1]: (dB + 100) / 100", 1e-5),
    ),
    Convention(
        "Tacotron-2 (Rayhane-mamah)",
        Spectrum(22050, 275, 2048, 1100, fmin=55.0, fmax=7600.0, emphasis=0.97),
        _values("[-4, 4]: 8 (dB + 80) / 100 - 4", 1e-5),
    ),
    Convention(
        "DiffWave / WaveGrad",
        Spectrum(fmin=20.0, fmax=11025.0, scale="htk", norm="none"),
        replace(_DIFFWAVE, offset=_DIFFWAVE.offset - _DIFFWAVE.slope * _NORMALIZED),
    ),
)
"""Taken from the software's sources; of several settings, those of its published voices."""


def own_convention(config: Config) -> Convention:
    """The convention of a voice of this config: the matching row of the table if there is one."""
    data = config.data
    spectrum = Spectrum(
        data.sampling_rate,
        data.hop_length,
        data.filter_length,
        data.win_length,
        config.waveglow.n_mel_channels,
        fmin=float(data.mel_fmin),
        fmax=float(data.mel_fmax),
    )
    for row in CONVENTIONS:
        if row.spectrum == spectrum and row.values == replace(LN, floor=LOG_FLOOR):
            return row
    return Convention("the voice's own", spectrum, replace(LN, floor=LOG_FLOOR))


def magnitudes(audio: np.ndarray, spectrum: Spectrum) -> np.ndarray:
    """Audio `[T]` at the spectrum's rate -> `[F, n_fft / 2 + 1]`; F is 0 if it is too short."""
    import librosa

    if spectrum.emphasis:
        audio = np.append(audio[:1], audio[1:] - spectrum.emphasis * audio[:-1])
    pad = spectrum.n_fft // 2
    if spectrum.frames == HALF_HOP:
        pad = (spectrum.n_fft - spectrum.hop) // 2
    if len(audio) <= max(pad, spectrum.n_fft):
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
