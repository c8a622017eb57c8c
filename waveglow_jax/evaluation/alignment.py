"""Brings two recordings of the same words to one time axis and one level.

Arrays: audio `[T]` floating point in [-1, 1].
"""

from dataclasses import dataclass

import numpy as np
import scipy.signal

from waveglow_jax.audio.correlation import cross_correlation, overlap

# A vocoder's delay does not exceed a quarter of a second; files that are further apart do not
# belong together.
MAX_OFFSET_SECONDS = 0.25
# Waveforms that correlate less than this have different phases, so their peak says nothing about
# the delay.
_SAME_WAVEFORM = 0.5
_ENVELOPE_HOP_SECONDS = 0.001
_ENVELOPE_WINDOW_SECONDS = 0.010
# An envelope gives the delay no more precisely than this.
_ENVELOPE_RESOLUTION_SECONDS = 0.005


@dataclass(frozen=True)
class Aligned:
    """A recording and an output on one time axis and at one level, and what was changed.

    reference, output: `[N]` float64, the N samples that both have, output at the reference's level.
    offset: samples by which the output was late (negative: early), which were cut off.
    length_difference: length of the output minus that of the reference, in samples.
    gain_db: the gain that was applied to the output, so that both have the same RMS.
    """

    reference: np.ndarray
    output: np.ndarray
    offset: int
    length_difference: int
    gain_db: float


def align(reference: np.ndarray, output: np.ndarray, sampling_rate: int) -> Aligned:
    """Cuts both signals to the time that they share and brings the output to the reference's RMS.

    reference `[T]`, output `[U]`: at sampling_rate, in Hz.
    The delay is the peak of the waveforms' cross-correlation, of either sign, within a quarter of
    a second. Where the waveforms do not agree (a vocoder is free in its phase), it is the peak of
    their envelopes' cross-correlation, and delays of less than 5 ms are left as they are. Where the
    envelopes do not agree either, the delay is taken as 0.
    Raises ValueError if the signals share no sample or if either is silent there.
    """
    reference, output = np.asarray(reference, np.float64), np.asarray(output, np.float64)
    offset = find_offset(reference, output, sampling_rate)
    difference = len(output) - len(reference)
    second, first = overlap(output, reference, offset)
    levels = [float(np.sqrt(np.mean(each**2))) if len(each) else 0.0 for each in (first, second)]
    if min(levels) <= 0:
        raise ValueError("silent where the two files overlap")
    gain = levels[0] / levels[1]
    return Aligned(first, gain * second, offset, difference, float(20 * np.log10(gain)))


def find_offset(reference: np.ndarray, output: np.ndarray, sampling_rate: int) -> int:
    """Samples by which output `[U]` is late against reference `[T]`; see `align`."""
    most = int(MAX_OFFSET_SECONDS * sampling_rate)
    offset, agreement = _correlation_peak(reference, output, most)
    if agreement >= _SAME_WAVEFORM:
        return offset
    hop = max(1, round(_ENVELOPE_HOP_SECONDS * sampling_rate))
    size = max(1, round(_ENVELOPE_WINDOW_SECONDS * sampling_rate))
    first, second = (_envelope(each, size, hop) for each in (reference, output))
    steps, agreement = _correlation_peak(first, second, most // hop)
    told = agreement >= _SAME_WAVEFORM
    told &= abs(steps * hop) > _ENVELOPE_RESOLUTION_SECONDS * sampling_rate
    return steps * hop if told else 0


def _envelope(audio: np.ndarray, size: int, hop: int) -> np.ndarray:
    """The RMS over `size` samples, at every `hop` samples, with its mean removed."""
    power = scipy.signal.fftconvolve(audio**2, np.full(size, 1 / size), mode="same")
    envelope = np.sqrt(np.maximum(power[::hop], 0))
    return envelope - envelope.mean()


def _correlation_peak(first: np.ndarray, second: np.ndarray, most: int) -> tuple[int, float]:
    """The delay of second against first, within +-most, and the normalised correlation there.

    It is divided by the energy of the whole signals, so that a few shared samples cannot agree.
    """
    energy = np.sqrt(np.sum(first**2) * np.sum(second**2))
    if energy <= 0:
        return 0, 0.0
    lags, correlation = cross_correlation(second, first, most)
    best = int(np.argmax(np.abs(correlation)))
    return int(lags[best]), float(np.abs(correlation[best]) / energy)
