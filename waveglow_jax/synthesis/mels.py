"""The mel of samples in NumPy, for any convention, by programs of a few sizes."""

import jax
import numpy as np

from waveglow_jax.audio.mel import log_mel_of_padded
from waveglow_jax.config import Config
from waveglow_jax.synthesis.plan import size_at_least


def mel_of_samples(audio: np.ndarray, config: Config) -> np.ndarray:
    """Returns the config's mel `[F, M]` or `[B, F, M]` of float32 samples `[T]` or `[B, T]`.

    F = 1 + T // hop frames, or T // hop where the convention's frames lie half a hop late. JAX
    compiles a program for each length, so lengths are rounded up to a few sizes. Raises ValueError
    if T is too short to be reflected at the ends.
    """
    data = config.data
    if audio.ndim not in (1, 2) or audio.shape[-1] <= data.shortest:
        raise ValueError(
            f"audio of shape {audio.shape} is no [T] or [B, T] with T over {data.shortest}"
        )
    frames = data.frames_of(audio.shape[-1])
    wanted = (size_at_least(frames) - 1) * data.hop_length + data.filter_length
    lead = [(0, 0)] * (audio.ndim - 1)
    padded = np.pad(audio, [*lead, (data.lead, data.lead)], mode="reflect")
    padded = np.pad(padded, [*lead, (0, max(0, wanted - padded.shape[-1]))])[..., :wanted]
    return np.asarray(_mel_of_padded(padded, config))[..., :frames, :]


@jax.jit(static_argnums=1)
def _mel_of_padded(padded: jax.Array, config: Config) -> jax.Array:
    return log_mel_of_padded(padded, config)
