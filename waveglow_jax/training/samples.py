"""Synthesises held-out recordings during training, so that a user can hear a run improve."""

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.audio.consistency import consistent
from waveglow_jax.config import Config
from waveglow_jax.files.sound import read_audio
from waveglow_jax.flow.waveglow import Params, inverse, latent_noise, of_frames
from waveglow_jax.training.dataset import Corpus
from waveglow_jax.training.mels import compiled_log_mel, mel_frames

SYNTHESIS_SECONDS = 5.0


def recordings_to_synthesise(
    corpus: Corpus, config: Config
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Name, audio and mel of the first `synthesis_clips` held-out recordings.

    They are read at the start, before anything can happen to the files.
    """
    data, train = config.data, config.train
    longest = int(SYNTHESIS_SECONDS * data.sampling_rate)
    found = []
    for recording in corpus.validation[: train.synthesis_clips]:
        audio = read_audio(recording.path, data.sampling_rate)[:longest]
        audio = np.pad(audio, (0, longest - len(audio)))
        mel = np.asarray(compiled_log_mel(audio, config))
        if recording.mel:
            mel = mel_frames(recording.mel, recording.n_samples, 0, len(mel), config)
        found.append((recording.path.stem, audio, mel))
    return found


def sigmas_to_hear(config: Config) -> tuple[float, ...]:
    """The voice's own sigma, then those of `synthesis_sigmas`, without repetitions."""
    return tuple(dict.fromkeys((config.synthesis.sigma, *config.train.synthesis_sigmas)))


@jax.jit(static_argnums=3)
def synthesis_program(
    params: Params, mel: jax.Array, sigmas: jax.Array, config: Config
) -> jax.Array:
    """Synthesises a mel with the same noise at every sigma, with the voice's own consistency
    correction: `[F, M]`, `[S]` -> `[S, F * hop]`."""
    z = sigmas[:, None, None] * latent_noise(0, config, mel.shape[0])[None]
    mels = jnp.broadcast_to(mel, (len(sigmas), *mel.shape))
    audio = of_frames(inverse(params, config, z, mels)[0], len(mel), config)
    return consistent(audio, mels, config, config.synthesis.consistency)
