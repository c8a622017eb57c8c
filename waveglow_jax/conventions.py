"""The mel-spectrogram conventions of other software, as a table.

A config names a row (`"mel": "vocos-24khz"` in `data_config`) or gives its fields
(`config_data.MelConfig`); `audio/mel.py` computes the mel.
"""

import difflib
import math
from dataclasses import dataclass, fields, replace

from waveglow_jax.errors import UserError

HALF_HOP = "half a hop late"
DB = 20 / math.log(10)
"""Decibels per unit of the natural logarithm of a magnitude."""


LEAST = 1e-10
"""The floor of the bands where a convention has a logarithm but states no floor of its own."""


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
    """A row of the table. key: its name in configs and commands.

    epsilon: what the software adds to the power of each FFT bin before its square root. ceiling:
    the largest m that it writes; 0 where there is none.
    """

    key: str
    name: str
    spectrum: Spectrum
    values: Values
    epsilon: float = 0.0
    ceiling: float = 0.0

    @property
    def floor(self) -> float:
        """The least m that is written; 0 where there is neither a floor nor a logarithm."""
        return self.values.floor or (0.0 if self.values.slope == 0 else LEAST)


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
_DIFFWAVE = _values("[0, 1]: (dB + 80) / 100")

CONVENTIONS = (
    Convention("tacotron2", "Tacotron 2 / WaveGlow", _TACOTRON, replace(LN, floor=1e-5)),
    Convention(
        "hifigan",
        "HiFi-GAN / BigVGAN",
        replace(_TACOTRON, frames=HALF_HOP),
        replace(LN, floor=1e-5),
        1e-9,
    ),
    Convention(
        "bigvgan-24khz",
        "BigVGAN, 24 kHz, 100 bands",
        Spectrum(rate=24000, n_mels=100, fmax=12000.0, frames=HALF_HOP),
        replace(LN, floor=1e-5),
        1e-9,
    ),
    Convention(
        "bigvgan-44khz",
        "BigVGAN, 44.1 kHz, 128 bands",
        Spectrum(44100, 512, 2048, 2048, 128, fmax=22050.0, frames=HALF_HOP),
        replace(LN, floor=1e-5),
        1e-9,
    ),
    Convention(
        "vocos-24khz",
        "Vocos, 24 kHz",
        Spectrum(rate=24000, n_mels=100, fmax=12000.0, scale="htk", norm="none"),
        replace(LN, floor=1e-7),
    ),
    Convention(
        "espnet",
        "ParallelWaveGAN / ESPnet",
        Spectrum(fmin=80.0, fmax=7600.0),
        _values("log10", 1e-10),
    ),
    Convention(
        "espnet-24khz",
        "ParallelWaveGAN / ESPnet, 24 kHz",
        Spectrum(24000, 300, 2048, 1200, fmin=80.0, fmax=7600.0),
        _values("log10", 1e-10),
    ),
    Convention(
        "librosa-db",
        "librosa's default, in dB",
        Spectrum(22050, 512, 2048, 2048, 128, fmax=11025.0, power=2),
        _values("dB", power=2),
    ),
    Convention(
        "librosa",
        "librosa's default, no logarithm",
        Spectrum(22050, 512, 2048, 2048, 128, fmax=11025.0, power=2),
        LINEAR,
    ),
    Convention(
        "torchaudio",
        "torchaudio's default",
        Spectrum(22050, 200, 400, 400, 128, fmax=11025.0, scale="htk", norm="none", power=2),
        LINEAR,
    ),
    Convention(
        "torchaudio-16khz",
        "torchaudio's default, 16 kHz",
        Spectrum(16000, 200, 400, 400, 128, fmax=8000.0, scale="htk", norm="none", power=2),
        LINEAR,
    ),
    Convention(
        "wavernn",
        "WaveRNN (fatchord)",
        Spectrum(22050, 275, 2048, 1100, fmin=40.0, fmax=11025.0),
        _values("[0, 1]: (dB + 100) / 100", 1e-5),
        ceiling=1.0,
    ),
    Convention(
        "rayhane",
        "Tacotron-2 (Rayhane-mamah)",
        Spectrum(22050, 275, 2048, 1100, fmin=55.0, fmax=7600.0, emphasis=0.97),
        # Bands are raised to 1e-5 and their values then to -4, which is 1e-4.
        _values("[-4, 4]: 8 (dB + 80) / 100 - 4", 1e-4),
        ceiling=10.0,
    ),
    Convention(
        "diffwave",
        "DiffWave / WaveGrad",
        Spectrum(fmin=20.0, fmax=11025.0, scale="htk", norm="none"),
        replace(
            _DIFFWAVE,
            offset=_DIFFWAVE.offset - _DIFFWAVE.slope * _NORMALIZED,
            # Bands are raised to 1e-5 and their values then to 0, which is 1e-4.
            floor=1e-4 * math.exp(_NORMALIZED),
        ),
        ceiling=10 * math.exp(_NORMALIZED),
    ),
)
"""The rows follow the software's sources. Where it has several settings, the row has those of its
published voices."""


def convention_named(key: str) -> Convention:
    """The row of the table with this key. Raises UserError, with the nearest keys, without one."""
    rows = {row.key: row for row in CONVENTIONS}
    if key not in rows:
        close = difflib.get_close_matches(key.lower(), rows, n=3, cutoff=0.4)
        known = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(rows)}"
        raise UserError(f"{key or 'an empty name'} is no known mel convention; {known}")
    return rows[key]
