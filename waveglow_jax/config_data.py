"""The section `data_config`: the audio, the clips, and the convention of the mel."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Annotated, Any

from waveglow_jax.config_fields import Bounds, OneOf
from waveglow_jax.conventions import (
    CONVENTIONS,
    DB,
    HALF_HOP,
    LINEAR,
    Convention,
    Spectrum,
    Values,
    convention_named,
    values_of,
)
from waveglow_jax.errors import UserError

# Units of each logarithm per unit of the natural logarithm of a magnitude.
_UNITS = {"ln": 1.0, "log10": 1 / math.log(10), "log2": 1 / math.log(2), "dB": DB, "none": 0.0}
_LEAST_FLOOR = 1.2e-38
"""Smaller numbers are subnormal in float32, and programs take those for 0."""


def _unit(log: str, power: int) -> float:
    """Units of a logarithm per unit of ln m, for bands m of this power."""
    return _UNITS[log] / (power if log == "dB" else 1)


@dataclass(frozen=True)
class MelConfig:
    """How a mel is computed and written, beyond the sizes in `DataConfig`. Default: Tacotron 2's.

    A band is m = sum of filter * |X|^power over the bins X of the FFT, with filters that are
    triangles on the mel `scale`, of area 1 (`norm` "slaney") or height 1 ("none"). It is written as
    x = gain * log(min(max(m, floor), ceiling)) + offset; a decibel is 20 log10 of a magnitude and
    10 log10 of a power. `log` "none" writes m itself, `ceiling` 0 limits nothing. `frames`: frame f
    is "centred" on sample f * hop, or lies "half a hop late". `epsilon` is added to |X|^2;
    `emphasis` is the coefficient of a pre-emphasis y_t = x_t - emphasis x_(t-1).
    """

    scale: Annotated[str, OneOf("slaney", "htk")] = "slaney"
    norm: Annotated[str, OneOf("slaney", "none")] = "slaney"
    power: Annotated[int, Bounds(1, 2)] = 1
    frames: Annotated[str, OneOf("centred", HALF_HOP)] = "centred"
    epsilon: Annotated[float, Bounds(0, 1)] = 0.0
    emphasis: Annotated[float, Bounds(0, 1, below_high=True)] = 0.0
    log: Annotated[str, OneOf(*_UNITS)] = "ln"
    gain: Annotated[float, Bounds(0, 1e6, above_low=True)] = 1.0
    offset: Annotated[float, Bounds(-1e6, 1e6)] = 0.0
    floor: Annotated[float, Bounds(0, 1)] = 1e-5
    ceiling: Annotated[float, Bounds(0, 1e9)] = 0.0

    @property
    def late(self) -> bool:
        """Whether frame f lies half a hop after sample f * hop."""
        return self.frames == HALF_HOP

    @property
    def slope(self) -> float:
        """Units of the written values per unit of ln m; 0 without a logarithm."""
        return self.gain * _unit(self.log, self.power)

    @property
    def log_named(self) -> str:
        """The unit of the mel's values, for a plot."""
        if self.log == "none":
            return "mel without logarithm"
        return f"{self.log} {'magnitude' if self.power == 1 else 'power'}"

    @property
    def lowest(self) -> float:
        """The lowest value that a mel has, that of silence."""
        return float(self.value_of(self.floor, math))

    def value_of(self, m: Any, xp: Any) -> Any:
        """How the mel writes bands m, which no floor and no ceiling limits here.

        xp: the module that computes with m: `math` for a number, NumPy or `jax.numpy` for an array.
        """
        if self.log == "none":
            return m if (self.gain, self.offset) == (1, 0) else self.gain * m + self.offset
        log = xp.log(m)
        return log if (self.slope, self.offset) == (1, 0) else self.slope * log + self.offset

    def written(self, bands: Any, xp: Any) -> Any:
        """Bands m `[..., M]` -> the mel's values. xp: NumPy or `jax.numpy`, as the bands are."""
        bands = xp.maximum(bands, self.floor)
        if self.ceiling:
            bands = xp.minimum(bands, self.ceiling)
        return self.value_of(bands, xp)

    def check(self) -> None:
        if self.floor == 0 and self.log != "none":
            raise UserError(
                f"data_config.mel.floor 0 has no logarithm ({self.log}): give a small number, such "
                "as 1e-5"
            )
        if self.floor < _LEAST_FLOOR and self.log != "none":
            raise UserError(
                f"data_config.mel.floor {self.floor} is 0 in float32, which has no logarithm "
                f"({self.log}): give at least {_LEAST_FLOOR}"
            )
        if self.ceiling and self.ceiling <= self.floor:
            raise UserError(
                f"data_config.mel.ceiling {self.ceiling} must be above its floor {self.floor}, or 0"
            )


@dataclass(frozen=True)
class DataConfig:
    """The audio and its mel; `segment_length` is the length of a training clip in samples."""

    training_files: str = ""
    segment_length: Annotated[int, Bounds(1, 2**24)] = 16000
    sampling_rate: Annotated[int, Bounds(1, 1_000_000)] = 22050
    filter_length: Annotated[int, Bounds(1, 2**16)] = 1024
    hop_length: Annotated[int, Bounds(1, 2**16)] = 256
    win_length: Annotated[int, Bounds(1, 2**16)] = 1024
    mel_fmin: Annotated[float, Bounds(0, 500_000)] = 0.0
    mel_fmax: Annotated[float, Bounds(0, 500_000, above_low=True)] = 8000.0
    mel: MelConfig = field(default_factory=MelConfig)

    @property
    def lead(self) -> int:
        """Samples before sample 0 that frame 0 includes: the reflected ones at a signal's ends."""
        return (self.filter_length - (self.hop_length if self.mel.late else 0)) // 2

    @property
    def shortest(self) -> int:
        """Signals must have more samples than this for a mel: to be reflected, and for a frame."""
        return max(self.lead, self.hop_length - 1 if self.mel.late else 0)

    def frames_of(self, n_samples: Any) -> Any:
        """The number of frames of a signal's mel; an integer, a symbolic one or an array of them.

        It is 1 + n // hop for centred frames, and n // hop for those half a hop late.
        """
        return n_samples // self.hop_length + (0 if self.mel.late else 1)

    def check(self) -> None:
        if not isinstance(self.mel, MelConfig):
            raise UserError(
                f"data_config.mel {self.mel!r} is no MelConfig; synthesis.foreign.config_of(NAME) "
                "is the config of a convention's name"
            )
        if self.filter_length % 2:
            raise UserError(f"data_config.filter_length {self.filter_length} must be even")
        if self.win_length > self.filter_length:
            raise UserError(
                f"data_config.win_length {self.win_length} is above filter_length "
                f"{self.filter_length}: the window must fit into the FFT"
            )
        if not 0 <= self.mel_fmin < self.mel_fmax <= self.sampling_rate / 2:
            raise UserError(
                f"data_config: mel_fmin {self.mel_fmin} and mel_fmax {self.mel_fmax} must lie in "
                f"order between 0 and half the sampling_rate, {self.sampling_rate / 2:g} Hz"
            )
        if self.mel.late and (self.hop_length % 2 or self.hop_length > self.filter_length):
            raise UserError(
                f"data_config.hop_length {self.hop_length} must be even and at most filter_length "
                f"{self.filter_length} for frames half a hop late"
            )
        self.mel.check()


# ------------------------------------------------------------------------------ rows of the table


def mel_config_of(row: Convention) -> MelConfig:
    """How the mel of a convention is computed and written."""
    spectrum, values = row.spectrum, row.values
    log = next((each for each in ("log10", "log2", "none") if each in values.name), "ln")
    log = {LINEAR.name: "none"}.get(values.name, "dB" if "dB" in values.name else log)
    unit = _unit(log, spectrum.power)
    # Rounded, so that a gain such as 1/100 is the number that a person would write.
    gain = round(values.slope / unit, 12) if unit else 1.0
    return MelConfig(
        scale=spectrum.scale,
        norm=spectrum.norm,
        power=spectrum.power,
        frames=spectrum.frames,
        epsilon=row.epsilon,
        emphasis=spectrum.emphasis,
        log=log,
        gain=gain,
        offset=values.offset,
        floor=row.floor,
        ceiling=row.ceiling,
    )


def fields_of(row: Convention) -> dict[str, dict[str, Any]]:
    """The fields of a config, by section, that a row of the table determines."""
    spectrum = row.spectrum
    data = {
        "sampling_rate": spectrum.rate,
        "filter_length": spectrum.n_fft,
        "hop_length": spectrum.hop,
        "win_length": spectrum.win,
        "mel_fmin": spectrum.fmin,
        "mel_fmax": spectrum.fmax,
        "mel": dataclasses.asdict(mel_config_of(row)),
    }
    return {"data_config": data, "waveglow_config": {"n_mel_channels": spectrum.n_mels}}


def spell_out_mel(raw: dict[str, Any], replacing: bool = False) -> None:
    """Replaces the name of a convention in the JSON of a config by its fields, in place.

    replacing: whether the row's fields take precedence over other fields that the JSON holds (a
    name on the command line); otherwise a field that contradicts the row raises UserError, as does
    an unknown name.
    """
    named = raw.get("data_config")
    if not isinstance(named, dict) or not isinstance(named.get("mel"), str):
        return
    key = named.pop("mel")
    try:
        row = convention_named(key)
    except UserError as error:
        raise UserError(f"data_config.mel: {error}") from None
    for section, values in fields_of(row).items():
        held = raw.setdefault(section, {})
        if not isinstance(held, dict):
            raise UserError(f"{section} must be a JSON object")
        for name, value in values.items():
            if replacing:
                held[name] = value
            elif held.setdefault(name, value) != value:
                raise UserError(
                    f"data_config.mel {key} means {section}.{name} {json.dumps(value)}, but that "
                    f"is {json.dumps(held[name])}: take it out, or give mel's fields, not its name"
                )


def convention_of(data: DataConfig, n_mel_channels: int) -> Convention:
    """A config's convention: the matching row of the table if there is one."""
    found = {
        "data_config": dataclasses.asdict(data),
        "waveglow_config": {"n_mel_channels": n_mel_channels},
    }
    for row in CONVENTIONS:
        row_fields = fields_of(row)
        if all(
            found[section][name] == value
            for section, values in row_fields.items()
            for name, value in values.items()
        ):
            return row
    mel = data.mel
    spectrum = Spectrum(
        data.sampling_rate,
        data.hop_length,
        data.filter_length,
        data.win_length,
        n_mel_channels,
        data.mel_fmin,
        data.mel_fmax,
        mel.scale,
        mel.norm,
        mel.power,
        mel.frames,
        emphasis=mel.emphasis,
    )
    known = (
        each.name
        for each in values_of(mel.power)
        if (each.slope, each.offset) == (mel.slope, mel.offset)
    )
    values = Values(next(known, "normalised otherwise"), mel.slope, mel.offset, mel.floor or None)
    return Convention("own", "the voice's own", spectrum, values, mel.epsilon, mel.ceiling)
