"""The exact likelihood of a recording under its mel, in total and per frame.

Arrays: audio `[T]`; mel `[F, M]`; z `[N, G]`; F: the whole frames in T, in whole periods
(`Config.period`), so that they are N = F * hop / G steps.
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
"""Most frames that one window contributes, without its context; longer recordings need several."""
SAMPLE_BITS = 16


@dataclass(frozen=True)
class Moments:
    """Moments of z or of some of its channels; a standard normal has mean 0, std 1, kurtosis 0.

    kurtosis: the excess kurtosis.
    """

    mean: float
    std: float
    kurtosis: float


@dataclass(frozen=True)
class Likelihood:
    """ln p(audio | mel) of `frames` frames, all constants included, z ~ N(0, 1).

    nats: log-likelihood in nats per sample. bits: the bits per sample that an ideal coder with this
    model would need at 16 bits, (16 - 1) - nats / ln 2; the probability is taken as the density
    times the quantisation step of 2^-15.
    of_frame `[F]`: nats per sample of each frame, energy + log_det - 0.5 ln 2 pi; their mean is
    `nats`. energy `[F]`: -z^2 / 2 of the z at the frame's own steps. log_det `[F]`: the frame's
    share of the log-determinant, which consists of every flow's ln|det W| and the couplings' log_s
    at the frame's steps, and the whitening's -ln gain at the frame's blocks. Each z belongs to the
    samples at its own step but depends on their context, so a frame's value is a share of the total
    and not the likelihood of that frame.
    z: the moments of all of z. groups: the moments by when the channels leave the flow, such as
    "before flow 4" and "at the end".
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
    """The likelihood of a recording `[T]` under a mel `[T // hop, M]`, or of one frame more.

    It is computed in windows that overlap by the flow's whole context, so memory beyond the
    recording's own does not grow with its length. The result is not finite where float32 cannot
    represent how unlikely the model finds the recording. Raises ValueError for a mel of another
    shape, or less than a period of audio.
    """
    hop, glow, period = config.data.hop_length, config.waveglow, config.period
    frames = len(audio) // hop
    if mel.ndim != 2 or mel.shape[1] != glow.n_mel_channels or not frames <= len(mel) <= frames + 1:
        raise ValueError(
            f"a mel of shape {mel.shape} is not [{frames} or {frames + 1}, {glow.n_mel_channels}]"
        )
    frames = config.whole_frames(len(audio))
    if not frames:
        least = "a frame" if period == 1 else f"{period} frames, the fewest with whole groups"
        raise ValueError(f"{len(audio)} samples are less than {least}")
    mel, audio = mel[: frames + 1], audio[: frames * hop]
    steps = config.steps_of(frames)
    energies, log_dets, powers = [], [], np.zeros((4, glow.n_group))
    for window in _windows(config, audio, mel):
        z, of_frames = (
            np.asarray(each[0], np.float64)
            for each in _encode_by_frame(params, config, *window.inputs)
        )
        z = z[config.steps_of(window.kept.start) : config.steps_of(window.kept.stop)]
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
        z=_moments(powers, steps),
        groups={
            name: _moments(powers[:, channels], steps)
            for name, channels in leaving_groups(config).items()
        },
    )


def noisy(audio: np.ndarray, std: float, hop: int) -> np.ndarray:
    """The whole frames of a recording with Gaussian noise (seed 0), float32."""
    n = len(audio) // hop * hop
    noise = np.random.default_rng(0).normal(size=n)
    return (audio[:n] + std * noise).astype(np.float32)


def leaving_groups(config: Config) -> dict[str, slice]:
    """z's channels by when they leave the flow, in the order in which they do."""
    glow = config.waveglow
    flows = [k for k in range(glow.n_flows) if glow.leaves_before(k) and glow.n_early_size]
    names = [*(f"before flow {k}" for k in flows), "at the end"]
    return dict(zip(names, glow.exits(), strict=True))


def _by_frame(of_steps: np.ndarray, config: Config) -> np.ndarray:
    hop, group = config.data.hop_length, config.waveglow.n_group
    shared = math.gcd(hop, group)  # samples; a step that frames share counts for each by its share
    pieces = np.repeat(of_steps * (shared / group), group // shared)
    return pieces.reshape(-1, hop // shared).sum(axis=1) / hop


def _moments(powers: np.ndarray, steps: int) -> Moments:
    """Moments from the sums `[4, C]` of the first four powers of values, `steps` per channel."""
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
    """The inputs of `_encode_by_frame`, and the frames of its result that are used."""

    inputs: tuple[np.ndarray, ...]
    kept: slice


def _windows(config: Config, audio: np.ndarray, mel: np.ndarray) -> Iterator[_Window]:
    """Yields the windows of a recording in order, all of one size."""
    hop, glow = config.data.hop_length, config.waveglow
    frames = len(audio) // hop
    context = context_of(config)
    size = min(size_at_least(frames), context.left + KEPT_FRAMES + context.right)
    size = context.whole(size)
    order = glow.whitening_order
    silence = np.zeros(order, np.float32)
    audio = np.concatenate([silence, np.asarray(audio[: frames * hop], np.float32)])
    begin = 0
    while begin < frames:
        first = max(0, begin - context.left)
        # The window contributes all frames up to the recording's end if it contains that end, and
        # otherwise only the frames whose context ends before the cut.
        end = frames if first + size >= frames else first + size - context.right
        stop = min(frames, first + size)
        piece = audio[first * hop : order + stop * hop]
        past, piece = piece[:order], piece[order:]
        piece = np.pad(piece, (0, size * hop - len(piece)))
        under = mel[first : first + size + 1]
        under = np.pad(under, ((0, size + 1 - len(under)), (0, 0)), mode="edge")
        own = np.arange(config.steps_of(size)) < config.steps_of(stop - first)
        mask = own.astype(np.float32)
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
    """z `[1, N, G]` as `waveglow_jax.forward` gives it, and each frame's share of log_det `[1, F]`.

    The values of frames outside the mask are meaningless.
    """
    z, log_dets = encode(params, config, audio, mel, past=past, mask=mask)
    of_frames = jnp.zeros((1, audio.shape[1] // config.data.hop_length), audio.dtype)
    for each in log_dets:
        of_frames = of_frames + log_det_by_frame(each.local, z.shape[1], of_frames.shape[1])
    return z, of_frames


# ------------------------------------------------------------------------------ the figure


def likelihood_figure(found: Likelihood, mel: np.ndarray, data: DataConfig, title: str) -> Figure:
    """A matplotlib Figure: the mel, below it the nats per sample, and below that its two parts."""
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
