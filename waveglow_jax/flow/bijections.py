"""The invertible functions of a flow: squeeze, invertible 1x1 convolution, affine coupling.

Each is a pair of pure functions. Both directions return `(result, log_det)`, where log_det is the
local log-determinant of that direction: the contribution of each step or element, which
`total_log_det` sums, under a mask where there is one. The two directions' log-determinants are
negatives of each other. Arrays: audio `[B, T]`; squeezed `[B, N, C]` with N = T / group time steps
and C channels; mask `[B, N]`, 1 where there is signal. Every function works in the dtype of its
arguments (float32 and float64 stay what they are, with x64 on or off) under jit, grad and vmap.
docs/explanation/bijections.md derives every log-determinant. The mel whitening is in `whitening`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Params = Mapping[str, Any]

EXACT = jax.lax.Precision.HIGHEST
"""Full precision for float32 matmuls, which accelerators otherwise round to bfloat16 or TF32."""

ShiftAndScale = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""`[B, N, C / 2] -> (shift, log_s)`, both `[B, N, C / 2]`: any function, with whatever parameters
it closes over. In float32 log_s may go as far as exp does, +-87: results and gradients are then
finite or, where the true value is beyond float32, infinite, but never NaN."""


def squeeze(audio: jax.Array, group: int) -> jax.Array:
    """`[B, T] -> [B, T / group, group]`: the channel is the position in the group; log_det 0."""
    return audio.reshape(audio.shape[0], -1, group)


def unsqueeze(x: jax.Array) -> jax.Array:
    """`[B, N, group] -> [B, N * group]`, the inverse of `squeeze`."""
    return x.reshape(x.shape[0], -1)


def invertible_conv_forward(weight: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """y = W x at every time step; log_det `[]` = ln|det W| per step. Cost: C^2 per step.

    weight `[C, C]` acts from the left on the channels (Kingma & Dhariwal 2018, arXiv 1807.03039).
    """
    y = jnp.einsum("oi,bni->bno", weight, x, precision=EXACT)
    return y, jnp.linalg.slogdet(weight)[1]


def invertible_conv_inverse(inverse: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x = W^-1 y, given W^-1 itself, `[C, C]`: it is computed once, not at every call."""
    return invertible_conv_forward(inverse, y)


def coupling_forward(
    conditioner: ShiftAndScale, x: jax.Array, swapped: bool = False
) -> tuple[jax.Array, jax.Array]:
    """a, b = halves of x; y = [a, exp(log_s) b + shift]; log_det `[B, N, C / 2]` = log_s.

    shift and log_s come from `conditioner(a)`, which may be any function (Dinh et al. 2016,
    arXiv 1605.08803). swapped: the halves exchange their roles. Cost: the conditioner's.
    """
    a, b = _halves(x, swapped)
    shift, log_s = conditioner(a)
    return _joined(a, jnp.exp(log_s) * b + shift, swapped), log_s


def coupling_inverse(
    conditioner: ShiftAndScale, y: jax.Array, swapped: bool = False
) -> tuple[jax.Array, jax.Array]:
    """a, b = halves of y; x = [a, (b - shift) exp(-log_s)]; log_det `[B, N, C / 2]` = -log_s."""
    a, b = _halves(y, swapped)
    shift, log_s = conditioner(a)
    return _joined(a, (b - shift) * jnp.exp(-log_s), swapped), -log_s


def _halves(x: jax.Array, swapped: bool) -> tuple[jax.Array, jax.Array]:
    first, second = jnp.split(x, 2, axis=-1)
    return (second, first) if swapped else (first, second)


def _joined(a: jax.Array, b: jax.Array, swapped: bool) -> jax.Array:
    return jnp.concatenate([b, a] if swapped else [a, b], axis=-1)


def total_log_det(
    log_det: jax.Array, shape: tuple[int, int], mask: jax.Array | None = None
) -> jax.Array:
    """`[B]`: the sum of a local log-determinant over a signal, or over its part inside the mask.

    log_det: `[]`, the contribution of every step, or `[B, K, ...]`, those of K parts of equal
    length in the order of time; shape: (B, N); mask `[B, N]`, constant within each of the K parts.
    """
    batch, n_steps = shape
    if log_det.ndim == 0:
        # One multiplication: a sum of N equal numbers would round N times in the same direction.
        steps = jnp.full((batch,), n_steps, log_det.dtype) if mask is None else mask.sum(axis=1)
        return steps * log_det
    axes = tuple(range(1, log_det.ndim))
    if mask is not None:
        parts = log_det.shape[1]
        inside = mask[:, np.arange(parts) * n_steps // parts] if parts != n_steps else mask
        # Selected, not multiplied: 0 * inf and 0 * NaN would be NaN.
        log_det = jnp.where(jnp.expand_dims(inside, axes[1:]) > 0, log_det, 0)
    return log_det.sum(axis=axes)


def log_det_by_frame(log_det: jax.Array, n_steps: int, n_frames: int) -> jax.Array:
    """`[B, F]` or, of a log-determinant `[]`, `[]`: its sum over each of the signal's F frames.

    log_det as for `total_log_det`. K is a multiple of F, or a part that frames share counts for
    each by its share.
    """
    if log_det.ndim == 0:
        return (n_steps / n_frames) * log_det
    parts = log_det.shape[1]
    if parts % n_frames:
        of_parts = log_det.reshape(*log_det.shape[:2], -1).sum(axis=-1)
        each = n_frames // math.gcd(parts, n_frames)  # equal pieces of a part
        log_det = jnp.repeat(of_parts / each, each, axis=1)
    return log_det.reshape(len(log_det), n_frames, -1).sum(axis=-1)
