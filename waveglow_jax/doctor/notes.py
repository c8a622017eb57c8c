"""The differences between a mel and the voice's own as text, each with the step that undoes it."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from waveglow_jax.conventions import DB, LN, Convention, Spectrum, Values
from waveglow_jax.doctor.fit import AUDIBLE, Case, Fit, at_ceiling, at_floor
from waveglow_jax.doctor.recipe import Recipe, written
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
_SQUARE_OF_SUM = "a square of summed magnitudes is no sum of squares"
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
    key: the key of the row of the table that it follows exactly, or "".
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
    key: str = ""


def finite(array: np.ndarray, own: Convention) -> tuple[np.ndarray, list[Note]]:
    """The array with its lowest finite value wherever it is not finite, and notes about that.

    Values beyond float32 count as not finite. Raises UserError if no value is finite.
    """
    bad = ~(np.abs(array) <= np.finfo(np.float32).max)
    if not bad.any():
        return array, []
    if bad.all():
        raise UserError("none of its values is a finite number; compute the mel again")
    text = f"{bad.mean():.2%} of its values are not finite"
    note = Note(text, refusal=f"{text}: there is nothing to convert")
    if np.isneginf(array[bad]).all():
        lowest = f"{_lowest(own):.4f}"
        note = Note(f"{text}: the logarithm of 0, without a floor", f"raise those to {lowest}")
    return np.where(bad, array[~bad].min(), array), [note]


def _lowest(own: Convention) -> float:
    """The lowest value that the voice's mel has."""
    return float(written(-math.inf, own))


def same_values(first: Values, second: Values) -> bool:
    """Whether both write a mel alike, above the floor."""
    return (first.slope, first.offset) == (second.slope, second.offset)


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
            notes.append(Note(said, refusal=_other_power(case, fit, own)))
        else:
            notes.append(Note(said, refusal=_WHY_NOT[name]))
    return notes


def _other_power(case: Case, fit: Fit, own: Spectrum) -> str:
    """The reason why a power mel cannot be converted exactly to a magnitude mel, or the reverse,
    with the error of half or twice its logarithm on this recording."""
    there = np.log(np.maximum(case.true_mel(fit.spectrum), 1e-30))
    wanted = np.log(np.maximum(case.true_mel(replace(fit.spectrum, power=own.power)), 1e-30))
    factor = own.power / fit.spectrum.power
    off = (factor * there - wanted)[wanted > own.power * math.log(AUDIBLE)]
    why, how = (ROOT_OF_POWER, "half") if factor < 1 else (_SQUARE_OF_SUM, "twice")
    return (
        f"{why}: {how} its logarithm would be off by "
        f"{off.mean():+.2f} on average and {off.std():.2f} RMS around that"
    )


def value_notes(
    mel: np.ndarray, fit: Fit, values: Values, gain: float, own: Convention
) -> list[Note]:
    notes, power = [], fit.spectrum.power
    in_own = "ln m" if own.values.name == LN.name else own.values.name
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
        step += _from_ln(own.values)
        notes.append(Note(f"normalised: {formula} instead of {in_own}", step))
    elif same_values(values, own.values):
        pass
    elif values.slope == 0:
        step = "take the natural logarithm" + _from_ln(own.values)
        notes.append(Note("no logarithm at all", step))
    else:
        wanted = "the natural logarithm" if own.values.name == LN.name else own.values.name
        notes.append(Note(f"{values.name} instead of {wanted}", _rewritten(values, own.values)))
    own_ceiling = own.ceiling and same_values(values, own.values)
    if at_ceiling(mel) and values.name.startswith("[") and not own_ceiling:
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
        step = f"{_moved(own.values, gain)}, or leave it"
        notes.append(Note(text, f"{step}: the voice will be as much {louder}"))
    return notes


def _rewritten(values: Values, own: Values) -> str:
    """The step from values of one logarithm to the voice's."""
    if own.slope == 0:
        steps = [f"divide by {values.slope:.6g}", "take the exponential"]
    else:
        steps = [f"multiply by {own.slope / values.slope:.6f}"]
    if values.offset:
        steps.insert(0, f"subtract {values.offset:.6g}")
    if own.offset:
        steps.append(f"add {own.offset:.6g}")
    return ", then ".join(steps)


def _from_ln(own: Values) -> str:
    """The end of a step that has given ln m: how to get from there to the voice's values."""
    if same_values(own, LN):
        return ""
    return f", then {_rewritten(LN, own)}" if own.slope else ", then take the exponential"


def _moved(own: Values, gain: float) -> str:
    """The step that makes the voice's mel softer by a gain, the natural logarithm of a factor."""
    if own.slope == 0:
        return f"divide by {math.exp(gain):.6g}"
    return f"{'subtract' if gain > 0 else 'add'} {own.slope * abs(gain):.6g}"


def floor_notes(
    mel: np.ndarray,
    fit: Fit,
    values: Values,
    floor: float | None,
    bands: np.ndarray,
    own: Convention,
) -> list[Note]:
    least = own.floor
    comparable = fit.spectrum.power == own.spectrum.power
    if floor is None or fit.by_band or not least or not comparable:
        return []
    relative = DB * (mel.max() - mel.min()) / values.slope / fit.spectrum.power
    said = f"at {floor:.3g}"
    if values.name == "dB" and abs(relative - 80) < 0.1:
        said = "80 dB below its loudest"
    if floor * bands.max() > 1.05 * least:
        text = f"floored {said}, {at_floor(mel):.1%} of its points"
        return [Note(text, refusal=f"{text}: what lay between that and {least:g} is lost")]
    if floor < 0.95 * least and fit.spectrum.norm == own.spectrum.norm:
        text = f"floored {said} instead of {least:g}"
        return [Note(text, f"raise what is below {_lowest(own):.4f} to it")]
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
