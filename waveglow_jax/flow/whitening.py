"""Mel whitening: a bijection without trained parameters at the audio end of the flow.

The mel gives a power spectrum for every block of samples, which whitening removes from the audio.
There are two forms, and `whitening_of` alone chooses between them: linear prediction filters across
the blocks' borders; the block form multiplies each block by its own Cholesky factor. Both return
local log-determinants `[B, blocks]`, which docs/explanation/bijections.md derives. Arrays: audio
`[B, T]`; mel `[B, F, M]`; past `[B, order]`, the samples before the audio (None: silence).
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.audio.fourier import irfft, rfft
from waveglow_jax.audio.mel import bands_of, mel_filters, stft_window
from waveglow_jax.config import Config
from waveglow_jax.flow.bijections import EXACT

PRE_EMPHASIS = 0.95
"""The power of speech falls steeply towards high frequencies. A pre-emphasis that removes this tilt
first makes the covariance fifty times better conditioned, so that float32 suffices. In exact
arithmetic it changes nothing."""
BLOCKS_AT_ONCE = 16
"""Sixteen blocks fit the cache, which makes a recursion step three times as fast as with 128."""
BLOCKS_AT_ONCE_ON_ACCELERATORS = 4096
"""There each of the recursion's many small steps takes as long for one block as for thousands."""


class Whitening(NamedTuple):
    """One form of whitening.

    of_mel: (mel, config, n_samples, first_frame) -> the spectrum of each block, in that form;
    first_frame is the frame of the mel at the samples' first hop. forward, inverse: (spectrum,
    audio, past) -> (result `[B, T]`, log_det `[B, blocks]`).
    """

    of_mel: Callable[[jax.Array, Config, int, int], Any]
    forward: Callable[[Any, jax.Array, jax.Array | None], tuple[jax.Array, jax.Array]]
    inverse: Callable[[Any, jax.Array, jax.Array | None], tuple[jax.Array, jax.Array]]


def whitening_of(config: Config) -> Whitening | None:
    """The config's form of whitening; None where it has none."""
    if not config.waveglow.mel_whitening:
        return None
    return PREDICTION if config.waveglow.whitening_order else BLOCKS


# ------------------------------------------------------------------------------ the mel's spectrum


def power_at_blocks(
    mel: jax.Array, config: Config, n_samples: int, first_frame: int = 0
) -> jax.Array:
    """`[B, F, M] -> [B, blocks, bins]`: the power spectrum that the mel gives for each block."""
    return power_of_mel(mel_at_blocks(mel, config, n_samples, first_frame), config)


def mel_at_blocks(
    mel: jax.Array, config: Config, n_samples: int, first_frame: int = 0
) -> jax.Array:
    """`[B, F, M] -> [B, blocks, M]`: the log-mel at each block's centre.

    first_frame: the frame of the mel at the samples' first hop, the number of earlier frames.
    """
    block, hop = config.waveglow.whitening.block, config.data.hop_length
    # The block's centre in half samples: an integer, whether the length is known or symbolic.
    centre = (2 * jnp.arange(n_samples // block) + 1) * block + 2 * first_frame * hop
    if config.data.mel.late:
        centre = jnp.maximum(centre - hop, 0)
    last = mel.shape[1] - 1
    left = jnp.minimum(centre // (2 * hop), last)
    right = jnp.minimum(left + 1, last)
    share = ((centre - 2 * hop * left).astype(mel.dtype) / (2 * hop))[None, :, None]
    return mel[:, left] * (1 - share) + mel[:, right] * share


def power_of_mel(mel: jax.Array, config: Config) -> jax.Array:
    """Log-mel `[..., M]` -> the power spectrum that it gives, `[..., bins]`."""
    form, energy = config.data.mel, np.sum(stft_window(config.data) ** 2)
    spread = jnp.asarray(_spread(config), mel.dtype)
    of_bins = jnp.matmul(bands_of(mel, config.data), spread, precision=EXACT)
    power = (
        of_bins * float(1 / energy) if form.power == 2 else of_bins**2 * float(4 / np.pi / energy)
    )
    if not form.emphasis:
        return power
    undone = 1 / np.abs(response_of(form.emphasis, config)) ** 2
    return power * jnp.broadcast_to(jnp.asarray(undone, power.dtype), power.shape)


@cache
def _spread(config: Config) -> np.ndarray:
    """`[M, bins]`: the mel's bands to the FFT's bins; bins that no filter covers get 0.

    Some conventions have bands so narrow that they contain no bin, and those give nothing.
    """
    filters = mel_filters(config.data, config.waveglow.n_mel_channels).astype(np.float64)
    of_bin = filters.sum(axis=0)
    share = filters / np.where(of_bin > 0, of_bin, 1)
    of_band = filters.sum(axis=1, keepdims=True)
    return share / np.where(of_band > 0, of_band, 1)


def emphasis_response(config: Config) -> np.ndarray:
    """`[bins]` complex: the pre-emphasis 1 - 0.95 z^-1 on the FFT's bins."""
    return response_of(PRE_EMPHASIS, config)


def response_of(emphasis: float, config: Config) -> np.ndarray:
    """`[bins]` complex: the pre-emphasis 1 - emphasis z^-1 on the FFT's bins."""
    bins = np.arange(config.data.filter_length // 2 + 1)
    return 1 - emphasis * np.exp(-2j * np.pi * bins / config.data.filter_length)


def row(values: np.ndarray, like: jax.Array) -> jax.Array:
    """`[bins]` as `[1, 1, bins]` in the dtype of another array."""
    return jnp.asarray(values, like.dtype)[None, None]


# ------------------------------------------------------------------------------ linear prediction


class Predictor(NamedTuple):
    """The whitening filter of every block `[B, blocks, order + 1]`, whose first tap is 1, and the
    standard deviation of its prediction error `[B, blocks]`."""

    taps: jax.Array
    gain: jax.Array


def predictor_of_mel(
    mel: jax.Array, config: Config, n_samples: int, first_frame: int = 0
) -> Predictor:
    """`[B, F, M]` -> the predictor of each block of `n_samples` samples.

    Autocorrelation method on the mel's power spectrum at the block's centre (as for the block form,
    floor included), after a pre-emphasis that becomes part of the filter: Levinson's recursion is
    then well enough conditioned for float32 (up to an order of about 128). Cost: order^2 per block.
    """

    of_block = mel_at_blocks(mel, config, n_samples, first_frame)
    batch, blocks, bins = of_block.shape
    predictor = jax.lax.platform_dependent(
        of_block.reshape(-1, bins),
        cpu=partial(_predictors, config=config, at_once=BLOCKS_AT_ONCE),
        default=partial(_predictors, config=config, at_once=BLOCKS_AT_ONCE_ON_ACCELERATORS),
    )
    return jax.tree.map(lambda leaf: leaf.reshape(batch, blocks, *leaf.shape[1:]), predictor)


def _predictors(of_block: jax.Array, config: Config, at_once: int) -> Predictor:
    """The mel at each block `[N, M]` -> its predictor, taps `[N, order + 1]`, gain `[N]`."""
    # Every group has the same number of blocks. Another number would round differently, a block's
    # predictor would depend on the batch or on the signal's length, and the recursion amplifies
    # rounding more than any other step.
    n, bins = of_block.shape
    groups = (n + at_once - 1) // at_once  # of positive numbers: ONNX rounds towards zero
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
    # No predictor of any order has a smaller error than the spectrum's geometric mean (Kolmogorov).
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


def _before(
    predictor: Predictor, signal: jax.Array, past: jax.Array | None
) -> tuple[int, int, jax.Array]:
    """The order, the samples per block, and the `order` samples before the signal `[B, T]`."""
    batch, blocks, length = predictor.taps.shape
    if past is None:
        past = jnp.zeros((batch, length - 1), signal.dtype)
    return length - 1, signal.shape[1] // blocks, past


def prediction_forward(
    predictor: Predictor, audio: jax.Array, past: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """y_t = (sum_k taps_k x_(t-k)) / gain; log_det = -block ln gain. Parallel in time."""
    order, block, past = _before(predictor, audio, past)
    extended = jnp.concatenate([past, audio], axis=1)
    starts = block * np.arange(predictor.gain.shape[1])
    windows = extended[:, starts[:, None] + np.arange(order + block)]
    # Of a circular convolution only the window's first `order` samples wrap around.
    size = 1 << (order + block - 1).bit_length()
    spectrum = rfft(windows, size) * rfft(predictor.taps, size)
    residual = irfft(spectrum, size)[..., order : order + block]
    y = residual / predictor.gain[..., None]
    return y.reshape(audio.shape), -block * jnp.log(predictor.gain)


def prediction_inverse(
    predictor: Predictor, y: jax.Array, past: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """x_t = gain y_t - sum_(k>0) taps_k x_(t-k); log_det = block ln gain. Sequential in blocks."""
    order, block, past = _before(predictor, y, past)
    # Row i of a block's matrix weighs the samples before the block, then the block's own.
    lag = order + np.arange(block)[:, None] - np.arange(order + block)
    used = jnp.asarray((lag >= 0) & (lag <= order), y.dtype)[None]

    def next_block(
        history: jax.Array, of_block: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        taps, gain, y_block = of_block
        matrix = taps[:, np.clip(lag, 0, order)] * used
        predicted = jnp.einsum("bij,bj->bi", matrix[..., :order], history, precision=EXACT)
        x = jax.lax.linalg.triangular_solve(
            matrix[..., order:],
            (gain[:, None] * y_block - predicted)[..., None],
            left_side=True,
            lower=True,
            unit_diagonal=True,
        )[..., 0]
        return jnp.concatenate([history, x], axis=1)[:, -order:], x

    in_time = (predictor.taps, predictor.gain, y.reshape(*predictor.gain.shape, block))
    in_time = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), in_time)
    _, x = jax.lax.scan(next_block, past, in_time)
    return jnp.moveaxis(x, 0, 1).reshape(y.shape), block * jnp.log(predictor.gain)


PREDICTION = Whitening(predictor_of_mel, prediction_forward, prediction_inverse)


# ------------------------------------------------------------------------------ the block form


def whitening_factors(
    mel: jax.Array, config: Config, n_samples: int, first_frame: int = 0
) -> jax.Array:
    """`[B, F, M] -> [B, blocks, block, block]`: D L, with L each block's Cholesky factor.

    The mel gives the spectral envelope: log-mel interpolated linearly to the block's centre
    (beyond the last frame: the last frame); exp; spread over the FFT's bins, each the average of
    the bands that cover it, weighted by their filters there; power = magnitude^2 * (4 / pi) /
    sum(window^2) (a Gaussian's mean magnitude is sqrt(pi) / 2 of its root mean square), plus
    floor^2; autocorrelation r = irfft(power); R = Toeplitz(r) + 1e-9 I = L L^T.
    D x = x_0, x_1 - 0.95 x_0, x_2 - 0.95 x_1 ...: D L is the Cholesky factor of D R D^T, which
    follows directly from the product of the spectrum and D's. Cost: block^3 / 6 per block.
    """
    whitening = config.waveglow.whitening
    block = whitening.block
    power = power_at_blocks(mel, config, n_samples, first_frame) + (whitening.floor**2 + 1e-9)
    response = emphasis_response(config)
    inner = irfft(power * row(np.abs(response) ** 2, power))[..., :block]
    # The block's first sample is not emphasised: its row and column have the filter only once.
    real, imaginary = (power * row(part, power) for part in (response.real, response.imag))
    edge = irfft(jax.lax.complex(real, imaginary))[..., 1:block]
    corner = irfft(power)[..., :1]
    lag = np.abs(np.arange(block)[:, None] - np.arange(block))
    covariance = inner[..., lag]
    covariance = covariance.at[..., 0, :].set(jnp.concatenate([corner, edge], axis=-1))
    covariance = covariance.at[..., 1:, 0].set(edge)
    return jnp.linalg.cholesky(covariance, symmetrize_input=False)


def whitening_forward(
    factors: jax.Array, audio: jax.Array, past: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """y = L^-1 x in every block; log_det = -sum ln diag L. Cost: block^2 / 2 per block.

    factors `[B, blocks, block, block]` from `whitening_factors`: L = D^-1 factors, D the
    pre-emphasis. No block depends on `past`. After SpecGrad (Koizumi et al. 2022,
    arXiv 2203.16749), whose noise shaping has no exact determinant.
    """
    blocks = audio.reshape(factors.shape[:3])
    before = jnp.pad(blocks[..., :-1], ((0, 0), (0, 0), (1, 0)))
    emphasised = (blocks - PRE_EMPHASIS * before)[..., None]
    y = jax.lax.linalg.triangular_solve(factors, emphasised, left_side=True, lower=True)
    return y.reshape(audio.shape), -_log_diagonals(factors)


def whitening_inverse(
    factors: jax.Array, y: jax.Array, past: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """x = L y in every block; log_det = sum ln diag L. No block depends on `past`."""
    block = factors.shape[-1]
    emphasised = jnp.einsum("bkij,bkj->bki", factors, y.reshape(factors.shape[:3]), precision=EXACT)
    lag = np.arange(block)[:, None] - np.arange(block)
    undo = np.where(lag >= 0, PRE_EMPHASIS ** np.maximum(lag, 0), 0.0)
    x = jnp.einsum("ij,bkj->bki", jnp.asarray(undo, y.dtype), emphasised, precision=EXACT)
    return x.reshape(y.shape), _log_diagonals(factors)


def _log_diagonals(factors: jax.Array) -> jax.Array:
    # D has a unit diagonal: the factors' determinant is L's.
    return jnp.log(jnp.diagonal(factors, axis1=-2, axis2=-1)).sum(axis=-1)


BLOCKS = Whitening(whitening_factors, whitening_forward, whitening_inverse)
