"""The latent of a recording: encoding, round trips, edits of its parts, and interpolation.

Arrays, one signal at a time: audio `[T]`, mel `[F, M]`, z `[N, G]` with its channels in the order
in which they leave the flow.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from waveglow_jax.config import Config
from waveglow_jax.flow.waveglow import latent_noise
from waveglow_jax.synthesis.vocoder import Voice, with_whole_frames


@dataclass(frozen=True)
class Latent:
    """A voice's representation of a recording: z and mel together determine the recording exactly.

    nats: log-likelihood in nats per sample. n_samples: length of the recording, while z covers
    whole frames.
    """

    z: np.ndarray
    mel: np.ndarray
    nats: float
    n_samples: int


@dataclass(frozen=True)
class Exactness:
    """The error of a round trip: the largest absolute difference, and the SNR in dB."""

    max_error: float
    snr_db: float


def encode(voice: Voice, audio: np.ndarray) -> Latent:
    """`[T]` -> its latent. Raises ValueError if it is too short for a mel."""
    config, n_samples = voice.config, len(audio)
    mel = voice.mel(with_whole_frames(audio, config))
    n_steps = config.steps_of(-(-n_samples // config.data.hop_length))
    whole = np.pad(audio, (0, n_steps * config.waveglow.n_group - n_samples))
    z, nats = voice.encode(whole[None], mel[None])
    return Latent(z[0], mel, float(nats[0]), n_samples)


def round_trip(audio: np.ndarray, again: np.ndarray) -> Exactness:
    """The error of `again` `[T]`, the round trip of audio `[T]`."""
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
    """Mask `[N, G]` bool of the channels in the given output groups (None: all) between two times.

    A group holds the channels that leave the flow together; seconds gives the two times. Raises
    ValueError for a group that does not exist or if nothing is selected.
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
    """z with its chosen part replaced by sigma times the voice's own noise for that seed."""
    frames = -(-len(z) * config.waveglow.n_group // config.data.hop_length)
    noise = np.asarray(latent_noise(seed, config, frames))[: len(z)]
    return np.where(part, sigma * noise, z)


def scaled(z: np.ndarray, part: np.ndarray, factor: float) -> np.ndarray:
    """z with its chosen part multiplied by a factor."""
    return np.where(part, z * np.float32(factor), z)


# ------------------------------------------------------------------------------ interpolation


def slerp(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """The point at `share` (0 to 1) on the great circle from first to second, of one shape.

    The direction is (sin((1 - t) w) a + sin(t w) b) / sin w, where a and b are the two directions,
    w is the angle between them, and t is the share (Shoemake 1985). The norm is interpolated
    linearly. A Gaussian sample in d dimensions lies close to the sphere of radius sqrt(d), and two
    of them are almost orthogonal, so their arithmetic mean has sqrt(1/2) of that norm. That
    corresponds to a temperature of 0.7, at which the voice was never trained. Every point on the
    circle is as likely as its ends.
    """
    norms = [float(np.linalg.norm(each)) for each in (first, second)]
    if min(norms) == 0:
        return ((1 - share) * first + share * second).astype(first.dtype)
    a, b = first / norms[0], second / norms[1]
    angle = math.acos(float(np.clip(np.sum(a * b), -1, 1)))
    norm = (1 - share) * norms[0] + share * norms[1]
    if math.sin(angle) < 1e-4:  # (anti)parallel: no rotation
        return (norm * ((1 - share) * a + share * b)).astype(first.dtype)
    weights = math.sin((1 - share) * angle), math.sin(share * angle)
    return (norm * (weights[0] * a + weights[1] * b) / math.sin(angle)).astype(first.dtype)


def between(
    first: Latent, second: Latent, share: float, path: str
) -> tuple[np.ndarray, np.ndarray]:
    """(z, mel) at `share` of the path from the first to the second, of the shorter one's length.

    path "z" interpolates z by `slerp` and keeps the first's mel. path "mel" interpolates the
    log-mel linearly (geometric means of the magnitudes) and keeps the first's z.
    """
    frames, steps = min(len(first.mel), len(second.mel)), min(len(first.z), len(second.z))
    z, mel = first.z[:steps], first.mel[:frames]
    if path == "z":
        return slerp(z, second.z[:steps], share), mel
    return z, ((1 - share) * mel + share * second.mel[:frames]).astype(np.float32)
