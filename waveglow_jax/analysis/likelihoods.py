"""The exact likelihood of a recording under its mel, as a whole and frame by frame.

Arrays: audio `[T]`; mel `[F, M]`; z `[N, G]`; F = T // hop whole frames, N = F * hop / G steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.audio.picture import literal
from waveglow_jax.config import Config, DataConfig
from waveglow_jax.flow.bijections import log_det_by_frame
from waveglow_jax.flow.likelihood import loss_constant
from waveglow_jax.flow.waveglow import Params, encode
from waveglow_jax.synthesis.plan import context_of, size_at_least

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEPT_FRAMES = 1024
"""Of a window, less its context: longer recordings are computed in several."""
SAMPLE_BITS = 16


@dataclass(frozen=True)
class Moments:
    """Of z or some of its channels; standard normal: mean 0, std 1, kurtosis (excess) 0."""

    mean: float
    std: float
    kurtosis: float


@dataclass(frozen=True)
class Likelihood:
    """ln p(audio | mel) of `frames` whole frames, all constants included, z ~ N(0, 1).

    nats: per sample. bits: per sample at 16 bits, what an ideal coder with this model would need:
    (16 - 1) - nats / ln 2, the density times the step of 2^-15 taken for the probability.
    of_frame `[F]`: nats per sample of each frame, their mean is `nats`: energy + log_det -
    0.5 ln 2 pi. energy `[F]`: the frame's share of -z^2 / 2, that of the z at its own steps.
    log_det `[F]`: of the log-determinant: every flow's ln|det W| at its steps, the couplings' log_s
    at its steps, the whitening's -ln gain at its blocks. z sits where its samples sit, but hears
    context: a frame's figure is a share of the whole, not a likelihood of its own.
    z: of all of it; groups: by when the channels leave, as "before flow 4" and "at the end".
    """

    nats: float
    bits: float
    frames: int
    of_frame: np.ndarray
    energy: np.ndarray
    log_det: np.ndarray
    z: Moments
    groups: dict[str, Moments]


def likelihood_of(params: Params, config: Config, audio: np.ndarray, mel: np.ndarray) -> Likelihood:
    """The likelihood of a recording `[T]` under a mel `[F, M]` or `[F + 1, M]`.

    Computed in windows that overlap by all that the flow hears, so memory beyond the recording's
    own does not grow with its length. Not finite where the model finds the recording impossible in
    float32. Raises ValueError for a mel of other shape.
    """
    hop, glow = config.data.hop_length, config.waveglow
    frames = len(audio) // hop
    if mel.ndim != 2 or mel.shape[1] != glow.n_mel_channels or not frames <= len(mel) <= frames + 1:
        raise ValueError(
            f"a mel of shape {mel.shape} is not [{frames} or {frames + 1}, {glow.n_mel_channels}]"
        )
    if not frames:
        raise ValueError(f"{len(audio)} samples are less than a frame")
    energies, log_dets, powers = [], [], np.zeros((4, glow.n_group))
    for window in _windows(config, audio, mel):
        z, of_frames = (
            np.asarray(each[0], np.float64)
            for each in _encode_by_frame(params, config, *window.inputs)
        )
        steps = hop // glow.n_group
        z = z[window.kept.start * steps : window.kept.stop * steps]
        powers += [np.sum(z**k, axis=0) for k in (1, 2, 3, 4)]
        energies.append(_by_frame(-0.5 * np.sum(z**2, axis=1), config))
        log_dets.append(of_frames[window.kept] / hop)
    energy, log_det = np.concatenate(energies), np.concatenate(log_dets)
    of_frame = energy + log_det - loss_constant()
    nats = float(of_frame.mean())
    return Likelihood(
        nats=nats,
        bits=SAMPLE_BITS - 1 - nats / math.log(2),
        frames=frames,
        of_frame=of_frame,
        energy=energy,
        log_det=log_det,
        z=_moments(powers, frames * hop // glow.n_group),
        groups={
            name: _moments(powers[:, channels], frames * hop // glow.n_group)
            for name, channels in leaving_groups(config).items()
        },
    )


def noisy(audio: np.ndarray, std: float, hop: int) -> np.ndarray:
    """The whole frames of a recording with Gaussian noise (seed 0), float32."""
    n = len(audio) // hop * hop
    noise = np.random.default_rng(0).normal(size=n)
    return (audio[:n] + std * noise).astype(np.float32)


def leaving_groups(config: Config) -> dict[str, slice]:
    """z's channels by when they leave the flow, in their order."""
    glow = config.waveglow
    flows = [k for k in range(glow.n_flows) if glow.leaves_before(k) and glow.n_early_size]
    names = [*(f"before flow {k}" for k in flows), "at the end"]
    return dict(zip(names, glow.exits(), strict=True))


def _by_frame(of_steps: np.ndarray, config: Config) -> np.ndarray:
    hop = config.data.hop_length
    return of_steps.reshape(-1, hop // config.waveglow.n_group).sum(axis=1) / hop


def _moments(powers: np.ndarray, steps: int) -> Moments:
    """From the sums `[4, C]` of the first four powers of values, `steps` of them a channel."""
    first, second, third, fourth = powers.sum(axis=1) / (powers.shape[1] * steps)
    variance = second - first**2
    central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    return Moments(
        mean=float(first),
        std=float(np.sqrt(variance)),
        kurtosis=float(central / variance**2 - 3) if variance > 0 else math.nan,
    )


# ------------------------------------------------------------------------------ windows


@dataclass(frozen=True)
class _Window:
    """What `_encode_by_frame` takes, and the frames of its result that are kept."""

    inputs: tuple[np.ndarray, ...]
    kept: slice


def _windows(config: Config, audio: np.ndarray, mel: np.ndarray) -> Iterator[_Window]:
    """A recording in windows of one size; a yield a window, in order."""
    hop, glow = config.data.hop_length, config.waveglow
    frames, steps = len(audio) // hop, hop // glow.n_group
    context = context_of(config)
    size = min(size_at_least(frames), context.left + KEPT_FRAMES + context.right)
    order = glow.whitening_order
    silence = np.zeros(order, np.float32)
    audio = np.concatenate([silence, np.asarray(audio[: frames * hop], np.float32)])
    begin = 0
    while begin < frames:
        first = max(0, begin - context.left)
        # To the end if it is in sight; else only what hears nothing of the cut.
        end = frames if first + size >= frames else first + size - context.right
        stop = min(frames, first + size)
        piece = audio[first * hop : order + stop * hop]
        past, piece = piece[:order], piece[order:]
        piece = np.pad(piece, (0, size * hop - len(piece)))
        under = mel[first : first + size + 1]
        under = np.pad(under, ((0, size + 1 - len(under)), (0, 0)), mode="edge")
        mask = (np.arange(size * steps) < (stop - first) * steps).astype(np.float32)
        inputs = (piece[None], np.asarray(under, np.float32)[None], past[None], mask[None])
        yield _Window(inputs, slice(begin - first, end - first))
        begin = end


@partial(jax.jit, static_argnums=1)
def _encode_by_frame(
    params: Params,
    config: Config,
    audio: jax.Array,
    mel: jax.Array,
    past: jax.Array,
    mask: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """As `waveglow_jax.forward`, but with each frame's share of log_det: z `[1, N, G]`, `[1, F]`.

    Frames outside the mask mean nothing.
    """
    z, log_dets = encode(params, config, audio, mel, past=past, mask=mask)
    of_frames = jnp.zeros((1, audio.shape[1] // config.data.hop_length), audio.dtype)
    for each in log_dets:
        of_frames = of_frames + log_det_by_frame(each.local, z.shape[1], of_frames.shape[1])
    return z, of_frames


# ------------------------------------------------------------------------------ the figure


def likelihood_figure(found: Likelihood, mel: np.ndarray, data: DataConfig, title: str) -> Figure:
    """A matplotlib Figure: the mel above the curve of nats per sample and its two parts."""
    from matplotlib.figure import Figure

    seconds = (np.arange(found.frames) + 0.5) * data.hop_length / data.sampling_rate
    length = found.frames * data.hop_length / data.sampling_rate
    figure = Figure(figsize=(float(np.clip(2.5 * length, 8, 40)), 6.5), layout="constrained")
    above, middle, below = figure.subplots(3, 1, sharex=True)
    extent = (0, len(mel) * data.hop_length / data.sampling_rate, 0, mel.shape[1])
    above.imshow(mel.T, origin="lower", aspect="auto", cmap="magma", extent=extent)
    above.set(title=literal(title), ylabel="mel band")
    middle.plot(seconds, found.of_frame, lw=0.8, color="C0", label="a frame")
    middle.axhline(found.nats, color="C3", lw=1, label=f"all, {found.nats:.3f}")
    middle.set(ylabel="nats per sample")
    below.plot(seconds, found.log_det, lw=0.8, color="C2", label="log-determinant")
    below.plot(seconds, found.energy, lw=0.8, color="C1", label="-z²/2")
    below.set(ylabel="its parts", xlabel="seconds", xlim=(0, length))
    for axis in (middle, below):
        axis.grid(alpha=0.25)
        axis.legend(loc="lower right", fontsize=8, ncols=2)
    return figure
