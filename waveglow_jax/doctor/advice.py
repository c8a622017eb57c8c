"""Names the next step for a diagnosed mel: the flag, command or preset that takes it."""

import shlex

from waveglow_jax.config import load_config
from waveglow_jax.conventions import CONVENTIONS, Convention
from waveglow_jax.doctor.notes import Diagnosis
from waveglow_jax.presets import presets


def next_step(
    found: Diagnosis,
    own: Convention,
    mel: str,
    recording: str | None,
    fixed: str | None,
    weights: str | None = None,
    rate: int = 0,
) -> str:
    """Returns one line that names the command for the mel's file, as a shell takes it.

    fixed: the file that `--fix` wrote. weights: the voice's, None for the bundled one. rate: the
    recording's sampling rate in Hz; 0 if it is the voice's.
    """
    mel, voice = shlex.quote(mel), f" -w {shlex.quote(weights)}" if weights else ""
    if found.verdict == "fine":
        return f"synthesize {mel} -o DIR{voice}"
    if fixed:
        return f"synthesize {shlex.quote(fixed)} -o DIR{voice}"
    if recording is None:
        return (
            f"doctor RECORDING {mel}{voice}, which tells all of the convention and converts the mel"
        )
    recording = shlex.quote(recording)
    if found.verdict == "convertible":
        return f"doctor {recording} {mel}{voice} --fix OUT.npy, which converts it exactly"
    if found.key in ("", own.key):
        return f"{_computing(recording, own, rate, voice)}, which computes the voice's own mel"
    training = f"{_training(found.key)} --data RECORDINGS -o RUN"
    return f"{_approximately(found.key, own, mel, voice)}; or train a voice for it: {training}"


def _computing(recording: str, own: Convention, rate: int, voice: str) -> str:
    if rate in (0, own.spectrum.rate):
        return f"mel {recording} -o DIR{voice}"
    prepared = f"prepare {recording} -o PREPARED --rate {own.spectrum.rate}"
    return f"{prepared}, then mel PREPARED -o DIR{voice}"


def _approximately(key: str, own: Convention, mel: str, voice: str) -> str:
    said = f"synthesize {mel} --mel-convention {key} -o DIR{voice}"
    target = voice or (f" --to {own.key}" if own.key in {row.key for row in CONVENTIONS} else "")
    return f"{said}, or convert-mel {mel} --from {key}{target} -o DIR" if target else said


def _training(key: str) -> str:
    """The command that trains a voice for a row of the table: of a preset if there is one."""
    for name, path in presets().items():
        if load_config(path).convention.key == key:
            return f"train {name}"
    return f"train nvidia256 --data.mel {key}"
