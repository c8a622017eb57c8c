"""Real Fourier transforms along the last axis, as `jnp.fft` gives them, that cannot deadlock.

On a CPU, XLA before JAX 0.12 splits a large batch of transforms over the thread pool that it runs
on itself, and waits for the parts. If as many transforms run at once as there are threads, all of
them wait for ever. Batches too small to be split are safe, and give bit-identical results.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

SPLITS_BATCHES = jax.__version_info__ < (0, 12)
NARROWEST_VECTOR = 128
"""In bits (SSE). The FFT library (ducc) uses at most one thread per vector of rows."""


def rfft(rows: jax.Array, n: int | None = None) -> jax.Array:
    """Real `[..., T]` -> `[..., n // 2 + 1]`; the rows are cut or padded with zeros to n."""
    return _apply(partial(jnp.fft.rfft, n=n), rows)


def irfft(spectra: jax.Array, n: int | None = None) -> jax.Array:
    """`[..., n // 2 + 1]`, real or complex -> real `[..., n]`."""
    return _apply(partial(jnp.fft.irfft, n=n), spectra)


def _apply(transform: Callable[[jax.Array], jax.Array], rows: jax.Array) -> jax.Array:
    at_once = NARROWEST_VECTOR // jnp.finfo(rows.dtype).bits
    count = math.prod(rows.shape[:-1])  # unknown in an export with free sizes
    if not SPLITS_BATCHES or (isinstance(count, int) and count <= at_once):
        return transform(rows)
    by_few = partial(_few_at_once, transform, at_once)
    return jax.lax.platform_dependent(rows, cpu=by_few, default=transform)


def _few_at_once(
    transform: Callable[[jax.Array], jax.Array], at_once: int, rows: jax.Array
) -> jax.Array:
    count, length = math.prod(rows.shape[:-1]), rows.shape[-1]
    groups = (count + at_once - 1) // at_once
    # The last row again fills the last group.
    filled = rows.reshape(count, length)[jnp.minimum(jnp.arange(groups * at_once), count - 1)]
    done = jax.lax.map(transform, filled.reshape(groups, at_once, length))
    size = done.shape[-1]
    return done.reshape(groups * at_once, size)[:count].reshape(*rows.shape[:-1], size)
