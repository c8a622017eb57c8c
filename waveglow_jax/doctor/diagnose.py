"""Diagnoses a mel that sounds wrong: finds its convention, and how to convert it.

The mel is compared with the recording's own mel in every convention of `conventions.py` and
in similar ones. The diagnosis names the convention that explains the mel best. `alone.py`
diagnoses a mel without its recording. Arrays: mel in a file `[M, F]`, in this module `[F, M]`.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from waveglow_jax.audio.correlation import overlap, pearson
from waveglow_jax.conventions import (
    CONVENTIONS,
    DB,
    HALF_HOP,
    LINEAR,
    Convention,
    Spectrum,
    Values,
    values_of,
)
from waveglow_jax.doctor.fit import Case, Fit, at_floor, explain
from waveglow_jax.doctor.librosa_mel import filters
from waveglow_jax.doctor.notes import (
    DIFFERENCES,
    UNKNOWN,
    Diagnosis,
    Note,
    axes_notes,
    diagnosis_of,
    finite,
    floor_notes,
    same_values,
    spectrum_notes,
    time_notes,
    value_notes,
)
from waveglow_jax.doctor.recipe import Recipe, floor_of, orientations, standardised, turned_by
from waveglow_jax.errors import UserError

UNRELATED = 0.5
"""A mel whose bands have a lower median correlation over time is not a mel of this recording."""


def diagnose(array: np.ndarray, audio: np.ndarray, rate: int, own: Convention) -> Diagnosis:
    """Diagnoses a two-dimensional mel, as its file holds it, with its recording `[T]` at `rate` Hz.

    own: the voice's convention. Raises UserError if the mel or the recording is too short to be
    compared, or if no value of the mel is finite.
    """
    if len(audio) < 0.25 * rate or min(array.shape) < 8 or max(array.shape) < 16:
        raise UserError(
            f"too short to be compared: {len(audio) / rate:.2f} s and a mel of "
            f"{' x '.join(map(str, array.shape))}; take a longer recording and its mel"
        )
    lowest = array.min()
    array, notes = finite(array, own)
    found: list[tuple[Fit, Case, Recipe]] = []
    for axes in orientations(array, own.spectrum.n_mels):
        case = Case(turned_by(array, axes), audio, rate)
        found.append((explain(case, own.spectrum), case, axes))
        if found[-1][0].unexplained < 0.3:
            break
    fit, case, axes = min(found, key=lambda each: each[0].unexplained)
    if fit.unexplained > 1e-3 and standardised(case.mel):
        by_band = explain(case, own.spectrum, by_band=True)
        fit = by_band if by_band.unexplained < 0.3 * fit.unexplained else fit
    evidence = _evidence(case, fit, own.spectrum)
    if evidence["correlation_median"] < UNRELATED:
        return _of_another_recording(evidence)

    values, gain = _values_found(fit, own)
    floor = floor_of(case.mel, values)
    notes += axes_notes(axes)
    notes += spectrum_notes(case, fit, own.spectrum)
    notes += value_notes(case.mel, fit, values, gain, own)
    bands = _band_factors(fit.spectrum, own.spectrum)
    if np.isfinite(lowest):
        notes += floor_notes(case.mel, fit, values, floor, bands, own)
    notes += time_notes(case, fit)
    recipe = replace(axes, drop=max(0, fit.lag), values=values, gain=gain)
    if fit.spectrum.norm != own.spectrum.norm:
        recipe = replace(recipe, bands=tuple(np.log(bands).tolist()))
    evidence |= {"slope": fit.slope, "gain_db": DB * gain / fit.spectrum.power, "floor": floor}
    told = diagnosis_of(notes, _name(fit.spectrum, values, own), evidence)
    if np.isfinite(lowest) and not (axes.reversed or fit.by_band or fit.lag):
        told = replace(told, key=_key(fit.spectrum, values))
    return told if told.refused else replace(told, recipe=recipe)


def _evidence(case: Case, fit: Fit, own: Spectrum) -> dict[str, Any]:
    """The diagnosis's figures by name.

    The correlations are those of each band over time with the same band of the best convention.
    """
    x = np.log(np.maximum(case.mel, 1e-30)) if fit.linear else case.mel
    log = np.log(np.maximum(case.true_mel(fit.spectrum), 1e-30))
    correlation = pearson(*overlap(x, log, fit.lag))
    # The first bands of a fine filter bank may contain no FFT bin, and other bands may lie where
    # the recording has no energy.
    varied = ~np.isnan(correlation)
    correlation = correlation[varied] if varied.any() else np.zeros(1)
    of_own = case.fit(replace(own, n_mels=case.mel.shape[1]))
    half = 0.5 if fit.spectrum.frames == HALF_HOP else 0.0
    return {
        "unexplained": fit.unexplained,
        "unexplained_by_own": of_own.unexplained,
        "correlation_min": float(correlation.min()),
        "correlation_median": float(np.median(correlation)),
        "lag_frames": fit.lag - half,
        "frames": case.n_frames,
        "frames_expected": int(case.n_samples * own.rate / case.rate) // own.hop
        + (own.frames != HALF_HOP),
        "lowest": float(case.mel.min()),
        "highest": float(case.mel.max()),
        "share_at_lowest": at_floor(case.mel),
    }


def _of_another_recording(evidence: dict[str, Any]) -> Diagnosis:
    said = f"the bands correlate with the recording's by {evidence['correlation_median']:.2f} only"
    note = Note(f"not a mel of this recording, or of no known kind: {said}", refusal=UNKNOWN)
    return diagnosis_of([note], "unknown", evidence)


def _values_found(fit: Fit, own: Convention) -> tuple[Values, float]:
    """The values' way of writing, and ln of the factor by which the mel is too loud."""
    if fit.by_band:
        return Values("every band normalised by itself", 1.0), 0.0
    exactness = min(0.15, 0.005 + math.sqrt(fit.unexplained))
    if fit.linear:
        if abs(fit.slope - 1) < exactness:
            return LINEAR, fit.offset + (fit.slope - 1) * fit.centre
        return Values("another power of the magnitude", 1.0), 0.0
    known = [*values_of(fit.spectrum.power)]
    known += [row.values for row in CONVENTIONS if row.spectrum == fit.spectrum]
    known += [own.values] if own.spectrum.power == fit.spectrum.power else []
    found = []
    for values in known:
        if values.slope and abs(math.log(fit.slope / values.slope)) < exactness:
            at_centre = fit.slope * fit.centre + fit.offset
            found.append((values, (at_centre - values.offset) / values.slope - fit.centre))
    # A large offset from values normalised to a range is no gain, because the normalisation has
    # removed the level.
    found = [(v, gain) for v, gain in found if not v.name.startswith("[") or abs(gain) < 1]
    if not found:
        return Values("normalised otherwise", fit.slope, fit.offset), 0.0
    return min(found, key=lambda each: abs(each[1]))


def _band_factors(spectrum: Spectrum, own: Spectrum) -> np.ndarray:
    """`[M]`: the factors that convert a spectrum's bands to the voice's filter norm."""
    as_own = filters(replace(spectrum, norm=own.norm)).sum(axis=1)
    as_found = filters(spectrum).sum(axis=1)
    return np.where(as_found > 0, as_own, 1) / np.where(as_found > 0, as_found, 1)


def _key(spectrum: Spectrum, values: Values) -> str:
    """The key of the row of the table with that spectrum and those values, or ""."""
    rows = (r for r in CONVENTIONS if r.spectrum == spectrum and same_values(r.values, values))
    return next((row.key for row in rows), "")


def _name(spectrum: Spectrum, values: Values, own: Convention) -> str:
    """The name of the nearest row of the table, with the settings in which the mel differs."""

    def unlike(row: Convention) -> tuple[int, bool]:
        fields = len(row.spectrum.differences(spectrum))
        return fields + (row.values.name != values.name), row.name != own.name

    row = min((own, *CONVENTIONS), key=unlike)
    said = [
        DIFFERENCES[name].format(getattr(spectrum, name), getattr(row.spectrum, name))
        for name in spectrum.differences(row.spectrum)
    ]
    if row.values.name != values.name:
        said.append(f"{values.name} instead of {row.values.name}")
    return f"{row.name}, but with {', '.join(said)}" if said else row.name
