"""What is wrong with a mel that sounds wrong: which convention it follows, and how to mend it.

With its recording, the mel is held against that of every convention of `audio/conventions.py` and of
those near them, and the one that explains it best is named. Without, its range and bands are held
against the speech that the voice was trained on. Arrays: mel in a file `[M, F]`, here `[F, M]`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from waveglow_jax.audio.conventions import (
    CONVENTIONS,
    DB,
    HALF_HOP,
    LINEAR,
    LN,
    Convention,
    Spectrum,
    Values,
    filters,
    magnitudes,
    mel_of_magnitudes,
    values_of,
)
from waveglow_jax.audio.mel import LOG_FLOOR
from waveglow_jax.errors import UserError
from waveglow_jax.text import read_json
from waveglow_jax.weights.release import BUNDLED_VOICE

STATISTICS = BUNDLED_VOICE / "mel_statistics.json"
"""Of the speech that the bundled voice was trained on, by benchmarks/mel_statistics.py."""

SAME = 1e-6
"""Share of the variance that rounding alone leaves unexplained, float16 files aside."""
UNRELATED = 0.5
"""A band's correlation in time below which a mel is not of this recording."""
MOST_SECONDS = 12
_RATES = (8000, 16000, 22050, 24000, 32000, 44100, 48000)
_HOPS = (64, 100, 110, 128, 160, 200, 220, 240, 250, 256, 275, 300, 320, 441, 480, 512, 600, 1024)
_OPTIONS: dict[str, tuple[Any, ...]] = {
    "frames": ("centred", HALF_HOP),
    "scale": ("slaney", "htk"),
    "norm": ("slaney", "none"),
    "power": (1, 2),
    "fmin": (0.0, 20.0, 40.0, 50.0, 55.0, 60.0, 80.0, 95.0, 125.0),
    "fmax": (4000.0, 7000.0, 7600.0, 8000.0, 11000.0, 11025.0, 12000.0, 16000.0, 22050.0, 24000.0),
    "n_fft": (400, 512, 1024, 2048),
    "win": (400, 512, 800, 1024, 1100, 1200, 2048),
    "filter_rate": (0, 16000, 22050, 24000, 44100),
    "emphasis": (0.0, 0.95, 0.97),
}
_FLOORS = (1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
_SAID = {
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
_BANDS = "the bands are others, each a different mixture of the spectrum"
_TIMES = "its frames lie at other times, and nothing between two frames is known exactly"
_WINDOW = "another window sees another spectrum"
_UNKNOWN = "what cannot be recognised cannot be converted"
_STANDARDISED = "undo that with the mean and variance it was made with; the mel does not hold them"
_POWER = "a root of summed squares is no sum of magnitudes"
_WHY_NOT = {
    "rate": _TIMES,
    "hop": _TIMES,
    "frames": _TIMES,
    "n_fft": _WINDOW,
    "win": _WINDOW,
    "n_mels": _BANDS,
    "fmin": _BANDS,
    "fmax": _BANDS,
    "scale": _BANDS,
    "filter_rate": _BANDS,
    "emphasis": "what it took out differs within a band",
}


@dataclass(frozen=True)
class Note:
    """A difference from the voice's own mel; the step that undoes it exactly, or why none does."""

    finding: str
    step: str = ""
    refusal: str = ""


@dataclass(frozen=True)
class Recipe:
    """The way back to the voice's mel, where there is one: the steps of `mended`, in this order.

    transposed, reversed: the axes; the bands from high to low. drop: frames too many at the start.
    slope, offset: of the values, see `Values`. gain: ln of the factor that the mel is too loud.
    bands: to add to each band's logarithm, `[M]`.
    """

    transposed: bool = False
    reversed: bool = False
    drop: int = 0
    values: Values = LN
    gain: float = 0.0
    bands: tuple[float, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """verdict: "fine", "convertible" or "compute it again". convention: whose mel it is.

    findings: what differs from the voice's own. steps: how to convert it, exact; refused: why it
    cannot be. evidence: figures by name. recipe: for `mended`, None where refused.
    """

    verdict: str
    convention: str
    findings: tuple[str, ...]
    steps: tuple[str, ...]
    refused: tuple[str, ...]
    evidence: dict[str, Any]
    recipe: Recipe | None = None


def mended(mel: np.ndarray, recipe: Recipe) -> np.ndarray:
    """A file's array `[M, F]` (or as it is) -> the voice's mel `[F, M]` float32."""
    mel = np.asarray(mel, np.float64)
    mel = mel if recipe.transposed else mel.T
    mel = mel[recipe.drop :, ::-1] if recipe.reversed else mel[recipe.drop :]
    log = logarithm(mel, recipe.values) - recipe.gain
    if recipe.bands:
        log = log + np.asarray(recipe.bands)[None]
    return np.maximum(log, math.log(LOG_FLOOR)).astype(np.float32)


def logarithm(mel: np.ndarray, values: Values) -> np.ndarray:
    """Values as they are written -> ln m."""
    if values.slope == 0:
        return np.log(np.maximum(mel, 1e-30))
    return (mel - values.offset) / values.slope


# ------------------------------------------------------------------------------ comparing


@dataclass(frozen=True)
class Fit:
    """How the mel of a spectrum's convention explains the one at hand.

    linear: whether the logarithm of x was taken first. unexplained: the share of x's variance that
    slope * ln(mel) + offset leaves, over the points that no floor cut off. lag: frames that x is
    late; centre the mean of ln(mel). by_band: slope and offset were free in every band, and are 0
    here.
    """

    spectrum: Spectrum
    unexplained: float = 1.0
    linear: bool = False
    by_band: bool = False
    slope: float = 0.0
    offset: float = 0.0
    centre: float = 0.0
    lag: int = 0


_WITHOUT_FILTERS: dict[str, Any] = {
    "n_mels": 0,
    "fmin": 0.0,
    "fmax": 0.0,
    "scale": "",
    "norm": "",
    "power": 1,
    "filter_rate": 0,
}


class Case:
    """A mel `[F, M]` and the samples `[T]`, at `rate` Hz, that it may be of.

    Long ones are cut to `MOST_SECONDS`. What was computed for one convention is kept for the next.
    """

    def __init__(self, mel: np.ndarray, audio: np.ndarray, rate: int):
        self.rate, self.n_samples, self.n_frames = rate, len(audio), len(mel)
        kept = min(1.0, MOST_SECONDS * rate / len(audio))
        self.cut = kept < 1
        self.mel = mel[: max(1, round(kept * len(mel)))].astype(np.float64)
        self.audio = audio[: round(kept * len(audio))].astype(np.float32)
        self._resampled = {rate: self.audio}
        self._spectra: dict[Spectrum, np.ndarray] = {}
        self._fits: dict[tuple[Spectrum, bool], Fit] = {}

    def at(self, rate: int) -> np.ndarray:
        if rate not in self._resampled:
            import soxr

            self._resampled[rate] = soxr.resample(self.audio, self.rate, rate)
        return self._resampled[rate]

    def true_mel(self, spectrum: Spectrum) -> np.ndarray:
        """`[F, M]` of the recording, no logarithm."""
        key = replace(spectrum, **_WITHOUT_FILTERS)
        if key not in self._spectra:
            found = magnitudes(self.at(spectrum.rate), key)
            # Where the recording was cut off it has no reflection.
            self._spectra[key] = found[: len(found) - 4] if self.cut else found
        return mel_of_magnitudes(self._spectra[key], spectrum)

    def fit(self, spectrum: Spectrum, by_band: bool = False) -> Fit:
        key = spectrum, by_band
        if key not in self._fits:
            log = np.log(np.maximum(self.true_mel(spectrum), 1e-30))
            fits = [_fit(self.mel, log, Fit(spectrum, by_band=by_band))]
            if self.mel.min() >= 0 and not by_band:
                x = np.log(np.maximum(self.mel, 1e-30))
                fits.append(_fit(x, log, Fit(spectrum, linear=True)))
            self._fits[key] = min(fits, key=lambda each: each.unexplained)
        return self._fits[key]


def _fit(x: np.ndarray, log: np.ndarray, blank: Fit) -> Fit:
    lag = _lag(x, log)
    x, log = overlap(x, log, lag)
    kept = uncut(x) & (log > blank.spectrum.power * (math.log(LOG_FLOOR) + 0.7))
    if kept.sum() < max(100, 0.02 * x.size):
        return blank
    count = np.maximum(kept.sum(axis=0 if blank.by_band else None), 1)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.where(kept, values, 0).sum(axis=0 if blank.by_band else None) / count

    x, log = x - (x_mean := mean(x)), log - (log_mean := mean(log))
    var_x, var_log, both = mean(x * x), mean(log * log), mean(x * log)
    if blank.by_band:
        explained = np.sum(count * both**2 / np.maximum(var_log, 1e-12))
        unexplained = 1 - explained / max(np.sum(count * var_x), 1e-30)
        return replace(blank, unexplained=float(unexplained), lag=lag)
    if both <= 0:
        return blank
    # Of the two regressions' slopes the geometric mean: noise in x does not flatten it.
    slope = math.sqrt(var_x / var_log)
    return replace(
        blank,
        unexplained=float(1 - both**2 / (var_x * var_log)),
        slope=slope,
        offset=float(x_mean - slope * log_mean),
        centre=float(log_mean),
        lag=lag,
    )


def _lag(x: np.ndarray, log: np.ndarray) -> int:
    """Frames that x is late against log, by the greatest correlation over all bands."""
    most = max(8, abs(len(x) - len(log)) + 4)
    size = 1 << (len(x) + len(log)).bit_length()
    spectra = [np.fft.rfft(each - each.mean(axis=0), size, axis=0) for each in (x, log)]
    correlation = np.fft.irfft((spectra[0] * np.conj(spectra[1])).sum(axis=1), size)
    lags = np.r_[0 : most + 1, -most:0]
    return int(lags[np.argmax(correlation[lags])])


def overlap(x: np.ndarray, log: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """The frames that both have, where x is `lag` frames late."""
    x, log = x[max(0, lag) :], log[max(0, -lag) :]
    shared = min(len(x), len(log))
    return x[:shared], log[:shared]


def uncut(x: np.ndarray) -> np.ndarray:
    """Where x is neither at its floor nor, if many points are there, at its ceiling."""
    low, high = float(x.min()), float(x.max())
    inside = x > low + 1e-3 * (high - low)
    return inside & (x < high) if at_ceiling(x) else inside


def at_floor(x: np.ndarray) -> float:
    """The share of points at the lowest value, 0 if they are no more than chance brings."""
    low, high = float(x.min()), float(x.max())
    there = int(np.sum(x <= low + 1e-5 * (high - low)))
    return there / x.size if there >= 8 else 0.0


def at_ceiling(x: np.ndarray) -> float:
    return at_floor(-x)


# ------------------------------------------------------------------------------ searching


def explain(case: Case, own: Spectrum, by_band: bool = False) -> Fit:
    """The convention that explains the mel best; another than the voice's own only if it leaves a
    fifth less unexplained.

    First those of the table, and variants at every rate and hop that the number of frames allows;
    then one setting after the other as long as it helps.
    """
    own = replace(own, n_mels=case.mel.shape[1])
    best = case.fit(own, by_band)
    for spectrum in _starts(case, own):
        if best.unexplained < SAME:
            return best
        best = _better(best, case.fit(spectrum, by_band))
    while best.unexplained >= SAME:
        pairs = (
            replace(best.spectrum, rate=rate, hop=hop) for rate, hop in _rates_and_hops(case, own)
        )
        near = [*_neighbours(best.spectrum), *pairs]
        fits = (case.fit(each, by_band) for each in near)
        found = _better(best, min(fits, key=lambda each: each.unexplained))
        if found is best:
            break
        best = found
    return best


def _better(best: Fit, other: Fit) -> Fit:
    return other if other.unexplained < 0.8 * best.unexplained else best


def _starts(case: Case, own: Spectrum) -> Iterator[Spectrum]:
    pairs = _rates_and_hops(case, own)
    bands = case.mel.shape[1]
    for row in CONVENTIONS:
        if (row.spectrum.rate, row.spectrum.hop) in pairs:
            yield replace(row.spectrum, n_mels=bands)
    for rate, hop in pairs:
        same = replace(own, rate=rate, hop=hop, fmax=min(own.fmax, rate / 2))
        size = 1 << (4 * hop - 1).bit_length()
        for start in dict.fromkeys((same, replace(same, n_fft=size, win=size))):
            if rate != own.rate:
                yield replace(start, filter_rate=own.rate, fmax=own.fmax)
            for fmax in dict.fromkeys((start.fmax, rate / 2)):
                for scale in ("slaney", "htk"):
                    for power in (1, 2):
                        yield replace(start, fmax=fmax, scale=scale, power=power)


def _rates_and_hops(case: Case, own: Spectrum) -> list[tuple[int, int]]:
    """Those that give about as many frames as there are; the voice's own always."""
    seconds, frames = case.n_samples / case.rate, case.n_frames
    near = max(6, 0.01 * frames)
    usual = [
        (rate, hop)
        for rate in dict.fromkeys((own.rate, case.rate, *_RATES))
        for hop in dict.fromkeys((own.hop, *_HOPS))
        if abs(seconds * rate / hop - frames) <= near
    ]
    # At the voice's rate, the hops that give just as many.
    samples = seconds * own.rate
    exact = range(math.ceil(samples / frames), math.floor(samples / max(1, frames - 1)) + 1)
    return list(dict.fromkeys(((own.rate, own.hop), *usual, *((own.rate, h) for h in exact[:4]))))


def _neighbours(spectrum: Spectrum) -> Iterator[Spectrum]:
    for name, options in _OPTIONS.items():
        for option in options:
            changed = replace(spectrum, **{name: option})
            if name == "n_fft":
                yield replace(changed, win=option)
            possible = changed.win <= changed.n_fft and changed.n_fft >= changed.hop
            possible &= changed.fmax <= (changed.filter_rate or changed.rate) / 2
            if possible and changed != spectrum:
                yield changed


# ------------------------------------------------------------------------------ diagnosing


def diagnose(array: np.ndarray, audio: np.ndarray, rate: int, own: Convention) -> Diagnosis:
    """A mel as its file holds it, two-dimensional, and its recording `[T]` at `rate` Hz.

    own: what the voice takes. Raises UserError if either is too short to be compared.
    """
    if len(audio) < 0.25 * rate or min(array.shape) < 8 or max(array.shape) < 16:
        raise UserError(
            f"too short to be compared: {len(audio) / rate:.2f} s and a mel of "
            f"{' x '.join(map(str, array.shape))}; take a longer recording and its mel"
        )
    lowest = array.min()
    array, notes = _finite(array)
    found: list[tuple[Fit, Case, Recipe]] = []
    for axes in _orientations(array, own.spectrum.n_mels):
        case = Case(_turned(array, axes), audio, rate)
        found.append((explain(case, own.spectrum), case, axes))
        if found[-1][0].unexplained < 0.3:
            break
    fit, case, axes = min(found, key=lambda each: each[0].unexplained)
    if fit.unexplained > 1e-3 and _standardised(case.mel):
        by_band = explain(case, own.spectrum, by_band=True)
        fit = by_band if by_band.unexplained < 0.3 * fit.unexplained else fit
    evidence = _evidence(case, fit, own.spectrum)
    if evidence["correlation_median"] < UNRELATED:
        return _of_another_recording(evidence)

    values, gain = _values_found(fit)
    floor = _floor(case.mel, values)
    notes += _axes_notes(axes)
    notes += _spectrum_notes(case, fit, own.spectrum)
    notes += _value_notes(case.mel, fit, values, gain)
    bands = _band_factors(fit.spectrum, own.spectrum)
    if np.isfinite(lowest):
        notes += _floor_notes(case.mel, fit, values, floor, bands)
    notes += _time_notes(case, fit)
    recipe = replace(axes, drop=max(0, fit.lag), values=values, gain=gain)
    if fit.spectrum.norm != own.spectrum.norm:
        recipe = replace(recipe, bands=tuple(np.log(bands).tolist()))
    evidence |= {"slope": fit.slope, "gain_db": DB * gain / fit.spectrum.power, "floor": floor}
    told = _told(notes, _name(fit.spectrum, values, own), evidence)
    return told if told.refused else replace(told, recipe=recipe)


def _finite(array: np.ndarray) -> tuple[np.ndarray, list[Note]]:
    """The array with its lowest value wherever it is not finite, and what is to be said of that."""
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


def _orientations(array: np.ndarray, n_mels: int) -> list[Recipe]:
    """Which axis may be the bands', as likely as its length; each also from high to low."""
    usual = {n_mels, 40, 64, 80, 96, 100, 120, 128, 160, 256}
    likely = [array.shape[axis] == n_mels for axis in (0, 1)]
    if likely[0] == likely[1]:
        likely = [array.shape[axis] in usual for axis in (0, 1)]
    turned = [False, True] if likely[0] == likely[1] else [likely[1]]
    return [Recipe(transposed=t, reversed=r) for r in (False, True) for t in turned]


def _turned(array: np.ndarray, axes: Recipe) -> np.ndarray:
    mel = array if axes.transposed else array.T
    return mel[:, ::-1] if axes.reversed else mel


def _standardised(mel: np.ndarray) -> bool:
    """Whether every band has about zero mean and unit variance."""
    spread = mel.std(axis=0)
    return bool(np.abs(mel.mean(axis=0)).max() < 1.5 and 0.3 < np.median(spread) < 2)


def _evidence(case: Case, fit: Fit, own: Spectrum) -> dict[str, Any]:
    """Figures; the correlation is that of each band over time with the best convention's."""
    x = np.log(np.maximum(case.mel, 1e-30)) if fit.linear else case.mel
    log = np.log(np.maximum(case.true_mel(fit.spectrum), 1e-30))
    x, log = overlap(x, log, fit.lag)
    x, log = (each - each.mean(axis=0) for each in (x, log))
    norms = np.sqrt((x * x).sum(axis=0) * (log * log).sum(axis=0))
    correlation = (x * log).sum(axis=0) / np.maximum(norms, 1e-30)
    # The first bands of a fine filter bank may hold no bin, others lie where nothing was recorded.
    correlation = correlation[norms > 1e-9] if (norms > 1e-9).any() else np.zeros(1)
    of_own = case.fit(replace(own, n_mels=case.mel.shape[1]))
    half = 0.5 if fit.spectrum.frames == HALF_HOP else 0.0
    return {
        "unexplained": fit.unexplained,
        "unexplained_by_own": of_own.unexplained,
        "correlation_min": float(correlation.min()),
        "correlation_median": float(np.median(correlation)),
        "lag_frames": fit.lag - half,
        "frames": case.n_frames,
        "frames_expected": 1 + int(case.n_samples * own.rate / case.rate) // own.hop,
        "lowest": float(case.mel.min()),
        "highest": float(case.mel.max()),
        "share_at_lowest": at_floor(case.mel),
    }


def _of_another_recording(evidence: dict[str, Any]) -> Diagnosis:
    said = f"the bands correlate with the recording's by {evidence['correlation_median']:.2f} only"
    note = Note(f"not a mel of this recording, or of no known kind: {said}", refusal=_UNKNOWN)
    return _told([note], "unknown", evidence)


def _values_found(fit: Fit) -> tuple[Values, float]:
    """How the values are written, and ln of the factor by which the mel is too loud."""
    if fit.by_band:
        return Values("every band normalised by itself", 1.0), 0.0
    exactness = min(0.15, 0.005 + math.sqrt(fit.unexplained))
    if fit.linear:
        if abs(fit.slope - 1) < exactness:
            return LINEAR, fit.offset + (fit.slope - 1) * fit.centre
        return Values("another power of the magnitude", 1.0), 0.0
    known = [*values_of(fit.spectrum.power)]
    known += [row.values for row in CONVENTIONS if row.spectrum == fit.spectrum]
    found = []
    for values in known:
        if values.slope and abs(math.log(fit.slope / values.slope)) < exactness:
            at_centre = fit.slope * fit.centre + fit.offset
            found.append((values, (at_centre - values.offset) / values.slope - fit.centre))
    # What was normalised to a range has lost its level there: it is no gain.
    found = [(v, gain) for v, gain in found if not v.name.startswith("[") or abs(gain) < 1]
    if not found:
        return Values("normalised otherwise", fit.slope, fit.offset), 0.0
    return min(found, key=lambda each: abs(each[1]))


def _floor(mel: np.ndarray, values: Values) -> float | None:
    """What the mel's magnitudes were raised to at least; None if it does not show."""
    if not at_floor(mel) or values.slope == 0:
        return None
    floor = (float(mel.min()) - values.offset) / values.slope
    near = min(_FLOORS, key=lambda each: abs(floor - math.log(each)))
    return near if abs(floor - math.log(near)) < 0.05 else math.exp(floor)


def _band_factors(spectrum: Spectrum, own: Spectrum) -> np.ndarray:
    """`[M]`: what brings a spectrum's bands to the voice's norm."""
    as_own = filters(replace(spectrum, norm=own.norm)).sum(axis=1)
    as_found = filters(spectrum).sum(axis=1)
    return np.where(as_found > 0, as_own, 1) / np.where(as_found > 0, as_found, 1)


# ------------------------------------------------------------------------------ telling


def _axes_notes(axes: Recipe) -> list[Note]:
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


def _spectrum_notes(case: Case, fit: Fit, own: Spectrum) -> list[Note]:
    found, notes = fit.spectrum, []
    for name in found.differences(own):
        if name == "fmax" and found.fmax == found.rate / 2 < own.fmax:
            continue  # as high as its rate allows
        said = _SAID[name].format(getattr(found, name), getattr(own, name))
        if name == "norm":
            notes.append(Note(said, "add to every band the logarithm of its filter's norm"))
        elif name == "power":
            notes.append(Note(said, refusal=_halving(case, fit)))
        else:
            notes.append(Note(said, refusal=_WHY_NOT[name]))
    return notes


def _halving(case: Case, fit: Fit) -> str:
    """Why the root of a power mel is no magnitude mel, with the error that it makes here."""
    square = np.log(np.maximum(case.true_mel(fit.spectrum), 1e-30))
    plain = np.log(np.maximum(case.true_mel(replace(fit.spectrum, power=1)), 1e-30))
    off = (square / 2 - plain)[plain > math.log(LOG_FLOOR)]
    return (
        f"{_POWER}: half its logarithm would be off by "
        f"{off.mean():+.2f} on average and {off.std():.2f} RMS around that"
    )


def _value_notes(mel: np.ndarray, fit: Fit, values: Values, gain: float) -> list[Note]:
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
        # Of softer samples it is the exact mel, floor and all.
        step = f"{'subtract' if gain > 0 else 'add'} {abs(gain):.6g}, or leave it"
        notes.append(Note(text, f"{step}: the voice will be as much {louder}"))
    return notes


def _floor_notes(
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


def _time_notes(case: Case, fit: Fit) -> list[Note]:
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


def _name(spectrum: Spectrum, values: Values, own: Convention) -> str:
    """The nearest row of the table, and in what else than the row the mel differs."""

    def unlike(row: Convention) -> tuple[int, bool]:
        fields = len(row.spectrum.differences(spectrum))
        return fields + (row.values.name != values.name), row.name != own.name

    row = min((own, *CONVENTIONS), key=unlike)
    said = [
        _SAID[name].format(getattr(spectrum, name), getattr(row.spectrum, name))
        for name in spectrum.differences(row.spectrum)
    ]
    if row.values.name != values.name:
        said.append(f"{values.name} instead of {row.values.name}")
    return f"{row.name}, but with {', '.join(said)}" if said else row.name


# ------------------------------------------------------------------------------ without a recording


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
    array, notes = _finite(array)
    guesses = []
    for axes in _orientations(array, own.spectrum.n_mels):
        mel = _turned(array, axes)
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
    mel = _turned(array, axes)
    evidence: dict[str, Any] = {
        "implausibility": score,
        "values": values.name,
        **found,
        "lowest": float(mel.min()),
        "highest": float(mel.max()),
        "share_at_lowest": at_floor(mel),
        "floor": _floor(mel, values),
        "next_best": [f"{_written(*g[1:3])}: {g[0]:.1f}" for g in guesses[1:4]],
    }
    if _standardised(mel) and abs(mel.mean()) < 0.5:
        text = "every band is normalised, to about zero mean and unit variance"
        notes.append(Note(text, refusal=_STANDARDISED))
        return _told(notes, "a normalised mel, as ParallelWaveGAN / ESPnet train with", evidence)
    if score > IMPLAUSIBLE:
        text = "speech in no way of writing that is known"
        notes.append(Note(text, refusal=_UNKNOWN))
        return _told(notes, "unknown", evidence)
    notes += _axes_notes(axes)
    if mel.shape[1] != own.spectrum.n_mels:
        said = _SAID["n_mels"].format(mel.shape[1], own.spectrum.n_mels)
        notes.append(Note(said, refusal=_BANDS))
    if power == 2:
        notes.append(Note(_SAID["power"].format(2, 1), refusal=_POWER))
    blank = Fit(replace(own.spectrum, power=power), 0.0, slope=values.slope)
    notes += _value_notes(mel, blank, values, gain)
    if _in_decibels(values):
        notes.append(Note("whether of a magnitude or of a power, only the recording tells"))
    if np.isfinite(lowest):
        notes += _floor_notes(mel, blank, values, evidence["floor"], np.ones(1))
    return _told(notes, _who_writes(values, power, mel.shape[1]), evidence)


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
        score += -3.0 if min(abs(floor - math.log(each)) for each in _FLOORS) < 0.01 else 3.0
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


def _told(notes: list[Note], convention: str, evidence: dict[str, Any]) -> Diagnosis:
    refused = tuple(dict.fromkeys(note.refusal for note in notes if note.refusal))
    return Diagnosis(
        verdict="compute it again" if refused else "convertible" if notes else "fine",
        convention=convention,
        findings=tuple(note.finding for note in notes),
        steps=() if refused else tuple(note.step for note in notes if note.step),
        refused=refused,
        evidence=evidence,
    )
