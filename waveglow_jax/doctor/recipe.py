"""The steps that turn the array in a mel file into the voice's own mel.

Arrays: the array in the file `[M, F]`, the voice's mel `[F, M]`.
"""

import math
from dataclasses import dataclass

import numpy as np

from waveglow_jax.config_data import mel_config_of
from waveglow_jax.conventions import LN, Convention, Values
from waveglow_jax.doctor.fit import at_floor

FLOORS = (1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


@dataclass(frozen=True)
class Recipe:
    """The steps with which `mended` converts a mel to the voice's mel, in this order.

    transposed: whether the file holds `[F, M]`. reversed: whether the bands run from high to low.
    drop: the number of superfluous frames at the start. values: how the values are written, with
    their slope and offset; see `Values`. gain: ln of the factor by which the mel is too loud.
    bands: what to add to each band's logarithm, `[M]`; empty for nothing.
    """

    transposed: bool = False
    reversed: bool = False
    drop: int = 0
    values: Values = LN
    gain: float = 0.0
    bands: tuple[float, ...] = ()


def mended(mel: np.ndarray, recipe: Recipe, own: Convention) -> np.ndarray:
    """A file's array `[M, F]` (`[F, M]` if `transposed`) -> the voice's mel `[F, M]` float32.

    own: the voice's convention.
    """
    mel = np.asarray(mel, np.float64)
    mel = mel if recipe.transposed else mel.T
    mel = mel[recipe.drop :, ::-1] if recipe.reversed else mel[recipe.drop :]
    log = logarithm(mel, recipe.values) - recipe.gain
    if recipe.bands:
        log = log + np.asarray(recipe.bands)[None]
    return written(log, own).astype(np.float32)


def written(log: np.ndarray | float, own: Convention) -> np.ndarray:
    """ln m -> the values that the voice's mel has for m, between its floor and its ceiling."""
    return np.asarray(mel_config_of(own).written(np.exp(log), np))


def logarithm(mel: np.ndarray, values: Values) -> np.ndarray:
    """Values as the file holds them -> ln m."""
    if values.slope == 0:
        return np.log(np.maximum(mel, 1e-30))
    return (mel - values.offset) / values.slope


def orientations(array: np.ndarray, n_mels: int) -> list[Recipe]:
    """Recipes for the orientations that the array's shape allows.

    Its length says which axis may be that of the bands; if it does not, both are tried. Each
    orientation comes also with the bands from high to low.
    """
    usual = {n_mels, 40, 64, 80, 96, 100, 120, 128, 160, 256}
    likely = [array.shape[axis] == n_mels for axis in (0, 1)]
    if likely[0] == likely[1]:
        likely = [array.shape[axis] in usual for axis in (0, 1)]
    turned = [False, True] if likely[0] == likely[1] else [likely[1]]
    return [Recipe(transposed=t, reversed=r) for r in (False, True) for t in turned]


def turned_by(array: np.ndarray, axes: Recipe) -> np.ndarray:
    mel = array if axes.transposed else array.T
    return mel[:, ::-1] if axes.reversed else mel


def standardised(mel: np.ndarray) -> bool:
    """Whether every band has about zero mean and unit variance."""
    spread = mel.std(axis=0)
    return bool(np.abs(mel.mean(axis=0)).max() < 1.5 and 0.3 < np.median(spread) < 2)


def floor_of(mel: np.ndarray, values: Values) -> float | None:
    """The floor that the mel's magnitudes were raised to; None if the mel shows none."""
    if not at_floor(mel) or values.slope == 0:
        return None
    floor = (float(mel.min()) - values.offset) / values.slope
    near = min(FLOORS, key=lambda each: abs(floor - math.log(each)))
    return near if abs(floor - math.log(near)) < 0.05 else math.exp(floor)
