"""Search for a typical z whose decoded signal follows the mel: a sample of the flow itself.

A random z gives a signal whose mel is only near the requested one. The search finds another z by
alternating projections between two sets: the signals that have the mel, which
`consistency.consistent` approaches, and the flow's typical set, which contains every z of the right
standard deviation without outliers. One round is

    y = consistent(audio);  z = forward(y);  z <- z / max(1, |z| / 2.5), scaled to sigma
    audio = inverse(z)

so the result is decoded from a typical z without any correction afterwards, and its likelihood is
exact. The search needs the whole signal at once, so it cannot run on streams.

Arrays: audio `[T]`, log-mel `[F, M]`, z `[N, G]`; T = F * hop, N = ceil(T / G).
docs/explanation/consistency.md describes what the search brings.
"""

import dataclasses
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.audio.consistency import consistent
from waveglow_jax.config import Config
from waveglow_jax.flow.likelihood import log_likelihood
from waveglow_jax.flow.waveglow import (
    Params,
    forward,
    inverse_prepared,
    noise_of_frames,
    parameter_shapes,
    prepare_inverse,
)
from waveglow_jax.synthesis.plan import size_at_least

ROUNDS = 4
CORRECTIONS = 24
"""Number of corrections per round."""
BOUND = 2.5
"""Limit of |z|, in standard deviations; larger values are clipped."""
MOST_FRAMES = 4096
"""Maximum length of a mel: memory grows with it, because the search takes the whole signal."""


class TypicalSample(NamedTuple):
    """Audio `[T]`, the z `[N, G]` that it is decoded from, and its log-likelihood in nats per
    sample, all constants included."""

    audio: np.ndarray
    z: np.ndarray
    nats: float


def typical_sample(
    params: Params,
    config: Config,
    mel: np.ndarray,
    sigma: float = 1.0,
    seed: int = 0,
    dtype: str = "float32",
    device: jax.Device | None = None,
    rounds: int = ROUNDS,
    corrections: int = CORRECTIONS,
) -> TypicalSample:
    """The flow's sample for a log-mel `[F, M]`; the search starts from the noise of that seed.

    sigma: the standard deviation of z, before and after the search; dtype: the compute dtype of the
    matmuls inside WN; device: where it runs, by default the first. Cost: rounds + 1 reverse passes,
    rounds forward passes, and rounds * corrections of `consistent`. Raises ValueError for more than
    `MOST_FRAMES` frames.
    """
    frames = len(mel)
    device = device or jax.devices()[0]
    program = search_program(config, frames, dtype, device, rounds, corrections)
    padded = np.pad(mel, ((0, _padded_size(config, frames) - frames), (0, 0)), mode="edge")
    audio, z, log_det = program(
        jax.device_put(params, device),
        padded.astype(np.float32),
        np.int32(frames),
        np.float32(sigma),
        np.uint32(seed),
    )
    z = z[:, : config.steps_of(frames)]
    nats = log_likelihood(z, -log_det)
    audio = np.asarray(audio[0, : frames * config.data.hop_length])
    return TypicalSample(audio, np.asarray(z[0]), float(nats[0]))


def _padded_size(config: Config, frames: int) -> int:
    """The number of frames, in whole periods, to which a mel of `frames` frames is padded."""
    return -(-size_at_least(frames) // config.period) * config.period


def search_program(
    config: Config,
    frames: int,
    dtype: str,
    device: jax.Device,
    rounds: int = ROUNDS,
    corrections: int = CORRECTIONS,
) -> jax.stages.Compiled:
    """The compiled search for mels of up to about `frames` frames, cached for the next such mel.

    Raises ValueError for more than `MOST_FRAMES` frames.
    """
    if frames > MOST_FRAMES:
        raise ValueError(
            f"a mel of {frames} frames is too long for the latent search, which takes at most "
            f"{MOST_FRAMES} at once; cut it, or give a number of corrections"
        )
    size = _padded_size(config, frames)
    return _program_of_size(config, size, dtype, device, rounds, corrections)


@lru_cache(maxsize=8)
def _program_of_size(
    config: Config, size: int, dtype: str, device: jax.Device, rounds: int, corrections: int
) -> jax.stages.Compiled:
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32),
        parameter_shapes(config),
    )
    mel = jax.ShapeDtypeStruct((size, config.waveglow.n_mel_channels), jnp.float32)
    scalars = np.int32(0), np.float32(0), np.uint32(0)
    there = jax.sharding.SingleDeviceSharding(device)
    search = partial(_search, config, dtype, rounds, corrections)
    program = jax.jit(search, in_shardings=there, out_shardings=there)
    return program.lower(params, mel, *scalars).compile()


def _search(
    config: Config,
    dtype: str,
    rounds: int,
    corrections: int,
    params: Params,
    mel: jax.Array,
    n_frames: jax.Array,
    sigma: jax.Array,
    seed: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Padded mel `[F, M]` -> audio `[1, T]`, z `[1, N, G]`, log_det `[1]` of the inverse."""
    frames = len(mel)
    own = jnp.arange(config.steps_of(frames))[None] < config.steps_of(n_frames)
    mask = own.astype(jnp.float32)
    mel = mel[None]
    full_band = with_full_band(config)
    prepared = prepare_inverse(params)

    def decoded(z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        audio, log_det = inverse_prepared(
            prepared, config, z, mel, mask=mask, dtype=jnp.dtype(dtype)
        )
        return audio, z, log_det

    def one_round(
        before: tuple[jax.Array, jax.Array, jax.Array], _: None
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
        audio = consistent(before[0], mel, full_band, corrections, n_frames=n_frames[None])
        audio = corrected_within(audio, before[0], n_frames, config)
        z = forward(params, config, audio, mel, mask=mask, dtype=jnp.dtype(dtype))[0]
        # where, not a multiplication by the mask: the padding may hold anything, NaN included.
        z = typical(jnp.where(own[..., None], z, 0), sigma, mask.sum() * z.shape[-1])
        return decoded(z), None

    noise = noise_of_frames(seed, config, jnp.arange(frames))[None].astype(mel.dtype)
    found, _ = jax.lax.scan(one_round, decoded(sigma * noise), length=rounds)
    return found


def corrected_within(
    corrected: jax.Array, audio: jax.Array, n_frames: jax.Array | int, config: Config
) -> jax.Array:
    """The corrected samples `[B, T]` of the own frames, and after them those of the audio.

    Corrections leave samples beyond the frames undefined, and the last group may have some.
    """
    if config.period == 1:
        return corrected
    own = jnp.arange(audio.shape[1])[None] < n_frames * config.data.hop_length
    return jnp.where(own, corrected, audio)


def with_full_band(config: Config) -> Config:
    """The config without a bandwidth, so that corrections silence no band: a signal with an empty
    band is very unlikely under a flow that was trained with noise in it."""
    synthesis = dataclasses.replace(config.synthesis, bandwidth=0.0)
    return dataclasses.replace(config, synthesis=synthesis)


def typical(z: jax.Array, sigma: jax.Array, count: jax.Array, bound: float = BOUND) -> jax.Array:
    """Clips z `[1, N, G]` to the bound, then scales it to standard deviation sigma over its `count`
    own values; all other values must be zero."""
    z = z / jnp.maximum(1, jnp.abs(z) / bound)
    deviation = jnp.sqrt(jnp.sum(z**2) / count)
    return z * (sigma / jnp.maximum(deviation, 1e-6))
