"""The diagnosis of a mel without its recording, from statistics of the voice's training speech.

Arrays: mel in a file `[M, F]`, in this module `[F, M]`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from waveglow_jax.conventions import CONVENTIONS, LN, Convention, Values, values_of
from waveglow_jax.doctor.fit import AUDIBLE, Fit, at_floor
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
"""Statistics of the bundled voice's training speech, from benchmarks/assets/mel_statistics.py."""


def features(log: np.ndarray, profile: np.ndarray) -> dict[str, float]:
    """Features of a log-mel `[F, M]` that distinguish speech written in different conventions.

    level: the mean of all values. spread: the standard deviation over time, averaged over the
    bands. tilt: the RMS deviation of the bands' means from the profile, with both levels removed.
    roughness: the mean absolute change from frame to frame, divided by the spread.
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
    """Diagnoses a mel as `diagnose` does, but without its recording.

    It covers the mel's values and axes; everything else needs the recording. Raises UserError if
    the mel is too small or has no finite value.
    """
    statistics = read_json(STATISTICS)
    profile, typical = np.asarray(statistics["mean"]), statistics["features"]
    if min(array.shape) < 8 or max(array.shape) < 16:
        size = " x ".join(map(str, array.shape))
        raise UserError(f"a mel of {size} is too small to tell anything; take a longer one")
    lowest = array.min()
    array, notes = finite(array, own)
    guesses = []
    for axes in orientations(array, own.spectrum.n_mels):
        if axes.transposed and array.shape[0] == array.shape[1]:
            continue  # it is read as `read_mel` reads it: the statistics do not tell the axes
        mel = turned_by(array, axes)
        at_bands = np.linspace(0, len(profile) - 1, mel.shape[1])
        expected = np.interp(at_bands, np.arange(len(profile)), profile)
        # Turned axes cost 4 points, so that they win only if they explain much more.
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
    notes += value_notes(mel, blank, values, gain, own)
    if _in_decibels(values):
        notes.append(Note("whether of a magnitude or of a power, only the recording tells"))
    if np.isfinite(lowest):
        notes += floor_notes(mel, blank, values, evidence["floor"], np.ones(1), own)
    return diagnosis_of(notes, _who_writes(values, power, mel.shape[1]), evidence)


IMPLAUSIBLE = 8.0
"""A mel whose `_implausibility` exceeds this is not taken for speech."""
_UNUSUAL = {"log2": 5.0}
"""Penalty, added to the implausibility, for values not written as the voice's own are.

The default is 2.5; this lists the exceptions.
"""


def _hypotheses() -> Iterator[tuple[Values, int, float, float]]:
    """Yields hypotheses: values, power, ln of a gain, and a penalty for unusual ones."""
    for values in values_of(1):
        unusual = 0.0 if values == LN else _UNUSUAL.get(values.name, 2.5)
        yield values, 1, 0.0, unusual
        if values.slope and not values.name.startswith("["):
            yield values, 1, math.log(32768), unusual + 2
    for values in values_of(2):
        if not _in_decibels(values):  # decibels are the same for power and magnitude
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
    """How unlike speech a mel is if its values are written this way: a sum of squared deviations.

    Infinity if the mel leaves the range of the values; the features come with the score. A level
    that is off by 20 dB adds 1, and so does a spread that is off by a fifth. Tilt and roughness
    count only above the range of real recordings. A floor at a power of ten lowers the score by 3,
    and any other floor raises it by 3.
    """
    if (values.slope == 0 and mel.min() < 0) or not _within(mel, values.name):
        return math.inf, {}
    log = logarithm(mel, values) / power
    found = features(np.clip(log, math.log(AUDIBLE), None), expected)
    score = ((found["level"] - typical["level"][1]) / 2.3) ** 2
    score += (math.log(max(found["spread"], 1e-3) / typical["spread"][1]) / 0.2) ** 2
    score += (max(0.0, found["tilt"] - typical["tilt"][2]) / 0.5) ** 2
    score += (max(0.0, found["roughness"] - typical["roughness"][2]) / 0.1) ** 2
    if at_floor(mel) and values.slope:
        floor = (float(mel.min()) - values.offset) / values.slope
        score += -3.0 if min(abs(floor - math.log(each)) for each in FLOORS) < 0.01 else 3.0
    return score, found


def _within(mel: np.ndarray, name: str) -> bool:
    """Whether the mel stays in the range that the values' name begins with; True if none does."""
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
    """The name of the values with the software that writes them, preferably in as many bands."""
    rows = [
        row
        for row in CONVENTIONS
        if row.values.name == values.name and (_in_decibels(values) or row.spectrum.power == power)
    ]
    same = [row for row in rows if row.spectrum.n_mels == bands] or rows
    written = _written(values, power)
    return f"{written}, as {' or '.join(row.name for row in same)}" if same else written
