"""Checks of sample levels: input has full scale 1, and output is limited to it.

A mel of another convention (decibels, powers, 16-bit samples) often gives samples far beyond full
scale. With corrections they are clipped to [-1, 1], as a file would clip them; without corrections
they are exactly the flow's samples, bit for bit. A warning reports how many were beyond full scale.
Arrays: audio `[T]` or `[B, T]`.
"""

import warnings
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter

import numpy as np

from waveglow_jax.errors import LevelWarning

FULL_SCALE = 1.0
CLIPPED_SHARE = 0.005
"""Above this share of samples beyond full scale a warning is given. Speech made from its own mel
has none; that of a loud recording stays below the limit."""
OVERSHOOT = 2.0
"""Decoders of lossy formats slightly exceed full scale 1; a peak above this means another scale."""
_INT16_SCALE = 32768

DOCTOR = "python -m waveglow_jax doctor RECORDING MEL"


def samples_of(audio: np.ndarray) -> np.ndarray:
    """Returns the samples as float32 of the same shape, with full scale 1.

    int16 is divided by 32768, as soundfile does. Raises ValueError for other integers, whose full
    scale is unknown, and for samples that are not finite. Warns (LevelWarning) if floats exceed
    `OVERSHOOT`.
    """
    audio = np.asarray(audio)
    if audio.dtype == np.int16:
        return audio.astype(np.float32) / np.float32(_INT16_SCALE)
    if audio.dtype.kind != "f":
        raise ValueError(
            f"audio of {audio.dtype} has no known full scale: divide it by the largest value of "
            "its format, so that it is floating point in [-1, 1] (int16 is taken as it is)"
        )
    audio = audio.astype(np.float32, copy=False)
    if not np.isfinite(audio).all():
        raise ValueError("the audio holds samples that are not finite numbers")
    peak = float(np.abs(audio).max(initial=0))
    if peak > OVERSHOOT:
        warnings.warn(
            f"the samples reach {peak:.6g} where full scale is 1: divide them by the largest value "
            f"of their format ({_INT16_SCALE} for 16 bits)",
            LevelWarning,
            stacklevel=3,
        )
    return audio


def limited(blocks: Iterable[np.ndarray], hold: bool = True) -> Iterator[np.ndarray]:
    """Yields the blocks `[n]` of one signal, clipped to [-1, 1] unless `hold` is false.

    Where the model overflowed, samples are NaN and stay NaN: the caller must refuse them.
    Otherwise warns (LevelWarning) after the last block if more than `CLIPPED_SHARE` of the samples
    were beyond full scale.
    """
    samples = beyond = overflown = 0
    for block in blocks:
        samples += len(block)
        beyond += int(np.count_nonzero(np.abs(block) > FULL_SCALE))
        overflown += int(np.count_nonzero(~np.isfinite(block)))
        block = np.where(np.isinf(block), np.nan, block)
        yield np.clip(block, -FULL_SCALE, FULL_SCALE) if hold else block
    if not overflown and beyond > CLIPPED_SHARE * samples:
        warnings.warn(
            f"{beyond / samples:.1%} of the samples were beyond full scale"
            f"{' and are clipped' if hold else ', where a file clips them'}; the mel is probably"
            f" of another convention: see `doctor` ({DOCTOR})",
            LevelWarning,
            stacklevel=2,
        )


def limited_each(
    blocks: Iterable[tuple[int, np.ndarray]], hold: bool = True
) -> Iterator[tuple[int, np.ndarray]]:
    """`limited` for the blocks of several signals, each identified by its number."""
    for number, of_one in groupby(blocks, itemgetter(0)):
        for block in limited((block for _, block in of_one), hold):
            yield number, block


def finite(samples: np.ndarray) -> np.ndarray:
    """Returns the samples unchanged. Raises ValueError if the model overflowed."""
    if not np.isfinite(samples).all():
        raise ValueError(
            "the voice gives no finite samples for this mel, which is probably of another "
            f"convention: see `doctor` ({DOCTOR})"
        )
    return samples
