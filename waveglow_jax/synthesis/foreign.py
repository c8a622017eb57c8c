"""Mels of other conventions: to sound without a voice, and to the mel of another convention.

Two conventions of one spectrum differ only in how they write it: `rewritten` converts exactly.
Otherwise `converted` goes through a signal: noise corrected towards the one mel
(`audio/consistency.py`), resampled, gives the other mel. Arrays: samples `[T]`, mel `[F, M]`.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import soxr

from waveglow_jax.audio.mel import bands_of, mel_filters, stft_window, written
from waveglow_jax.config import Config, DataConfig, SynthesisConfig, WaveGlowConfig
from waveglow_jax.config_data import fields_of, mel_config_of
from waveglow_jax.conventions import Convention, convention_named
from waveglow_jax.synthesis.arrays import check_mel
from waveglow_jax.synthesis.consistency import consistent_blocks, piece_frames, piece_program
from waveglow_jax.synthesis.mels import mel_of_samples
from waveglow_jax.synthesis.reverse_pass import Piece

CORRECTIONS = 32
"""Default number of corrections, see docs/measurements/foreign-mels.md."""
OVERLAP = 4
"""Number of windows that cover a sample in `sound_of`, at least."""
MOST_BETWEEN = 8
"""Maximum number of frames that `sound_of` makes of one frame."""
NOISE_LEVEL = 0.01
"""Standard deviation of the noise before the corrections, which then determine the level."""
ERRORS = Path(__file__).with_name("foreign_errors.json")
"""The error of `converted` for each pair of keys, as benchmarks/measurements/foreign_mels.py
measured it."""
PIECE = 256
"""Number of frames of noise that are made at once."""
UNDER, OVER = 2.0, 2.5
"""Margins of `why_not_of`, as ln of a factor of the magnitudes: below the floor, where models
predict a little less, and above what full-scale audio gives."""


def config_of(convention: str | Convention) -> Config:
    """Returns a config whose mel is that of a row of the table, given by itself or by its key.

    Only the mel's fields are meant; no voice need fit the others. Raises UserError, with the
    nearest keys, for a key that is not in the table.
    """
    row = convention_named(convention) if isinstance(convention, str) else convention
    fields = fields_of(row)
    data = DataConfig(**fields["data_config"] | {"mel": mel_config_of(row)})
    return Config(WaveGlowConfig(**fields["waveglow_config"]), data)


# ------------------------------------------------------------------------------ to sound


def frames_for_one(config: Config) -> int:
    """Returns the number of frames that `sound_of` interpolates the mel to, per given frame.

    It is above 1 where fewer than OVERLAP windows cover a sample, because many signals then have
    the same mel: the magnitudes hardly determine the phases. Frames half a hop late are left as
    they are, since their grid holds no finer one that keeps their positions.
    """
    data = config.data
    if data.mel.late:
        return 1
    covered = (
        n
        for n in range(1, MOST_BETWEEN + 1)
        if data.hop_length % n == 0 and n * data.win_length >= OVERLAP * data.hop_length
    )
    return next(covered, 1)


def sound_of(
    mel: np.ndarray, config: Config, corrections: int = CORRECTIONS, seed: int = 0
) -> np.ndarray:
    """Returns samples `[F * hop]` with this mel `[F, M]` of the config's convention.

    No voice is needed: they are noise of this seed after so many corrections towards the mel, or
    towards the mel with interpolated frames (`frames_for_one`). They are silent above the mel's
    bands, and not clipped. Raises ValueError for a mel of another shape or with values that are not
    finite.
    """
    return np.concatenate([block for _, block in sound_blocks([mel], config, corrections, seed)])


def sound_blocks(
    mels: Iterable[np.ndarray], config: Config, corrections: int = CORRECTIONS, seed: int = 0
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (index of the mel, next block of its samples) of `sound_of` for each mel.

    Memory grows with neither the number nor the length of the mels.
    """
    return consistent_blocks(_noise(mels, config, seed), corrected_as(config), corrections)


def compile_sound(config: Config, corrections: int) -> float:
    """Compiles what `sound_blocks` needs; returns the seconds that it took."""
    began, device = time.monotonic(), jax.devices()[0]
    if corrections:
        piece_program(corrected_as(config), corrections, piece_frames(device), device)
    return time.monotonic() - began


def corrected_as(config: Config) -> Config:
    """Returns the config of `sound_of`'s corrections.

    They silence what lies above the mel's bands, and the hop is that of the interpolated frames.
    """
    hop = config.data.hop_length // frames_for_one(config)
    return replace(
        config,
        data=replace(config.data, hop_length=hop),
        synthesis=SynthesisConfig(bandwidth=config.data.mel_fmax),
    )


def _noise(mels: Iterable[np.ndarray], config: Config, seed: int) -> Iterator[Piece]:
    hop, n = config.data.hop_length, frames_for_one(config)
    for number, mel in enumerate(mels):
        check_mel(mel, config.waveglow.n_mel_channels)
        generator = np.random.default_rng(seed)
        for start in range(0, len(mel), PIECE):
            part = np.asarray(mel[start : start + PIECE], np.float32)
            following = np.asarray(mel[start + 1 : start + PIECE + 1], np.float32)
            if len(following) < len(part):
                following = np.concatenate([following, part[-1:]])
            noise = NOISE_LEVEL * generator.standard_normal(len(part) * hop)
            yield Piece(number, noise.astype(np.float32), _interpolated(part, following, n))


def _interpolated(mel: np.ndarray, following: np.ndarray, n: int) -> np.ndarray:
    """Frames `[F, M]`, and for each the one after it -> `[F * n, M]`, linear from each to its
    next."""
    share = (np.arange(n, dtype=mel.dtype) / n)[None, :, None]
    between = mel[:, None] + share * (following - mel)[:, None]
    return between.reshape(len(mel) * n, mel.shape[1])


# ------------------------------------------------------------------------------ to another mel


def converted(
    mel: np.ndarray,
    source: Config,
    target: Config,
    corrections: int = CORRECTIONS,
    seed: int = 0,
) -> np.ndarray:
    """Returns the target's mel `[frames_after(F), M']` of what the source's mel `[F, M]` describes.

    It is `rewritten` where the spectra agree, and otherwise the mel of `sound_of`. Raises
    ValueError if the mel is `too_short`, has another shape or values that are not finite.
    """
    if same_spectrum(source, target):
        check_mel(mel, source.waveglow.n_mel_channels)
        return rewritten(mel, source, target)
    return mel_of_sound(sound_of(mel, source, corrections, seed), source, target)


def mel_of_sound(samples: np.ndarray, source: Config, target: Config) -> np.ndarray:
    """Returns the target's mel of the samples `[F * hop]` that `sound_of` made."""
    samples = samples[: _samples_of(len(samples) // source.data.hop_length, source)]
    rates = source.data.sampling_rate, target.data.sampling_rate
    if rates[0] != rates[1]:
        samples = soxr.resample(samples, *rates, quality="VHQ")
    return mel_of_samples(samples, target)


def frames_after(frames: int, source: Config, target: Config) -> int:
    """Returns the number of frames that `converted` gives for so many."""
    if same_spectrum(source, target):
        return frames
    return target.data.frames_of(_samples_after(frames, source, target))


def too_short(frames: int, source: Config, target: Config) -> bool:
    """Whether so many frames are too few for `converted`."""
    if same_spectrum(source, target):
        return False
    return _samples_after(frames, source, target) <= target.data.shortest


def _samples_after(frames: int, source: Config, target: Config) -> int:
    rates = source.data.sampling_rate, target.data.sampling_rate
    # soxr rounds half a sample up.
    return int(_samples_of(frames, source) * rates[1] / rates[0] + 0.5)


def _samples_of(frames: int, config: Config) -> int:
    """The most samples whose mel has so many frames and no more."""
    samples = frames * config.data.hop_length
    return samples if config.data.mel.late else samples - 1


def same_spectrum(source: Config, target: Config) -> bool:
    """Whether the conventions differ at most in the filters' norm and in how values are written."""
    spectra = source.convention.spectrum, target.convention.spectrum
    return (
        set(spectra[0].differences(spectra[1])) <= {"norm"}
        and source.data.mel.epsilon == target.data.mel.epsilon
    )


def rewritten(mel: np.ndarray, source: Config, target: Config) -> np.ndarray:
    """Returns the mel `[F, M]` of one convention as another of the same spectrum writes it.

    It is exact; but values at the source's floor or ceiling, whose bands are not known, are written
    as if they lay there. Raises ValueError if the spectra differ.
    """
    if not same_spectrum(source, target):
        raise ValueError("the conventions are not of one spectrum; see `converted`")
    bands = bands_of(jnp.asarray(mel, jnp.float32), source.data)
    return np.asarray(written(bands * _areas(source, target)[None], target.data))


@cache
def _areas(source: Config, target: Config) -> np.ndarray:
    """The factor `[M]` from the source's filters to the target's, which have the same shapes."""
    ours, theirs = (
        mel_filters(each.data, each.waveglow.n_mel_channels).sum(1) for each in (source, target)
    )
    return np.divide(theirs, ours, out=np.ones_like(ours), where=ours > 0)


def lost(source: Config, target: Config) -> str:
    """Returns what `rewritten` cannot know: "below its floor", "above its ceiling", or both, or "".

    That is so where the source's limits are narrower than the target's.
    """
    ours, theirs = source.data.mel, target.data.mel
    areas = _areas(source, target)
    narrow = ["below its floor"] * bool(ours.floor * areas.max() > theirs.floor * (1 + 1e-6))
    if ours.ceiling:
        most = theirs.ceiling or np.inf
        narrow += ["above its ceiling"] * bool(ours.ceiling * areas.min() < most * (1 - 1e-6))
    return " and ".join(narrow)


@cache
def expected_error(source: str, target: str) -> float | None:
    """Returns the measured error of `converted` from and to the conventions of these keys.

    It is the mean absolute difference from the true mel over held-out speech, in units of ln of a
    magnitude. None for a convention that is not a row of the table.
    """
    return json.loads(ERRORS.read_text(encoding="utf-8")).get(source, {}).get(target)


# ------------------------------------------------------------------------------ what a mel can be


def why_not_of(mel: np.ndarray, config: Config) -> str:
    """Returns why these values cannot be of the config's convention, or "" if they can.

    They cannot if most lie below the floor, if one lies far above what full-scale audio gives, or
    if most lie above what white noise of full scale gives.
    """
    form = config.data.mel
    loudest = _loudest(config)
    low, high = form.lowest, form.value_of(loudest * float(np.exp(OVER * form.power)), math)
    low -= form.slope * form.power * UNDER
    if np.median(mel) < low:
        return f"most of its values are below {low:.4g}, but silence is {form.lowest:.4g} there"
    if mel.max() > high:
        full = form.value_of(loudest, math)
        return f"it reaches {mel.max():.4g}, but audio of full scale reaches {full:.4g} there"
    noise = form.written(_of_noise(config), np)
    if np.median(mel) > noise:
        return f"most of its values are above {noise:.4g}, that of white noise of full scale"
    return ""


@cache
def _loudest(config: Config) -> float:
    """The largest band that audio of full scale can have."""
    data, form = config.data, config.data.mel
    filters = mel_filters(data, config.waveglow.n_mel_channels)
    loudest = filters.sum(1).max() * ((1 + form.emphasis) * stft_window(data).sum()) ** form.power
    return float(min(loudest, form.ceiling or np.inf))


@cache
def _of_noise(config: Config) -> float:
    """The median of the bands' root mean squares for white noise of RMS 1; for power mels, the
    median of their means."""
    data, form = config.data, config.data.mel
    filters = mel_filters(data, config.waveglow.n_mel_channels).sum(1)
    variance = (1 + form.emphasis**2) * (stft_window(data) ** 2).sum()
    return float(np.median(filters[filters > 0]) * variance ** (form.power / 2))
