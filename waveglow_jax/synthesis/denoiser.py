"""The original's denoiser, which subtracts the model's bias spectrum from every frame.

The bias is the magnitude spectrum of the first frame of the model's output for an all-zero mel at
sigma 0. Arrays: audio `[T]` float32; spectra `[513]`, magnitudes of a Hann-windowed FFT of 1024
samples with a hop of 256.
"""

from collections.abc import Iterable, Iterator
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.audio.fourier import irfft, rfft
from waveglow_jax.audio.mel import FAR, mirrored

FFT, HOP = 1024, 256
PIECE = 32
"""Number of hops of audio that one call computes."""
DELAY = FFT - HOP
"""Samples after a sample that its frames depend on, so the delay of a denoised stream."""

_N = np.arange(FFT)
_HANN = (0.5 - 0.5 * np.cos(2 * np.pi * _N / FFT)).astype(np.float32)


def denoise(audio: np.ndarray, bias_spectrum: np.ndarray, strength: float) -> np.ndarray:
    """`[T]`, `[513]` -> `[T]`: |STFT| - strength * bias, at least 0, with the phase unchanged.

    It follows the original's `denoiser.py` (github.com/NVIDIA/waveglow): the frames are centred on
    every 256th sample, reflected at the ends, overlap-added and divided by the sum of squared
    windows. Raises ValueError for other shapes, or a strength that is negative or not finite.
    """
    audio = np.asarray(audio, np.float32)
    if audio.ndim != 1:
        raise ValueError(f"audio must be [T], not of shape {audio.shape}")
    blocks = list(denoised_blocks([audio], bias_spectrum, strength))
    return np.concatenate([np.zeros(0, np.float32), *blocks])


def denoised_blocks(
    blocks: Iterable[np.ndarray], bias_spectrum: np.ndarray, strength: float
) -> Iterator[np.ndarray]:
    """`denoise` for audio that arrives in blocks `[n]`; samples come out `DELAY` samples later.

    Raises ValueError as `denoise` does.
    """
    bias = np.asarray(bias_spectrum, np.float32)
    if bias.shape != (FFT // 2 + 1,):
        raise ValueError(f"bias_spectrum must be [{FFT // 2 + 1}], not of shape {bias.shape}")
    if not (np.isfinite(strength) and strength >= 0):
        raise ValueError(f"strength {strength} must be a number of at least 0")
    return _denoised_blocks(iter(blocks), np.float32(strength) * bias)


def _denoised_blocks(blocks: Iterator[np.ndarray], bias: np.ndarray) -> Iterator[np.ndarray]:
    audio = np.zeros(0, np.float32)
    start = done = 0  # samples before `audio`, samples already yielded
    ended = False
    while True:
        block = next(blocks, None)
        ended = block is None
        audio = audio if ended else np.concatenate([audio, block])
        there = start + len(audio)
        # Before the end only whole hops are ready, because the frames lie on a grid.
        ready = there if ended else max(done, (there - DELAY) // HOP * HOP)
        pieces = []
        while done < ready:
            samples = min(ready - done, PIECE * HOP)
            centres = done // HOP - 1 + np.arange(PIECE + 3)
            heard = done - DELAY + np.arange((PIECE + 2) * HOP + FFT)
            length = there if ended else FAR
            segment = audio[np.clip(mirrored(heard, length) - start, 0, len(audio) - 1)]
            exists = (centres >= 0) & (centres * HOP <= (there if ended else np.inf))
            pieces.append(np.asarray(_denoised_piece(segment, exists, bias))[:samples])
            done += samples
        if pieces:
            yield np.concatenate(pieces)
        if ended:
            return
        # Keep the context of the next piece, and the samples that the end would reflect.
        kept = max(start, done - FFT)
        audio, start = audio[kept - start :], kept


def bias_spectrum_of(audio: np.ndarray) -> np.ndarray:
    """A voice's output `[T]` for an all-zero mel at sigma 0 -> its bias spectrum `[513]`."""
    first = np.asarray(audio, np.float32)[mirrored(np.arange(FFT) - FFT // 2, len(audio))]
    return np.abs(np.fft.rfft(first * _HANN)).astype(np.float32)


@jax.jit
def _denoised_piece(segment: jax.Array, exists: jax.Array, bias: jax.Array) -> jax.Array:
    """Samples `[(PIECE + 2) * HOP + FFT]`, mask of frames `[PIECE + 3]` -> `[PIECE * HOP]`."""
    frames = segment[np.arange(PIECE + 3)[:, None] * HOP + _N]
    spectrum = rfft(frames * _HANN[None])
    magnitude = jnp.abs(spectrum)
    gain = jnp.maximum(magnitude - bias[None], 0) / jnp.maximum(magnitude, 1e-20)
    heard = exists[:, None]
    again = jnp.where(heard, irfft(spectrum * gain) * _HANN[None], 0)
    weight = jnp.where(heard, _HANN[None] ** 2, 0)

    def overlap_added(frames: jax.Array) -> jax.Array:
        # Hop h is the last quarter of frame h, the third of frame h + 1, and so on.
        quarters = frames.reshape(PIECE + 3, FFT // HOP, HOP)
        added = sum(quarters[3 - p : 3 - p + PIECE, p] for p in range(FFT // HOP))
        return cast(jax.Array, added).reshape(-1)

    return overlap_added(again) / jnp.maximum(overlap_added(weight), 1e-8)
