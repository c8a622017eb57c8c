"""The class people use: a voice that turns mels into samples, and recordings into mels and z.

Arrays at this door are NumPy in, NumPy out: audio `[T]` or `[B, T]`, mel `[F, M]` or `[B, F, M]`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.audio.mel import log_mel_of_padded
from waveglow_jax.config import DTYPES, Config
from waveglow_jax.flow.likelihood import log_likelihood
from waveglow_jax.flow.waveglow import (
    Params,
    check_shapes,
    forward,
    inverse_prepared,
    latent_noise,
    prepare_inverse,
)
from waveglow_jax.weights.release import read_weights

BUCKETS_AN_OCTAVE = 4
SMALLEST_BUCKET = 64


@dataclass(frozen=True)
class Voice:
    """A config and its parameters, with what they can do."""

    config: Config
    params: Params

    def mel(self, audio: np.ndarray) -> np.ndarray:
        """Samples in [-1, 1] `[T]` or `[B, T]` -> log-mel `[F, M]` or `[B, F, M]`.

        F = 1 + T // hop frames.

        Raises ValueError if T is too short to be reflected at the ends.
        """
        audio, data = np.asarray(audio, np.float32), self.config.data
        half = data.filter_length // 2
        if audio.ndim not in (1, 2) or audio.shape[-1] <= half:
            raise ValueError(f"audio of shape {audio.shape} is no [T] or [B, T] with T over {half}")
        frames = 1 + audio.shape[-1] // data.hop_length
        wanted = (bucket(frames) - 1) * data.hop_length + data.filter_length
        lead = [(0, 0)] * (audio.ndim - 1)
        padded = np.pad(audio, [*lead, (half, half)], mode="reflect")
        padded = np.pad(padded, [*lead, (0, max(0, wanted - padded.shape[-1]))])[..., :wanted]
        return np.asarray(_mel_of_padded(padded, self.config))[..., :frames, :]

    def synthesize(
        self,
        mel: np.ndarray | Sequence[np.ndarray],
        sigma: float = 0.6,
        seed: int = 0,
        dtype: str = "float32",
    ) -> np.ndarray | list[np.ndarray]:
        """Samples of a log-mel, F * hop exactly.

        `[F, M] -> [F * hop]`; `[B, F, M] -> [B, F * hop]`; a list of mels of any lengths -> a list.
        sigma is the temperature, dtype that of the products inside WN. The noise is a function of
        seed and frame: neither batch nor padding changes a sample. Lengths are padded to a few
        sizes, four an octave, so that few programs are compiled.
        Raises ValueError for a mel of the wrong shape or not finite, an unknown dtype, a negative
        or infinite sigma, or a seed that does not fit 32 bits.
        """
        if isinstance(mel, np.ndarray | jax.Array):
            if mel.ndim == 2:
                return self.synthesize([mel], sigma, seed, dtype)[0]
            return np.stack(self.synthesize(list(mel), sigma, seed, dtype))
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
        if not np.isfinite(sigma) or sigma < 0:
            raise ValueError(f"sigma {sigma} must be a number of at least 0")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed {seed} must be from 0 to {2**32 - 1}")
        mels = [self._checked(each) for each in mel]
        return [self._synthesize_one(each, sigma, seed, dtype) for each in mels]

    def encode(self, audio: np.ndarray, mel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Audio `[B, T]` and its mel `[B, F, M]` -> z `[B, T / G, G]`, log-likelihood `[B]`.

        The log-likelihood is in nats per sample, all constants included, for z ~ N(0, 1).
        Raises ValueError for shapes that do not fit (see `waveglow_jax.forward`).
        """
        audio, mel = np.asarray(audio, np.float32), np.asarray(mel, np.float32)
        check_shapes(self.config, audio.shape, mel.shape)
        samples, frames, hop = audio.shape[1], mel.shape[1], self.config.data.hop_length
        size = bucket(frames)
        # Frames and samples keep their order: a mel with one frame more than T / hop keeps that.
        audio = np.pad(audio, ((0, 0), (0, size * hop - samples)))
        mel = np.pad(mel, ((0, 0), (0, size - frames), (0, 0)), mode="edge")
        steps = samples // self.config.waveglow.n_group
        mask = self._step_mask(size, steps)
        z, log_det = _encode(self.params, self.config, audio, mel, np.tile(mask, (len(audio), 1)))
        z = z[:, :steps]
        return np.asarray(z), np.asarray(log_likelihood(z, log_det))

    def compile_for(self, n_frames: int, dtype: str = "float32") -> float:
        """Compiles what a mel of so many frames needs; returns the seconds it took, 0 if it had."""
        size = bucket(n_frames)
        if (size, dtype) in self._programs:
            return 0.0
        began = time.monotonic()
        bins = self.config.waveglow.n_mel_channels
        self._programs[size, dtype] = _synthesize.lower(
            self._prepared,
            self.config,
            jax.ShapeDtypeStruct((size, bins), jnp.float32),
            jax.ShapeDtypeStruct(self._step_mask(size, 0).shape, jnp.float32),
            jax.ShapeDtypeStruct((), jnp.float32),
            jax.ShapeDtypeStruct((), jnp.uint32),
            dtype,
        ).compile()
        return time.monotonic() - began

    @cached_property
    def _programs(self) -> dict[tuple[int, str], jax.stages.Compiled]:
        return {}

    @cached_property
    def _prepared(self) -> Params:
        return jax.jit(prepare_inverse)(self.params)

    def _synthesize_one(self, mel: np.ndarray, sigma: float, seed: int, dtype: str) -> np.ndarray:
        frames = mel.shape[0]
        self.compile_for(frames, dtype)
        size = bucket(frames)
        # The last frame goes on into the padding: what interpolates towards it sees no end.
        padded = np.pad(mel, ((0, size - frames), (0, 0)), mode="edge")
        hop, group = self.config.data.hop_length, self.config.waveglow.n_group
        mask = self._step_mask(size, frames * hop // group)
        program = self._programs[size, dtype]
        audio = program(self._prepared, padded, mask, np.float32(sigma), np.uint32(seed))
        return np.asarray(audio)[: frames * self.config.data.hop_length]

    def _step_mask(self, n_frames: int, n_steps: int) -> np.ndarray:
        """`[n_frames * hop / G]`: 1 for the first n_steps."""
        hop, group = self.config.data.hop_length, self.config.waveglow.n_group
        return (np.arange(n_frames * hop // group) < n_steps).astype(np.float32)

    def _checked(self, mel: np.ndarray) -> np.ndarray:
        mel = np.asarray(mel, np.float32)
        bins = self.config.waveglow.n_mel_channels
        if mel.ndim != 2 or mel.shape[1] != bins or not mel.shape[0]:
            raise ValueError(f"a mel of shape {mel.shape} is not [frames, {bins}]")
        if not np.isfinite(mel).all():
            raise ValueError("the mel holds values that are not finite")
        return mel


def load(source: str | Path | None = None) -> Voice:
    """The voice in a release folder, a training run, a published checkpoint or on the Hugging Face
    hub, told apart by content; without a source the bundled one.

    Raises UserError if there is none, or if it is damaged.
    """
    weights = read_weights(source)
    return Voice(weights.config, jax.tree.map(jnp.asarray, weights.params))


def bucket(n_frames: int) -> int:
    """The padded size of a mel: the next of 64, 80, 96, 112, 128, 160, 192, 224, 256, 320 ..."""
    size = SMALLEST_BUCKET
    while size < n_frames:
        octave = SMALLEST_BUCKET * 2 ** int(np.log2(size // SMALLEST_BUCKET))
        size += octave // BUCKETS_AN_OCTAVE
    return size


@jax.jit(static_argnums=1)
def _mel_of_padded(padded: jax.Array, config: Config) -> jax.Array:
    return log_mel_of_padded(padded, config)


@jax.jit(static_argnums=1)
def _encode(
    params: Params, config: Config, audio: jax.Array, mel: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return forward(params, config, audio, mel, mask=mask)


@jax.jit(static_argnums=(1, 6))
def _synthesize(
    prepared: Params,
    config: Config,
    mel: jax.Array,
    mask: jax.Array,
    sigma: jax.Array,
    seed: jax.Array,
    dtype: str,
) -> jax.Array:
    """mel `[F, M]`, mask `[F * hop / G]` -> samples `[F * hop]`."""
    z = sigma * latent_noise(seed, config, mel.shape[0])
    audio, _ = inverse_prepared(
        prepared, config, z[None], mel[None], mask=mask[None], dtype=jnp.dtype(dtype)
    )
    return audio[0]
