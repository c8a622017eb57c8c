"""The invertible pieces: squeeze, invertible 1x1 convolution, affine coupling, mel whitening.

Each is a pair of pure functions; both directions give `(result, log_det)` with the log-determinant
of that very direction, `[B]`, so that the two add up to zero. Arrays: audio `[B, T]`; squeezed
`[B, N, C]` with N = T / group time steps and C channels; mask `[B, N]`, 1 where there is signal.
All work in the dtype they are given (float32 and float64 stay what they are, with x64 on or off)
under jit, grad and vmap. docs/explanation/bijections.md derives every
log-determinant.
"""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.audio.fourier import irfft
from waveglow_jax.audio.mel import mel_filters, stft_window
from waveglow_jax.config import Config

EXACT = jax.lax.Precision.HIGHEST
"""float32 products in full: accelerators round them to bfloat16 or TF32 unless told not to."""

Conditioner = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""`[B, N, C / 2] -> (shift, log_s)`, both `[B, N, C / 2]`: any function, of any parameters that it
closes over. In float32 log_s may go as far as exp does, +-87: results and gradients are then finite
or, where the true value is beyond float32, infinite, but never NaN."""


def squeeze(audio: jax.Array, group: int) -> jax.Array:
    """`[B, T] -> [B, T / group, group]`: the channel is the position in the group; log_det 0."""
    return audio.reshape(audio.shape[0], -1, group)


def unsqueeze(x: jax.Array) -> jax.Array:
    """`[B, N, group] -> [B, N * group]`, the inverse of `squeeze`."""
    return x.reshape(x.shape[0], -1)


def invertible_conv_forward(
    weight: jax.Array, x: jax.Array, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """y = W x at every time step; log_det = N * ln|det W|, N the steps inside the mask. Cost C^2 a
    step.

    weight `[C, C]` acts from the left on the channels (Kingma & Dhariwal 2018, arXiv 1807.03039).
    """
    y = jnp.einsum("oi,bni->bno", weight, x, precision=EXACT)
    steps = jnp.full(x.shape[:1], x.shape[1], x.dtype) if mask is None else mask.sum(axis=1)
    return y, steps * jnp.linalg.slogdet(weight)[1]


def invertible_conv_inverse(
    inverse: jax.Array, y: jax.Array, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """x = W^-1 y, given W^-1 itself, `[C, C]`: it is computed once, not at every call."""
    return invertible_conv_forward(inverse, y, mask)


def coupling_forward(
    conditioner: Conditioner, x: jax.Array, mask: jax.Array | None = None, swapped: bool = False
) -> tuple[jax.Array, jax.Array]:
    """a, b = halves of x; y = [a, exp(log_s) b + shift]; log_det = sum log_s.

    shift and log_s come from `conditioner(a)`, which may be any function (Dinh et al. 2016,
    arXiv 1605.08803). swapped: the halves in each other's role. Cost: the conditioner's.
    """
    a, b = _halves(x, swapped)
    shift, log_s = conditioner(a)
    return _joined(a, jnp.exp(log_s) * b + shift, swapped), _masked_sum(log_s, mask)


def coupling_inverse(
    conditioner: Conditioner, y: jax.Array, mask: jax.Array | None = None, swapped: bool = False
) -> tuple[jax.Array, jax.Array]:
    """a, b = halves of y; x = [a, (b - shift) exp(-log_s)]; log_det = -sum log_s."""
    a, b = _halves(y, swapped)
    shift, log_s = conditioner(a)
    return _joined(a, (b - shift) * jnp.exp(-log_s), swapped), -_masked_sum(log_s, mask)


def _halves(x: jax.Array, swapped: bool) -> tuple[jax.Array, jax.Array]:
    first, second = jnp.split(x, 2, axis=-1)
    return (second, first) if swapped else (first, second)


def _joined(a: jax.Array, b: jax.Array, swapped: bool) -> jax.Array:
    return jnp.concatenate([b, a] if swapped else [a, b], axis=-1)


def _masked_sum(log_s: jax.Array, mask: jax.Array | None) -> jax.Array:
    if mask is not None:
        # Chosen, not multiplied: what is not finite outside would come through a product.
        log_s = jnp.where(mask[:, :, None] > 0, log_s, 0)
    return log_s.sum(axis=(1, 2))


PRE_EMPHASIS = 0.95
"""Speech falls steeply towards high frequencies; taking that slope out first makes the covariance
fifty times better conditioned, so that float32 suffices. It changes nothing in exact arithmetic."""


def whitening_forward(
    factors: jax.Array, audio: jax.Array, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """y = L^-1 x in every block; log_det = -sum ln diag L. Cost block^2 / 2 a block.

    factors `[B, blocks, block, block]` from `whitening_factors`: L = D^-1 factors, D the
    pre-emphasis; audio `[B, T]`; mask `[B, blocks]`. A bijection without parameters, after
    SpecGrad (Koizumi et al. 2022, arXiv 2203.16749), whose noise shaping has no exact determinant.
    """
    blocks = audio.reshape(factors.shape[:3])
    before = jnp.pad(blocks[..., :-1], ((0, 0), (0, 0), (1, 0)))
    emphasised = (blocks - PRE_EMPHASIS * before)[..., None]
    y = jax.lax.linalg.triangular_solve(factors, emphasised, left_side=True, lower=True)
    return y.reshape(audio.shape), -_whitening_log_det(factors, mask)


def whitening_inverse(
    factors: jax.Array, y: jax.Array, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """x = L y in every block; log_det = sum ln diag L."""
    block = factors.shape[-1]
    emphasised = jnp.einsum("bkij,bkj->bki", factors, y.reshape(factors.shape[:3]), precision=EXACT)
    lag = np.arange(block)[:, None] - np.arange(block)
    undo = np.where(lag >= 0, PRE_EMPHASIS ** np.maximum(lag, 0), 0.0)
    x = jnp.einsum("ij,bkj->bki", jnp.asarray(undo, y.dtype), emphasised, precision=EXACT)
    return x.reshape(y.shape), _whitening_log_det(factors, mask)


def _whitening_log_det(factors: jax.Array, mask: jax.Array | None) -> jax.Array:
    # D has a unit diagonal: the factors' determinant is L's.
    logs = jnp.log(jnp.diagonal(factors, axis1=-2, axis2=-1)).sum(axis=-1)
    return (logs if mask is None else jnp.where(mask > 0, logs, 0)).sum(axis=-1)


def whitening_factors(mel: jax.Array, config: Config, n_samples: int) -> jax.Array:
    """`[B, F, M] -> [B, blocks, block, block]`: D L, with L each block's Cholesky factor.

    The mel tells the spectral envelope: log-mel interpolated linearly to the block's centre
    (beyond the last frame: the last frame); exp; spread over the FFT's bins, each the average of
    the bands that cover it by their filters' weights there; power = magnitude^2 * (4 / pi) /
    sum(window^2) (a Gaussian's mean magnitude is sqrt(pi) / 2 of its root mean square), plus
    floor^2; autocorrelation r = irfft(power); R = Toeplitz(r) + 1e-9 I = L L^T.
    D x = x_0, x_1 - 0.95 x_0, x_2 - 0.95 x_1 ...: D L is the Cholesky factor of D R D^T, which
    comes straight from the spectrum times D's. Cost: block^3 / 6 a block.
    """
    whitening = config.waveglow.whitening
    block = whitening.block
    power = power_at_blocks(mel, config, n_samples) + (whitening.floor**2 + 1e-9)
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


def emphasis_response(config: Config) -> np.ndarray:
    """`[bins]` complex: the pre-emphasis 1 - 0.95 z^-1 on the FFT's bins."""
    bins = np.arange(config.data.filter_length // 2 + 1)
    return 1 - PRE_EMPHASIS * np.exp(-2j * np.pi * bins / config.data.filter_length)


def row(values: np.ndarray, like: jax.Array) -> jax.Array:
    """`[bins]` as `[1, 1, bins]` in the dtype of another array."""
    return jnp.asarray(values, like.dtype)[None, None]


def power_at_blocks(mel: jax.Array, config: Config, n_samples: int) -> jax.Array:
    """`[B, F, M] -> [B, blocks, bins]`: the power spectrum that the mel tells of each block."""
    return power_of_mel(mel_at_blocks(mel, config, n_samples), config)


def mel_at_blocks(mel: jax.Array, config: Config, n_samples: int) -> jax.Array:
    """`[B, F, M] -> [B, blocks, M]`: the log-mel at each block's centre."""
    block, hop = config.waveglow.whitening.block, config.data.hop_length
    # The block's centre in halves of a sample: whole numbers, for lengths known and unknown alike.
    centre = (2 * jnp.arange(n_samples // block) + 1) * block
    last = mel.shape[1] - 1
    left = jnp.minimum(centre // (2 * hop), last)
    right = jnp.minimum(left + 1, last)
    share = ((centre - 2 * hop * left).astype(mel.dtype) / (2 * hop))[None, :, None]
    return mel[:, left] * (1 - share) + mel[:, right] * share


def power_of_mel(mel: jax.Array, config: Config) -> jax.Array:
    """Log-mel `[..., M]` -> the power spectrum that it tells, `[..., bins]`."""
    spread = jnp.asarray(_spread(config), mel.dtype)
    magnitude = jnp.matmul(jnp.exp(mel), spread, precision=EXACT)
    return magnitude**2 * float(4 / np.pi / np.sum(stft_window(config.data) ** 2))


@cache
def _spread(config: Config) -> np.ndarray:
    """`[M, bins]`: mel magnitudes to those of the FFT's bins; bins that no filter covers get 0."""
    filters = mel_filters(config.data, config.waveglow.n_mel_channels).astype(np.float64)
    of_bin = filters.sum(axis=0)
    share = filters / np.where(of_bin > 0, of_bin, 1)
    return share / filters.sum(axis=1, keepdims=True)
