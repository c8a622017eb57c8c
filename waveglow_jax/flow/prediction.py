"""Mel whitening by linear prediction: like the block form, but with no seam between blocks.

The mel tells a spectrum for every block of samples; its linear predictor takes out of each sample
what the samples before it tell, across block borders. Unit-triangular but for the gains, so any
predictor gives a bijection with an exact log-determinant. Arrays: audio `[B, T]`; mask `[B,
blocks]`; past `[B, order]`, the samples before the audio (None: silence).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.audio.fourier import irfft, rfft
from waveglow_jax.config import Config
from waveglow_jax.flow.bijections import (
    PRE_EMPHASIS,
    emphasis_response,
    mel_at_blocks,
    power_of_mel,
    row,
)

BLOCKS_AT_ONCE = 16
"""Of as many a step of the recursion stays in the cache: three times as fast as with 128."""
BLOCKS_AT_ONCE_ON_ACCELERATORS = 4096
"""Each of the recursion's many small steps takes as long for one block as for thousands."""


class Predictor(NamedTuple):
    """Of every block: the whitening filter `[B, blocks, order + 1]`, its first tap 1, and the
    standard deviation `[B, blocks]` of what it cannot predict."""

    taps: jax.Array
    gain: jax.Array


def predictor_of_mel(mel: jax.Array, config: Config, n_samples: int) -> Predictor:
    """`[B, F, M]` -> the predictor of each block of `n_samples` samples.

    Autocorrelation method on the spectrum that the mel tells at the block's centre (as for the
    block form, floor included), after a pre-emphasis that belongs to the filter: what is left to
    Levinson's recursion is well enough conditioned for float32 (up to an order of about 128).
    Cost: order^2 a block.
    """

    of_block = mel_at_blocks(mel, config, n_samples)
    batch, blocks, bins = of_block.shape
    predictor = jax.lax.platform_dependent(
        of_block.reshape(-1, bins),
        cpu=partial(_predictors, config=config, at_once=BLOCKS_AT_ONCE),
        default=partial(_predictors, config=config, at_once=BLOCKS_AT_ONCE_ON_ACCELERATORS),
    )
    return jax.tree.map(lambda leaf: leaf.reshape(batch, blocks, *leaf.shape[1:]), predictor)


def _predictors(of_block: jax.Array, config: Config, at_once: int) -> Predictor:
    """The mel at each block `[N, M]` -> its predictor, taps `[N, order + 1]`, gain `[N]`."""
    # Always as many blocks at once: more or fewer would be rounded otherwise, so that a block's
    # predictor depended on the batch or on the signal's length, and the recursion makes more of
    # rounding than any other step.
    n, bins = of_block.shape
    groups = -(-n // at_once)
    # The last block again fills the last group.
    of_block = of_block[jnp.minimum(jnp.arange(groups * at_once), n - 1)]
    grouped = of_block.reshape(groups, 1, at_once, bins)
    predictor = jax.lax.map(lambda group: _predictor(group, config), grouped)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[3:])[:n], predictor)


def _predictor(of_block: jax.Array, config: Config) -> Predictor:
    """The mel at each block `[B, blocks, M]` -> its predictor."""
    whitening = config.waveglow.whitening
    power = power_of_mel(of_block, config) + (whitening.floor**2 + 1e-9)
    response = emphasis_response(config)
    lags = irfft(power * row(np.abs(response) ** 2, power))[..., : whitening.order]
    # No predictor of any order errs less than the spectrum's geometric mean (Kolmogorov).
    both_sides = np.r_[1, np.full(power.shape[-1] - 2, 2), 1] / config.data.filter_length
    least = jnp.exp(jnp.sum(jnp.log(power) * row(both_sides, power), axis=-1))
    taps, variance = levinson(lags, least)
    ends = [(0, 0)] * (taps.ndim - 1)
    taps = jnp.pad(taps, [*ends, (0, 1)]) - PRE_EMPHASIS * jnp.pad(taps, [*ends, (1, 0)])
    return Predictor(taps, jnp.sqrt(variance))


def levinson(lags: jax.Array, least: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Autocorrelation `[..., P + 1]` -> prediction-error filter `[..., P + 1]`, error variance.

    Levinson-Durbin (Durbin 1960) with the forward and the backward filter side by side. A step
    that would bring the variance below `least` `[...]`, which only rounding can, is left out: the
    filter stays minimum-phase whatever the spectrum.
    """
    first = jnp.zeros_like(lags).at[..., 0].set(1)

    def longer(
        carry: tuple[jax.Array, jax.Array, jax.Array], _: None
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
        forward, backward, variance = carry
        backward = jnp.roll(backward, 1, axis=-1)
        reflection = jnp.sum(backward * lags, axis=-1, keepdims=True) / variance
        sound = variance * (1 - reflection**2) >= least[..., None]
        reflection = jnp.where(sound, reflection, 0)
        return (
            forward - reflection * backward,
            backward - reflection * forward,
            variance * (1 - reflection**2),
        ), None

    start = (first, first, lags[..., :1])
    (forward, _, variance), _ = jax.lax.scan(longer, start, length=lags.shape[-1] - 1)
    return forward, variance[..., 0]


def prediction_forward(
    predictor: Predictor,
    audio: jax.Array,
    past: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """y_t = (sum_k taps_k x_(t-k)) / gain; log_det = -sum ln gain. Parallel in time."""
    batch, blocks, length = predictor.taps.shape
    order, block = length - 1, audio.shape[1] // blocks
    if past is None:
        past = jnp.zeros((batch, order), audio.dtype)
    extended = jnp.concatenate([past, audio], axis=1)
    windows = extended[:, np.arange(blocks)[:, None] * block + np.arange(order + block)]
    # Circular convolution: what wraps around falls on the window's first `order` samples alone.
    size = 1 << (order + block - 1).bit_length()
    spectrum = rfft(windows, size) * rfft(predictor.taps, size)
    residual = irfft(spectrum, size)[..., order : order + block]
    y = residual / predictor.gain[..., None]
    return y.reshape(audio.shape), -_log_gains(predictor, block, mask)


def prediction_inverse(
    predictor: Predictor,
    y: jax.Array,
    past: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """x_t = gain y_t - sum_(k>0) taps_k x_(t-k); log_det = sum ln gain. One block after another."""
    batch, blocks, length = predictor.taps.shape
    order, block = length - 1, y.shape[1] // blocks
    if past is None:
        past = jnp.zeros((batch, order), y.dtype)
    # Row i of a block's matrix weighs the samples before the block, then the block's own.
    lag = order + np.arange(block)[:, None] - np.arange(order + block)
    used = jnp.asarray((lag >= 0) & (lag <= order), y.dtype)[None]

    def next_block(
        history: jax.Array, of_block: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        taps, gain, y_block = of_block
        matrix = taps[:, np.clip(lag, 0, order)] * used
        predicted = jnp.einsum("bij,bj->bi", matrix[..., :order], history, precision="highest")
        x = jax.lax.linalg.triangular_solve(
            matrix[..., order:],
            (gain[:, None] * y_block - predicted)[..., None],
            left_side=True,
            lower=True,
            unit_diagonal=True,
        )[..., 0]
        return jnp.concatenate([history, x], axis=1)[:, -order:], x

    in_time = (predictor.taps, predictor.gain, y.reshape(batch, blocks, block))
    in_time = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), in_time)
    _, x = jax.lax.scan(next_block, past, in_time)
    return jnp.moveaxis(x, 0, 1).reshape(y.shape), _log_gains(predictor, block, mask)


def _log_gains(predictor: Predictor, block: int, mask: jax.Array | None) -> jax.Array:
    logs = block * jnp.log(predictor.gain)
    return (logs if mask is None else jnp.where(mask > 0, logs, 0)).sum(axis=1)
