"""Corrections that bring a signal to the mel it was made from.

One correction scales the signal's spectra towards the mel, and takes the signal whose spectra are
nearest to the scaled ones. This is a fast Griffin-Lim algorithm (Perraudin, Balazs, Sondergaard
2013, doi:10.1109/WASPAA.2013.6701851) with the mel's constraint in place of known magnitudes:

    g    = B' (m / max(B |X|, floor)) / B' 1        for each frame, m the mel's bands, B the filters
    X'   = STFT(iSTFT(g X))
    X   <- X' + momentum * (X' - the X' before)     and iSTFT(g X) at the end

For a mel of powers the bands are B |X|^2, and the gain is the root of g. The ratio is clipped to
[1/100, 100]; bands that the mel clips at its ceiling may be louder. Of a pre-emphasis only the
response at each bin counts, which multiplies |X|. On bins that no filter covers g is 1, but 0
above the bandwidth of the voice's recordings (`config.synthesis.bandwidth`), where they hold no
signal. At first the signal is mirrored at its ends, as for its mel; afterwards the frames that
extend beyond an end are unconstrained there.

Arrays: audio `[T]`, log-mel `[F, M]`, T = F * hop; hops `[n, hop]` are the signal in blocks;
spectra `[F, bins]` are complex; segments `[F, span * hop]` are windowed frames in time, each over
the `span` hops that it overlaps, which begin `hops_before` hops before hop f.
"""

from functools import cache, partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.audio.fourier import irfft, rfft
from waveglow_jax.audio.mel import bands_of, mel_filters, mirrored, stft_window
from waveglow_jax.config import Config
from waveglow_jax.conventions import LEAST

MOMENTUM = 0.9
"""A larger value (the fast algorithm's 0.99) is no better after 32 corrections and less stable: see
docs/measurements/consistency.md."""
MOST_RATIO = 100.0
"""Maximum factor by which one correction raises or lowers a band."""
LOUDEST = float(np.exp(20.0))
"""Limit of the bands: far beyond full scale, but every sample stays finite."""


@partial(jax.jit, static_argnames=("config", "iterations", "momentum"))
def consistent(
    audio: jax.Array,
    mel: jax.Array,
    config: Config,
    iterations: int,
    momentum: float = MOMENTUM,
    n_frames: jax.Array | None = None,
) -> jax.Array:
    """Audio `[..., F * hop]`, log-mel `[..., F, M]` or one frame more -> audio of the same shape.

    iterations: the number of corrections; 0 leaves the audio as it is. n_frames `[...]`: the number
    of the signal's own frames where the others are padding, whose samples are undefined afterwards.
    The result is float32, or float64 for float64 input. Cost: two FFTs and two matmuls with the
    filters per frame and correction. Raises ValueError for shapes that do not fit.
    """
    hop, span, left = config.data.hop_length, span_of(config), hops_before(config)
    frames = audio.shape[-1] // hop
    if audio.shape[-1] != frames * hop or mel.shape[-2] not in (frames, frames + 1) or not frames:
        raise ValueError(f"audio {audio.shape} and mel {mel.shape} do not fit at a hop of {hop}")
    if iterations == 0:
        return audio
    lead = audio.shape[:-1]
    own = jnp.full(lead, frames) if n_frames is None else jnp.asarray(n_frames)
    numbers = jax.lax.broadcasted_iota(own.dtype, (*lead, frames), len(lead))
    exists = (numbers < own[..., None]).astype(audio.dtype)
    place = jnp.arange(-left * hop, (frames + span - 1 - left) * hop)
    place = jnp.broadcast_to(place, (*lead, *place.shape))
    around_ends = jnp.take_along_axis(audio, mirrored(place, own[..., None] * hop), axis=-1)
    start = spectra_of(around_ends.reshape(*lead, -1, hop), config)
    target = target_of(mel[..., :frames, :].astype(audio.dtype), config)
    around = [(0, 0)] * len(lead) + [(span - 1, span - 1)]
    exists_around = jnp.pad(exists, around)

    def signal(spectra: jax.Array) -> jax.Array:
        segments = segments_of(with_mel(spectra, target, config), exists, config)
        return signal_of(jnp.pad(segments, [*around, (0, 0)]), exists_around, config)

    def corrected(
        carry: tuple[jax.Array, jax.Array], _: None
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        spectra, before = carry
        after = spectra_of(signal(spectra), config)
        return (after + momentum * (after - before), after), None

    (spectra, _), _ = jax.lax.scan(corrected, (start, start), length=iterations - 1)
    hops = signal(spectra)[..., left : left + frames, :]
    return hops.reshape(audio.shape)


def reach(config: Config) -> int:
    """Number of frames on either side that a sample depends on in one correction."""
    return span_of(config) - 1


def span_of(config: Config) -> int:
    """The number of hops that a frame overlaps: even for centred frames, odd for late ones."""
    return 2 * hops_before(config) + (1 if config.data.mel.late else 0)


def hops_before(config: Config) -> int:
    """The number of hops before hop f that frame f overlaps."""
    return -(-config.data.lead // config.data.hop_length)


def _margin(config: Config) -> int:
    """Number of samples of a segment before its frame, and as many after it."""
    return hops_before(config) * config.data.hop_length - config.data.lead


@cache
def _gains(config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mel filters B `[M, bins]`, with the pre-emphasis; B over its sum in each bin, so that a
    ratio per band becomes a gain per bin; and the gain `[bins]` of bins that no filter covers, 0
    for the others."""
    filters, data = mel_filters(config.data, config.waveglow.n_mel_channels), config.data
    total = filters.sum(axis=0)
    by_bin = filters / np.where(total > 0, total, 1)
    if data.mel.emphasis:
        turn = np.exp(-2j * np.pi * np.arange(len(total)) / data.filter_length)
        response = np.abs(1 - data.mel.emphasis * turn) ** data.mel.power
        filters = (filters * response).astype(np.float32)
    hertz = np.arange(len(total)) * data.sampling_rate / data.filter_length
    bandwidth = config.synthesis.bandwidth or np.inf
    return filters, by_bin, ((total == 0) & (hertz <= bandwidth)).astype(np.float32)


def target_of(mel: jax.Array, config: Config) -> jax.Array:
    """The mel's values `[..., F, M]` -> the bands that `with_mel` takes."""
    return jnp.minimum(bands_of(mel, config.data), LOUDEST)


def with_mel(spectra: jax.Array, target: jax.Array, config: Config) -> jax.Array:
    """Spectra `[..., F, bins]` scaled towards the bands `[..., F, M]`: g X."""
    form = config.data.mel
    filters, by_bin, elsewhere = (jnp.asarray(each, target.dtype) for each in _gains(config))
    magnitudes = jnp.abs(spectra)
    power = magnitudes if form.power == 1 else magnitudes**2
    bands = jnp.matmul(power, filters.T, precision=jax.lax.Precision.HIGHEST)
    if form.ceiling:
        bands = jnp.where(target < form.ceiling, bands, jnp.minimum(bands, form.ceiling))
    most = MOST_RATIO**form.power
    ratio = jnp.clip(target / jnp.maximum(bands, form.floor or LEAST), 1 / most, most)
    gain = jnp.matmul(ratio, by_bin, precision=jax.lax.Precision.HIGHEST)
    gain = gain if form.power == 1 else jnp.sqrt(gain)
    return spectra * (gain + jnp.broadcast_to(elsewhere, gain.shape))


def segments_of(spectra: jax.Array, exists: jax.Array, config: Config) -> jax.Array:
    """Spectra `[..., F, bins]` -> windowed frames in time `[..., F, span * hop]`, 0 for frames
    that do not exist."""
    frames = irfft(spectra, config.data.filter_length)
    window = jnp.asarray(stft_window(config.data), frames.dtype)
    # where, not a multiplication by 0, which would let neighbours that are not finite through.
    there = jnp.broadcast_to(exists[..., None] > 0, frames.shape)
    frames = jnp.where(there, frames * jnp.broadcast_to(window, frames.shape), 0)
    margin = _margin(config)
    return jnp.pad(frames, [(0, 0)] * (frames.ndim - 1) + [(margin, margin)])


def signal_of(segments: jax.Array, exists: jax.Array, config: Config) -> jax.Array:
    """Segments `[..., n, span * hop]` -> `[..., n - span + 1, hop]`: overlap-added and divided by
    the sum of squared windows, for the hops whose overlapping frames are all among these."""
    margin = _margin(config)
    squared = jnp.asarray(np.pad(stft_window(config.data), margin) ** 2, segments.dtype)
    weight = jnp.broadcast_to(squared, segments.shape) * exists[..., None]
    least = 1e-6  # relative to the largest, 1: without a window there is no signal
    return _overlapped(segments, config) / jnp.maximum(_overlapped(weight, config), least)


def _overlapped(segments: jax.Array, config: Config) -> jax.Array:
    span, n = span_of(config), segments.shape[-2]
    parts = segments.reshape(*segments.shape[:-1], span, config.data.hop_length)
    return cast(jax.Array, sum(parts[..., span - 1 - p : n - p, p, :] for p in range(span)))


def spectra_of(hops: jax.Array, config: Config) -> jax.Array:
    """Hops `[..., F + span - 1, hop]` -> spectra `[..., F, bins]` of the frames in them."""
    span, n = span_of(config), hops.shape[-2]
    segments = jnp.concatenate([hops[..., p : n - span + 1 + p, :] for p in range(span)], axis=-1)
    margin = _margin(config)
    frames = segments[..., margin : margin + config.data.filter_length]
    window = jnp.asarray(stft_window(config.data), frames.dtype)
    return rfft(frames * jnp.broadcast_to(window, frames.shape))
