"""The differences between a mel and the voice's own as text, each with the step that undoes it."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from waveglow_jax.conventions import DB, LN, Spectrum, Values
from waveglow_jax.doctor.fit import LOG_FLOOR, Case, Fit, at_ceiling, at_floor
from waveglow_jax.doctor.recipe import Recipe
from waveglow_jax.errors import UserError

DIFFERENCES = {
    "rate": "samples of {} Hz instead of {}",
    "hop": "a hop of {} samples instead of {}",
    "n_fft": "an FFT of {} instead of {}",
    "win": "a window of {} samples instead of {}",
    "n_mels": "{} bands instead of {}",
    "fmin": "bands from {:g} Hz instead of {:g}",
    "fmax": "bands up to {:g} Hz instead of {:g}",
    "scale": "the {} mel scale instead of {}",
    "norm": "filters with norm {} instead of {}",
    "power": "the spectrum to the power of {} instead of {}",
    "frames": "frames {} instead of {}",
    "filter_rate": "filters made for samples of {} Hz, with others filtered",
    "emphasis": "pre-emphasis {} instead of {}",
}
OTHER_BANDS = "the bands are others, each a different mixture of the spectrum"
_TIMES = "its frames lie at other times, and nothing between two frames is known exactly"
_WINDOW = "another window sees another spectrum"
UNKNOWN = "what cannot be recognised cannot be converted"
STANDARDISED = "undo that with the mean and variance it was made with; the mel does not hold them"
ROOT_OF_POWER = "a root of summed squares is no sum of magnitudes"
_WHY_NOT = {
    "rate": _TIMES,
    "hop": _TIMES,
    "frames": _TIMES,
    "n_fft": _WINDOW,
    "win": _WINDOW,
    "n_mels": OTHER_BANDS,
    "fmin": OTHER_BANDS,
    "fmax": OTHER_BANDS,
    "scale": OTHER_BANDS,
    "filter_rate": OTHER_BANDS,
    "emphasis": "what it took out differs within a band",
}


@dataclass(frozen=True)
class Note:
    """A difference from the voice's own mel.

    step: the step that undoes it exactly. refusal: the reason if no step does.
    """

    finding: str
    step: str = ""
    refusal: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """The diagnosis of a mel.

    verdict: "fine", "convertible" or "compute it again". convention: the convention it follows.
    findings: the differences from the voice's own mel. steps: how to convert it exactly. refused:
    the reasons why it cannot be converted. evidence: figures by name. recipe: the argument of
    `mended`, or None if the conversion is refused or the recording is missing.
    """

    verdict: str
    convention: str
    findings: tuple[str, ...]
    steps: tuple[str, ...]
    refused: tuple[str, ...]
    evidence: dict[str, Any]
    recipe: Recipe | None = None


def finite(array: np.ndarray) -> tuple[np.ndarray, list[Note]]:
    """The array with its lowest finite value wherever it is not finite, and notes about that.

    Raises UserError if no value is finite.
    """
    bad = ~np.isfinite(array)
    if not bad.any():
        return array, []
    if bad.all():
        raise UserError("none of its values is a finite number; compute the mel again")
    text = f"{bad.mean():.2%} of its values are not finite"
    note = Note(text, refusal=f"{text}: there is nothing to convert")
    if np.isneginf(array[bad]).all():
        floor = f"{math.log(LOG_FLOOR):.4f}"
        note = Note(f"{text}: the logarithm of 0, without a floor", f"raise those to {floor}")
    return np.where(bad, array[~bad].min(), array), [note]


def axes_notes(axes: Recipe) -> list[Note]:
    notes = []
    if axes.transposed:
        notes.append(
            Note(
                "the file holds [frames, bands] instead of [bands, frames]",
                "transpose it (synthesize does so by itself where the shape tells)",
            )
        )
    if axes.reversed:
        notes.append(Note("the bands run from high to low", "turn the bands around"))
    return notes


def spectrum_notes(case: Case, fit: Fit, own: Spectrum) -> list[Note]:
    found, notes = fit.spectrum, []
    for name in found.differences(own):
        if name == "fmax" and found.fmax == found.rate / 2 < own.fmax:
            continue  # fmax is as high as the rate allows
        said = DIFFERENCES[name].format(getattr(found, name), getattr(own, name))
        if name == "norm":
            notes.append(Note(said, "add to every band the logarithm of its filter's norm"))
        elif name == "power":
            notes.append(Note(said, refusal=_halving(case, fit)))
        else:
            notes.append(Note(said, refusal=_WHY_NOT[name]))
    return notes


def _halving(case: Case, fit: Fit) -> str:
    """Why the root of a power mel is no magnitude mel, with the error on this recording."""
    square = np.log(np.maximum(case.true_mel(fit.spectrum), 1e-30))
    plain = np.log(np.maximum(case.true_mel(replace(fit.spectrum, power=1)), 1e-30))
    off = (square / 2 - plain)[plain > math.log(LOG_FLOOR)]
    return (
        f"{ROOT_OF_POWER}: half its logarithm would be off by "
        f"{off.mean():+.2f} on average and {off.std():.2f} RMS around that"
    )


def value_notes(mel: np.ndarray, fit: Fit, values: Values, gain: float) -> list[Note]:
    notes, power = [], fit.spectrum.power
    if fit.by_band:
        text = "every band is normalised by itself, to about zero mean and unit variance"
        why = (
            "undo it with the mean and variance that it was made with, which the mel does not hold"
        )
        notes.append(Note(text, refusal=why))
    elif values.name == "another power of the magnitude":
        text = f"the magnitude to the power of {fit.slope:.3g}, no logarithm"
        notes.append(Note(text, refusal=f"{text}: of no convention known"))
    elif values.name == "normalised otherwise":
        formula = f"{values.slope:.6g} ln m {values.offset:+.6g}"
        step = f"subtract {values.offset:.6g}, then divide by {values.slope:.6g}, as measured here"
        notes.append(Note(f"normalised: {formula} instead of ln m", step))
    elif values.slope == 0:
        notes.append(Note("no logarithm at all", "take the natural logarithm"))
    elif values.name != LN.name:
        inverse = f"multiply by {1 / values.slope:.6f}"
        if values.offset:
            inverse = f"subtract {values.offset:.6g}, then {inverse}"
        notes.append(Note(f"{values.name} instead of the natural logarithm", inverse))
    if at_ceiling(mel) and values.name.startswith("["):
        text = f"clipped at {mel.max():.4g}, {at_ceiling(mel):.1%} of its points"
        notes.append(Note(text, refusal=f"{text}: what was above is lost"))
    decibels = DB * gain / power
    if abs(decibels) > 0.1 + 10 * math.sqrt(fit.unexplained):
        louder = "louder" if gain > 0 else "softer"
        text = f"{abs(decibels):.1f} dB {louder} than the recording"
        if abs(decibels - DB * math.log(32768)) < 1:
            text += ": of 16-bit samples that were not scaled to [-1, 1]"
        elif abs(mel.max()) < 1e-6 and values.name == "dB":
            text += ": in dB below its own loudest point"
        # A mel of softer samples is exact as it is, including its floor.
        step = f"{'subtract' if gain > 0 else 'add'} {abs(gain):.6g}, or leave it"
        notes.append(Note(text, f"{step}: the voice will be as much {louder}"))
    return notes


def floor_notes(
    mel: np.ndarray, fit: Fit, values: Values, floor: float | None, bands: np.ndarray
) -> list[Note]:
    if floor is None or fit.by_band:
        return []
    relative = DB * (mel.max() - mel.min()) / values.slope / fit.spectrum.power
    said = f"at {floor:.3g}"
    if values.name == "dB" and abs(relative - 80) < 0.1:
        said = "80 dB below its loudest"
    if fit.spectrum.power == 1 and floor * bands.max() > 1.05 * LOG_FLOOR:
        text = f"floored {said}, {at_floor(mel):.1%} of its points"
        return [Note(text, refusal=f"{text}: what lay between that and {LOG_FLOOR:g} is lost")]
    if floor < 0.95 * LOG_FLOOR and fit.spectrum.norm == "slaney" and fit.spectrum.power == 1:
        text = f"floored {said} instead of {LOG_FLOOR:g}"
        return [Note(text, f"raise what is below {math.log(LOG_FLOOR):.4f} to it")]
    return []


def time_notes(case: Case, fit: Fit) -> list[Note]:
    spectrum, lag = fit.spectrum, fit.lag
    if lag == 0:
        return []
    frames = f"{abs(lag)} frame{'s' * (abs(lag) > 1)}"
    if lag > 0:
        return [Note(f"{frames} late", f"drop the first {frames}")]
    samples = round(case.n_samples * spectrum.rate / case.rate)
    plain = abs(-lag * spectrum.hop - spectrum.n_fft / 2) < spectrum.hop
    plain &= abs(case.n_frames - 1 - (samples - spectrum.n_fft) // spectrum.hop) <= 1
    why = ": neither centred nor padded" if plain else ""
    return [
        Note(f"{frames} early{why}", refusal=f"{frames} are missing at its start; pad and centre")
    ]


def diagnosis_of(notes: list[Note], convention: str, evidence: dict[str, Any]) -> Diagnosis:
    refused = tuple(dict.fromkeys(note.refusal for note in notes if note.refusal))
    return Diagnosis(
        verdict="compute it again" if refused else "convertible" if notes else "fine",
        convention=convention,
        findings=tuple(note.finding for note in notes),
        steps=() if refused else tuple(note.step for note in notes if note.step),
        refused=refused,
        evidence=evidence,
    )
