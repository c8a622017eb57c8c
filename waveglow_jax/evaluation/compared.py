"""What an evaluation compares with the recordings: baselines, systems and their weights."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waveglow_jax.config import DataConfig
from waveglow_jax.errors import UserError
from waveglow_jax.evaluation.baselines import GRIFFIN_LIM, Baseline, baselines_of
from waveglow_jax.evaluation.systems import RECORDINGS, System, is_audio_folder, with_own_settings


@dataclass(frozen=True)
class Compared:
    """What is compared with the recordings.

    baselines, systems: the rows after the recordings', in this order. voices: of the systems whose
    source is weights, by name. rate: that of all weights, in Hz.
    """

    baselines: Sequence[Baseline]
    systems: Sequence[System]
    voices: dict[str, Any]
    rate: int

    @property
    def names(self) -> list[str]:
        """The names of all rows, the recordings' first."""
        of_systems = [each.name for each in self.systems]
        return [RECORDINGS, *(each.name for each in self.baselines), *of_systems]


def compared_of(
    systems: Sequence[System],
    baselines: Sequence[str],
    griffin_lim_iterations: int,
    noise_corrections: int,
) -> Compared:
    """What is compared, with its weights loaded.

    Raises UserError for two rows of one name, and for weights that cannot be read or are of
    different rates.
    """
    voices = _load_voices(systems)
    rate = _common_rate([voice.config.data for voice in voices.values()])
    # Of several conventions that of the first weights counts, which the report names.
    config = next((voice.config for voice in voices.values()), None)
    from_mels = baselines_of(baselines, griffin_lim_iterations, noise_corrections, config)
    compared = Compared(from_mels, systems, voices, rate)
    for name in compared.names:
        if compared.names.count(name) > 1:
            raise UserError(f"--system {name}: two systems of that name; rename one")
    return compared


def baseline_among(names: Sequence[str], chosen: str | None) -> str:
    """The row that the others are compared with."""
    if chosen is None:
        return GRIFFIN_LIM if GRIFFIN_LIM in names else names[1]
    if chosen not in names:
        raise UserError(f"--baseline {chosen}: no such system; there are {', '.join(names)}")
    return chosen


def _load_voices(systems: Sequence[System]) -> dict[str, Any]:
    """The voice of each system whose source is weights; the same weights are loaded only once."""
    loaded: dict[str | None, Any] = {}
    voices = {}
    for system in systems:
        if is_audio_folder(system.source):
            if system != System(system.name, system.source):
                raise UserError(
                    f"--system {system.name}: {system.source} holds recordings, which sigma, "
                    "denoise, consistency, dtype and seed do not change; take them out"
                )
            continue
        if system.source not in loaded:
            from waveglow_jax.synthesis.vocoder import load

            loaded[system.source] = load(system.source)
        voices[system.name] = loaded[system.source]
    return voices


def _common_rate(of_voices: Sequence[DataConfig]) -> int:
    rates = {data.sampling_rate for data in of_voices} or {DataConfig().sampling_rate}
    if len(rates) > 1:
        raise UserError(
            f"the weights are of different sampling rates, {sorted(rates)} Hz; evaluate those of "
            "one rate at a time"
        )
    return rates.pop()


def name_of(folder: str | Path) -> str:
    return os.path.basename(os.path.realpath(folder))


def sources(compared: Compared, reference: str | Path) -> dict[str, str]:
    """What every row was made from, by the row's name."""
    found = {RECORDINGS: name_of(reference)}
    found |= {each.name: each.about for each in compared.baselines}
    for each in compared.systems:
        found[each.name] = described(each, compared.voices.get(each.name))
    return found


def described(system: System, voice: Any | None) -> str:
    """A system's source and the settings of its audio, including the voice's own settings."""
    if voice is not None:
        system = with_own_settings(system, voice.config)
    settings = [
        f"{key}={value if isinstance(value, str) else format(value, 'g')}"
        for key in ("sigma", "denoise", "consistency")
        if (value := getattr(system, key)) is not None
    ]
    settings += [f"dtype={system.dtype}"] * (system.dtype != "float32")
    settings += [f"seed={system.seed}"] * (system.seed != 0)
    source = Path(system.source).name if system.source else "bundled voice"
    return " ".join([source, *settings])
