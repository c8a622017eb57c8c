"""Names the next step for a diagnosed mel: the flag, command or preset that takes it."""

from waveglow_jax.config import load_config
from waveglow_jax.conventions import CONVENTIONS, Convention
from waveglow_jax.doctor.notes import Diagnosis
from waveglow_jax.presets import presets


def next_step(
    found: Diagnosis, own: Convention, mel: str, recording: str | None, fixed: str | None
) -> str:
    """One line that names the command for the mel's file. fixed: the file that `--fix` wrote."""
    if found.verdict == "fine":
        return f"synthesize {mel}"
    if fixed:
        return f"synthesize {fixed}"
    if recording is None:
        return f"doctor RECORDING {mel}, which tells all of the convention and converts the mel"
    if found.verdict == "convertible":
        return f"doctor {recording} {mel} --fix OUT.npy, which converts it exactly"
    if found.key in ("", own.key):
        return f"mel {recording} -o DIR, which computes the voice's own mel"
    return f"{_approximately(found.key, own, mel)}; or train a voice for it: {_training(found.key)}"


def _approximately(key: str, own: Convention, mel: str) -> str:
    said = f"synthesize {mel} --mel-convention {key}"
    if own.key not in {row.key for row in CONVENTIONS}:
        return said
    return f"{said}, or convert-mel {mel} --from {key} --to {own.key} -o OUT"


def _training(key: str) -> str:
    """The command that trains a voice for a row of the table: of a preset if there is one."""
    for name, path in presets().items():
        if load_config(path).convention.key == key:
            return f"train {name}"
    return f"train nvidia256 --data.mel {key}"
