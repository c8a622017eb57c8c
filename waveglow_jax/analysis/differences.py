"""The error of arrays that should be equal, taken in float64."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Error:
    """What came back less what was given. SNR: the given signal's power over the error's.

    bits_lost: of the significand's bits, those that the RMS error eats up. snr_db and bits_lost are
    None where the error or the signal is zero; all are None if anything is not finite.
    """

    max: float | None
    rms: float | None
    snr_db: float | None
    bits_lost: float | None


def error_of(found: Any, given: Any, significand: int) -> Error:
    """The error of arrays that should be equal, for a format with so many bits."""
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
    """RMS of the difference over RMS of what was given; infinite if anything is not finite."""
    found, given = np.asarray(found, np.float64), np.asarray(given, np.float64)
    if not (np.isfinite(found).all() and np.isfinite(given).all()):
        return math.inf
    return rms(found - given) / max(rms(given), 1e-300)
