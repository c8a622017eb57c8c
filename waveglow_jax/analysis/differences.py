"""The error between arrays that should be equal, computed in float64."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Error:
    """Statistics of the error, which is the found array minus the given one.

    max: the largest absolute error. rms: the RMS error. snr_db: the given signal's power over the
    error's power, in dB. bits_lost: how many bits of the significand the RMS error makes
    meaningless. snr_db and bits_lost are None where the error or the signal is zero. All four are
    None if any value is not finite.
    """

    max: float | None
    rms: float | None
    snr_db: float | None
    bits_lost: float | None


def error_of(found: Any, given: Any, significand: int) -> Error:
    """The error between arrays that should be equal.

    significand: the number of significand bits of the format, for `bits_lost`.
    """
    found, given = np.asarray(found, np.float64), np.asarray(given, np.float64)
    if not (np.isfinite(found).all() and np.isfinite(given).all()):
        return Error(None, None, None, None)
    with np.errstate(over="ignore"):
        off, size = rms(found - given), rms(given)
    top = float(np.abs(found - given).max())
    if not math.isfinite(off):
        return Error(None, None, None, None)
    if off == 0 or size == 0:
        return Error(top, off, None, None)
    kept = math.log2(size / off)
    return Error(top, off, 20 * math.log10(size / off), significand - kept)


def rms(x: Any) -> float:
    x = np.asarray(x, np.float64)
    return float(np.sqrt(np.mean(np.square(x))))


def relative(found: Any, given: Any) -> float:
    """RMS of the difference over RMS of `given`; infinite if any value is not finite."""
    found, given = np.asarray(found, np.float64), np.asarray(given, np.float64)
    if not (np.isfinite(found).all() and np.isfinite(given).all()):
        return math.inf
    return rms(found - given) / max(rms(given), 1e-300)
