"""How well a convention's mel explains a given mel, and which convention explains it best.

Arrays: mel `[F, M]`, audio `[T]`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from waveglow_jax.audio.correlation import cross_correlation, overlap
from waveglow_jax.conventions import CONVENTIONS, HALF_HOP, Spectrum
from waveglow_jax.doctor.librosa_mel import magnitudes, mel_of_magnitudes

AUDIBLE = 1e-5
"""Magnitudes below about twice this are not fitted: a floor or rounding may have changed them."""
SAME = 1e-6
"""Share of the variance that rounding alone leaves unexplained, except in float16 files."""
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


@dataclass(frozen=True)
class Fit:
    """How well the mel of a spectrum's convention explains a given mel x.

    linear: whether x is linear, so that its logarithm was fitted. unexplained: the share of x's
    variance that slope * ln(mel) + offset leaves unexplained, over the points that no floor
    clipped. lag: the number of frames by which x is late. centre: the mean of ln(mel). by_band:
    whether every band was fitted with its own slope and offset; the fields slope and offset are
    then 0.
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
    """A mel `[F, M]` and the samples `[T]`, at `rate` Hz, that it may belong to.

    Long recordings are cut to `MOST_SECONDS`. Results that several conventions share are cached.
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
        """The recording's own mel `[F, M]` of this spectrum, without a logarithm."""
        key = replace(spectrum, **_WITHOUT_FILTERS)
        if key not in self._spectra:
            found = magnitudes(self.at(spectrum.rate), key)
            # At the cut, the frames contain reflected samples that the whole recording does not
            # have there.
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
    if not len(log):
        return blank
    lag = _lag(x, log)
    x, log = overlap(x, log, lag)
    kept = uncut(x) & (log > blank.spectrum.power * (math.log(AUDIBLE) + 0.7))
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
    # The geometric mean of the slopes of the two regressions, which noise in x does not flatten.
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
    """The number of frames by which x is late against log: the lag of greatest correlation.

    The correlation is summed over all bands, each without its mean. It is not normalised per lag:
    the search calls this function for hundreds of conventions, and one FFT gives all lags. The two
    always share a frame at the lag.
    """
    most = max(8, abs(len(x) - len(log)) + 4)
    lags, correlation = cross_correlation(x - x.mean(axis=0), log - log.mean(axis=0), most)
    return int(lags[np.argmax(correlation)])


def uncut(x: np.ndarray) -> np.ndarray:
    """Mask of the points of x that are not at its floor, nor, if many are there, at its ceiling."""
    low, high = float(x.min()), float(x.max())
    inside = x > low + 1e-3 * (high - low)
    return inside & (x < high) if at_ceiling(x) else inside


def at_floor(x: np.ndarray) -> float:
    """The share of points at the lowest value, or 0 if fewer than 8 points are there."""
    low, high = float(x.min()), float(x.max())
    there = int(np.sum(x <= low + 1e-5 * (high - low)))
    return there / x.size if there >= 8 else 0.0


def at_ceiling(x: np.ndarray) -> float:
    return at_floor(-x)


def explain(case: Case, own: Spectrum, by_band: bool = False) -> Fit:
    """The fit of the convention that explains the mel best.

    A convention replaces the best one so far, which starts as the voice's own, only if it leaves a
    fifth less unexplained. The search tries the conventions of the table, and variants at every
    rate and hop that the number of frames allows. Then it changes one setting at a time for as long
    as that helps.
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
    """The pairs that give about as many frames as the mel has, and always the voice's own pair."""
    seconds, frames = case.n_samples / case.rate, case.n_frames
    near = max(6, 0.01 * frames)
    usual = [
        (rate, hop)
        for rate in dict.fromkeys((own.rate, case.rate, *_RATES))
        for hop in dict.fromkeys((own.hop, *_HOPS))
        if abs(seconds * rate / hop - frames) <= near
    ]
    # The hops that give exactly as many frames at the voice's rate.
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
