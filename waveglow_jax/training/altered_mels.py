"""Alters the mels of training clips at random, so that a voice copes with an acoustic model's mels.

An acoustic model predicts smoother mels than those of recordings, with errors of its own. A clip's
audio stays as it is; the flow learns the likelihood of that audio given an altered mel. Where the
config has mel whitening, it reads the altered mel too, because synthesis has no other one.

Arrays: mel `[B, F, M]` of the config's convention, F frames, M bands. `AlteredMels` describes what
is altered. Related work: SpecAugment (Park et al. 2019, arXiv 1904.08779), which masks ranges of
frames and bands for speech recognition.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.config_train import AlteredMels, TrainConfig

_STREAM = 2**32 - 1
"""Separates these random numbers from those of the training noise: no step has this number."""
_RADIUS = 3
"""The length of a blur's kernel to either side, in its largest standard deviations."""


def altered_mels(
    mel: jax.Array, index: jax.Array, step: jax.Array, train: TrainConfig, how: AlteredMels
) -> jax.Array:
    """The mels `[B, F, M]` of clips, each altered with the probability and strengths of `how`.

    index `[B]` holds the clips' places in the global batch. The result depends on the mel, the
    run's seed, the step and the index alone, hence not on the number of devices, and a resumed run
    repeats it. A clip that is not altered keeps its bits.
    """
    key = jax.random.fold_in(jax.random.key(train.seed), np.uint32(_STREAM))
    key = jax.random.fold_in(key, step)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
    return jax.vmap(partial(_altered, how=how))(keys, mel)


def _altered(key: jax.Array, mel: jax.Array, how: AlteredMels) -> jax.Array:
    """One clip's mel `[F, M]`: blurred, then flattened in ranges, then with noise."""
    chosen, *of_blurs, of_frames, of_bands, of_jitter = jax.random.split(key, 6)
    result = mel
    for axis, widest in enumerate((how.smoothing_frames, how.smoothing_bands)):
        if widest:
            width = jax.random.uniform(of_blurs[axis], maxval=widest)
            result = blurred(result, width, math.ceil(_RADIUS * widest), axis)
    for axis, (part, longest) in enumerate(
        ((of_frames, how.dropout_frames), (of_bands, how.dropout_bands))
    ):
        if longest:
            of_length, of_start = jax.random.split(part)
            length = jax.random.randint(of_length, (), 0, longest + 1)
            start = jax.random.randint(of_start, (), 0, mel.shape[axis] - length + 1)
            result = flattened(result, start, length, axis)
    if how.jitter:
        of_size, of_noise = jax.random.split(of_jitter)
        size = jax.random.uniform(of_size, maxval=how.jitter)
        result = result + size * jax.random.normal(of_noise, mel.shape)
    return jnp.where(jax.random.bernoulli(chosen, how.probability), result, mel)


def blurred(mel: jax.Array, width: jax.Array, radius: int, axis: int) -> jax.Array:
    """The mel `[F, M]` under a Gaussian of standard deviation `width` along an axis.

    The kernel has `radius` taps to either side and the sum 1. Beyond the ends the first and the
    last value are repeated. A width of 0 changes nothing.
    """
    offsets = np.arange(-radius, radius + 1, dtype=np.float32)
    # At the least width every tap but the middle one is exactly 0.
    weights = jnp.exp(-0.5 * (offsets / jnp.maximum(width, 1e-3)) ** 2)
    along = jnp.moveaxis(mel, axis, 0)
    padded = jnp.pad(along, ((radius, radius), (0, 0)), mode="edge")
    windows = padded[np.arange(2 * radius + 1)[:, None] + np.arange(along.shape[0])]
    weights = (weights / jnp.sum(weights))[:, None, None]
    return jnp.moveaxis(jnp.sum(weights * windows, axis=0), 0, axis)


def flattened(mel: jax.Array, start: jax.Array, length: jax.Array, axis: int) -> jax.Array:
    """The mel `[F, M]` with its mean over a range of the axis in place of the range's values.

    The range's mean, rather than silence, because a mel that is silent where the audio is loud
    would make the whitened audio arbitrarily large. A range of length 0 or 1 changes nothing.
    """
    place = np.arange(mel.shape[axis]).reshape((-1, 1) if axis == 0 else (1, -1))
    inside = (place >= start) & (place < start + length)
    total = jnp.sum(jnp.where(inside, mel, 0), axis=axis, keepdims=True)
    return jnp.where(inside, total / jnp.maximum(length, 1), mel)
