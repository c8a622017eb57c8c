"""The diagnosis of a mel without its recording, against the speech that the voice was trained on.

Arrays: mel in a file `[M, F]`, here `[F, M]`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from waveglow_jax.audio.conventions import CONVENTIONS, LN, Convention, Values, values_of
from waveglow_jax.audio.mel import LOG_FLOOR
from waveglow_jax.doctor.fit import Fit, at_floor
from waveglow_jax.doctor.notes import (
    DIFFERENCES,
    OTHER_BANDS,
    ROOT_OF_POWER,
    STANDARDISED,
    UNKNOWN,
    Diagnosis,
    Note,
    axes_notes,
    diagnosis_of,
    finite,
    floor_notes,
    value_notes,
)
from waveglow_jax.doctor.recipe import (
    FLOORS,
    floor_of,
    logarithm,
    orientations,
    standardised,
    turned_by,
)
from waveglow_jax.errors import UserError
from waveglow_jax.text import read_json
from waveglow_jax.weights.release import BUNDLED_VOICE

STATISTICS = BUNDLED_VOICE / "mel_statistics.json"
"""Of the speech that the bundled voice was trained on, by benchmarks/assets/mel_statistics.py."""


def features(log: np.ndarray, profile: np.ndarray) -> dict[str, float]:
    """Of a log-mel `[F, M]`: what tells speech written in one way from speech written in another.

    level: mean of all; spread: a band's standard deviation over time, averaged; tilt: how far the
    bands' means are, level aside, from the profile's, RMS; roughness: the mean step from frame to
    frame, as a share of the spread.
    """
    means = log.mean(axis=0)
    off = (means - means.mean()) - (profile - profile.mean())
    spread = float(log.std(axis=0).mean())
    return {
        "level": float(means.mean()),
        "spread": spread,
        "tilt": float(np.sqrt(np.mean(off**2))),
        "roughness": float(np.abs(np.diff(log, axis=0)).mean() / max(spread, 1e-6)),
    }


def diagnose_alone(array: np.ndarray, own: Convention) -> Diagnosis:
    """As `diagnose`, from the mel alone: its values and axes; the rest needs the recording.

    Raises UserError if the mel is too small to tell, or of no number of bands that is known.
    """
    statistics = read_json(STATISTICS)
    profile, typical = np.asarray(statistics["mean"]), statistics["features"]
    if min(array.shape) < 8 or max(array.shape) < 16:
        size = " x ".join(map(str, array.shape))
        raise UserError(f"a mel of {size} is too small to tell anything; take a longer one")
    lowest = array.min()
    array, notes = finite(array)
    guesses = []
    for axes in orientations(array, own.spectrum.n_mels):
        mel = turned_by(array, axes)
        at_bands = np.linspace(0, len(profile) - 1, mel.shape[1])
        expected = np.interp(at_bands, np.arange(len(profile)), profile)
        # Turned axes only if that explains a lot.
        turned = 4.0 * (axes.reversed + axes.transposed * (mel.shape[1] != len(profile)))
        for values, power, gain, unusual in _hypotheses():
            written = values.slope * gain + values.offset
            moved = replace(values, offset=written) if values.slope else values
            score, found = _implausibility(mel, moved, power, expected, typical)
            guesses.append((score + unusual + turned, values, power, gain, score, found, axes))
    guesses.sort(key=lambda guess: guess[0])
    _, values, power, gain, score, found, axes = guesses[0]
    mel = turned_by(array, axes)
    evidence: dict[str, Any] = {
        "implausibility": score,
        "values": values.name,
        **found,
        "lowest": float(mel.min()),
        "highest": float(mel.max()),
        "share_at_lowest": at_floor(mel),
        "floor": floor_of(mel, values),
        "next_best": [f"{_written(*g[1:3])}: {g[0]:.1f}" for g in guesses[1:4]],
    }
    if standardised(mel) and abs(mel.mean()) < 0.5:
        text = "every band is normalised, to about zero mean and unit variance"
        notes.append(Note(text, refusal=STANDARDISED))
        return diagnosis_of(
            notes, "a normalised mel, as ParallelWaveGAN / ESPnet train with", evidence
        )
    if score > IMPLAUSIBLE:
        text = "speech in no way of writing that is known"
        notes.append(Note(text, refusal=UNKNOWN))
        return diagnosis_of(notes, "unknown", evidence)
    notes += axes_notes(axes)
    if mel.shape[1] != own.spectrum.n_mels:
        said = DIFFERENCES["n_mels"].format(mel.shape[1], own.spectrum.n_mels)
        notes.append(Note(said, refusal=OTHER_BANDS))
    if power == 2:
        notes.append(Note(DIFFERENCES["power"].format(2, 1), refusal=ROOT_OF_POWER))
    blank = Fit(replace(own.spectrum, power=power), 0.0, slope=values.slope)
    notes += value_notes(mel, blank, values, gain)
    if _in_decibels(values):
        notes.append(Note("whether of a magnitude or of a power, only the recording tells"))
    if np.isfinite(lowest):
        notes += floor_notes(mel, blank, values, evidence["floor"], np.ones(1))
    return diagnosis_of(notes, _who_writes(values, power, mel.shape[1]), evidence)


IMPLAUSIBLE = 8.0
"""Beyond this a mel is not taken for speech; see `_implausibility`."""
_UNUSUAL = {"log2": 5.0}
"""How much more like speech a mel must be in another way of writing than in the voice's own: 2.5,
or this."""


def _hypotheses() -> Iterator[tuple[Values, int, float, float]]:
    """Values, power, ln of a gain, and how unusual that is."""
    for values in values_of(1):
        unusual = 0.0 if values == LN else _UNUSUAL.get(values.name, 2.5)
        yield values, 1, 0.0, unusual
        if values.slope and not values.name.startswith("["):
            yield values, 1, math.log(32768), unusual + 2
    for values in values_of(2):
        if not _in_decibels(values):  # the same as of a magnitude
            yield values, 2, 0.0, _UNUSUAL.get(values.name, 2.5)


def _in_decibels(values: Values) -> bool:
    return "dB" in values.name


def _implausibility(
    mel: np.ndarray,
    values: Values,
    power: int,
    expected: np.ndarray,
    typical: Mapping[str, list[float]],
) -> tuple[float, dict[str, float]]:
    """How unlike speech a mel is if its values are written so: squared deviations in all.

    The level may be off by 20 dB, the spread by a fifth, each counting one; tilt and roughness
    count beyond what recordings have. A floor that is a power of ten counts for it, any other
    against.
    """
    if (values.slope == 0 and mel.min() < 0) or not _within(mel, values.name):
        return math.inf, {}
    log = logarithm(mel, values) / power
    found = features(np.clip(log, math.log(LOG_FLOOR), None), expected)
    score = ((found["level"] - typical["level"][1]) / 2.3) ** 2
    score += (math.log(max(found["spread"], 1e-3) / typical["spread"][1]) / 0.2) ** 2
    score += (max(0.0, found["tilt"] - typical["tilt"][2]) / 0.5) ** 2
    score += (max(0.0, found["roughness"] - typical["roughness"][2]) / 0.1) ** 2
    if at_floor(mel) and values.slope:
        floor = (float(mel.min()) - values.offset) / values.slope
        score += -3.0 if min(abs(floor - math.log(each)) for each in FLOORS) < 0.01 else 3.0
    return score, found


def _within(mel: np.ndarray, name: str) -> bool:
    """Whether the mel keeps to the range that the values' name begins with, if it does."""
    if not name.startswith("["):
        return True
    low, high = map(float, name[1 : name.index("]")].split(","))
    return low - 1e-3 <= float(mel.min()) and float(mel.max()) <= high + 1e-3


def _written(values: Values, power: int) -> str:
    return (
        values.name
        if _in_decibels(values)
        else f"{values.name} of a {('magnitude', 'power')[power - 1]}"
    )


def _who_writes(values: Values, power: int, bands: int) -> str:
    """Software that writes values so: with as many bands, if there is any."""
    rows = [
        row
        for row in CONVENTIONS
        if row.values.name == values.name and (_in_decibels(values) or row.spectrum.power == power)
    ]
    same = [row for row in rows if row.spectrum.n_mels == bands] or rows
    written = _written(values, power)
    return f"{written}, as {' or '.join(row.name for row in same)}" if same else written
