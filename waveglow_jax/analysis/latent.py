"""The latent of a recording: to audio and back, in parts, and on the way to another's.

Arrays, one signal at a time: audio `[T]`, mel `[F, M]`, z `[N, G]` with its channels in the order
in which they leave the flow.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from waveglow_jax.config import Config
from waveglow_jax.flow.waveglow import latent_noise
from waveglow_jax.synthesis.vocoder import Voice


@dataclass(frozen=True)
class Latent:
    """What a recording is to a voice: z and mel together are the recording, exactly.

    nats: log-likelihood in nats per sample. n_samples: the recording's; z covers whole frames.
    """

    z: np.ndarray
    mel: np.ndarray
    nats: float
    n_samples: int


@dataclass(frozen=True)
class Exactness:
    """How exactly a recording comes back: largest difference, and signal-to-noise ratio in dB."""

    max_error: float
    snr_db: float


def encode(voice: Voice, audio: np.ndarray) -> Latent:
    """`[T]` -> its latent. Raises ValueError if it is too short for a mel."""
    hop, n_samples = voice.config.data.hop_length, len(audio)
    mel = voice.mel(audio)
    whole = np.pad(audio, (0, -n_samples % hop))
    z, nats = voice.encode(whole[None], mel[None])
    return Latent(z[0], mel, float(nats[0]), n_samples)


def round_trip(audio: np.ndarray, again: np.ndarray) -> Exactness:
    """How exactly audio `[T]` came back as `again` `[T]`."""
    off = again.astype(np.float64) - audio
    power, noise = np.sum(audio.astype(np.float64) ** 2), np.sum(off**2)
    snr = 10 * math.log10(power / noise) if noise else math.inf
    return Exactness(float(np.abs(off).max()), snr)


# ------------------------------------------------------------------------------ parts of z


def chosen_part(
    config: Config,
    n_steps: int,
    groups: Collection[int] | None = None,
    seconds: tuple[float, float] = (0.0, math.inf),
) -> np.ndarray:
    """`[N, G]` bool: the channels of these leaving groups (None: all) between two times.

    Raises ValueError for a group that is not there, or a time that chooses nothing.
    """
    of_groups = config.waveglow.exits()
    for group in groups or ():
        if not 0 <= group < len(of_groups):
            raise ValueError(f"group {group}: there are groups 0 to {len(of_groups) - 1}")
    channels = np.zeros(config.waveglow.n_group, bool)
    for group in range(len(of_groups)) if groups is None else groups:
        channels[of_groups[group]] = True
    times = np.arange(n_steps) * config.waveglow.n_group / config.data.sampling_rate
    steps = (times >= seconds[0]) & (times < seconds[1])
    if not (steps.any() and channels.any()):
        length = n_steps * config.waveglow.n_group / config.data.sampling_rate
        raise ValueError(
            f"{seconds[0]:g} to {seconds[1]:g} s chooses nothing of {length:.2f} s of z"
        )
    return steps[:, None] & channels[None]


def with_noise(
    z: np.ndarray, part: np.ndarray, config: Config, sigma: float, seed: int = 0
) -> np.ndarray:
    """z with sigma times the voice's own noise of that seed in the chosen part."""
    frames = len(z) * config.waveglow.n_group // config.data.hop_length
    noise = np.asarray(latent_noise(seed, config, frames))
    return np.where(part, sigma * noise, z)


def scaled(z: np.ndarray, part: np.ndarray, factor: float) -> np.ndarray:
    """z with the chosen part times a factor."""
    return np.where(part, z * np.float32(factor), z)


# ------------------------------------------------------------------------------ between two


def slerp(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """On the great circle from first to second, of one shape: share 0 to 1.

    (sin((1 - t) w) a + sin(t w) b) / sin w between the directions a and b, w the angle between
    them (Shoemake 1985), times the norm between theirs. A Gaussian in d dimensions lies close to
    the sphere of radius sqrt(d), and two of them are almost orthogonal: their straight mean has
    sqrt(1/2) of that norm, as if the temperature had dropped to 0.7, where the voice was never
    trained. On the circle every point is as likely as the ends.
    """
    norms = [float(np.linalg.norm(each)) for each in (first, second)]
    if min(norms) == 0:
        return ((1 - share) * first + share * second).astype(first.dtype)
    a, b = first / norms[0], second / norms[1]
    angle = math.acos(float(np.clip(np.sum(a * b), -1, 1)))
    norm = (1 - share) * norms[0] + share * norms[1]
    if math.sin(angle) < 1e-4:  # along one line: nothing to turn
        return (norm * ((1 - share) * a + share * b)).astype(first.dtype)
    weights = math.sin((1 - share) * angle), math.sin(share * angle)
    return (norm * (weights[0] * a + weights[1] * b) / math.sin(angle)).astype(first.dtype)


def between(
    first: Latent, second: Latent, share: float, path: str
) -> tuple[np.ndarray, np.ndarray]:
    """(z, mel) on the way from the first to the second, of the shorter one's length.

    path "z": from one z to the other, by `slerp`, under the first's mel. path "mel": from one
    log-mel to the other, straight (geometric means of the magnitudes), with the first's z.
    """
    frames, steps = min(len(first.mel), len(second.mel)), min(len(first.z), len(second.z))
    z, mel = first.z[:steps], first.mel[:frames]
    if path == "z":
        return slerp(z, second.z[:steps], share), mel
    return z, ((1 - share) * mel + share * second.mel[:frames]).astype(np.float32)
