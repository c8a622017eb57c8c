"""Corrections that bring a signal to the mel it was made from.

One correction scales the signal's spectra until they have the mel, and takes the signal whose
spectra are nearest to those. A fast Griffin-Lim algorithm (Perraudin, Balazs, Sondergaard 2013,
doi:10.1109/WASPAA.2013.6701851) with the mel's constraint in place of known magnitudes:

    g    = B' (m / max(B |X|, 1e-5)) / B' 1         for each frame, m = exp(log-mel), B the filters
    X'   = STFT(iSTFT(g X))
    X   <- X' + momentum * (X' - the X' before)     and iSTFT(g X) at the end

The ratio is held to [1/100, 100]. On bins that no filter covers g is 1, but 0 above the bandwidth
of the voice's recordings (`config.synthesis.bandwidth`), where there is nothing to say. At first
the signal is mirrored at its ends, as for its mel; afterwards the frames that reach beyond an end
are free there.

Arrays: audio `[T]`, log-mel `[F, M]`, T = F * hop; hops `[n, hop]` are the signal cut up; spectra
`[F, bins]` are complex; segments `[F, span * hop]` are windowed frames in time, each over the
`span` hops that it touches, which begin span / 2 hops before the frame's centre.
"""

from collections.abc import Iterable, Iterator
from functools import cache, lru_cache, partial
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.audio.fourier import irfft, rfft
from waveglow_jax.audio.mel import FAR, LOG_FLOOR, mel_filters, mirrored, stft_window
from waveglow_jax.config import Config
from waveglow_jax.synthesis.kept_traces import compile_once
from waveglow_jax.synthesis.windows import Piece

MOMENTUM = 0.9
"""More (the fast algorithm's 0.99) is no better after 32 corrections and less stable: see
docs/measurements/consistency.md."""
MOST_RATIO = 100.0
"""The most by which one correction raises or lowers a band."""
LOUDEST = 20.0
"""The log-mel that louder ones are taken for: far beyond full scale, and every sample is finite."""
CPU_PIECE, ACCELERATOR_PIECE = 64, 1024
"""Frames that are corrected at once."""


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

    iterations: how many corrections; 0 leaves the audio as it is. n_frames `[...]`: the signal's
    own frames where the others are padding, whose samples mean nothing afterwards. float32, or
    float64 in gives float64 out. Cost: two FFTs and two products with the filters per frame and
    correction. Raises ValueError for shapes that do not fit.
    """
    hop, span = config.data.hop_length, _span(config)
    frames = audio.shape[-1] // hop
    if audio.shape[-1] != frames * hop or mel.shape[-2] not in (frames, frames + 1) or not frames:
        raise ValueError(f"audio {audio.shape} and mel {mel.shape} do not fit at a hop of {hop}")
    if iterations == 0:
        return audio
    lead = audio.shape[:-1]
    own = jnp.full(lead, frames) if n_frames is None else jnp.asarray(n_frames)
    numbers = jax.lax.broadcasted_iota(own.dtype, (*lead, frames), len(lead))
    exists = (numbers < own[..., None]).astype(audio.dtype)
    place = jnp.arange(-(span // 2) * hop, (frames + span // 2 - 1) * hop)
    place = jnp.broadcast_to(place, (*lead, *place.shape))
    around_ends = jnp.take_along_axis(audio, mirrored(place, own[..., None] * hop), axis=-1)
    start = _spectra(around_ends.reshape(*lead, -1, hop), config)
    target = jnp.exp(jnp.minimum(mel[..., :frames, :].astype(audio.dtype), LOUDEST))
    around = [(0, 0)] * len(lead) + [(span - 1, span - 1)]
    exists_around = jnp.pad(exists, around)

    def signal(spectra: jax.Array) -> jax.Array:
        segments = _segments(_with_mel(spectra, target, config), exists, config)
        return _signal(jnp.pad(segments, [*around, (0, 0)]), exists_around, config)

    def corrected(
        carry: tuple[jax.Array, jax.Array], _: None
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        spectra, before = carry
        after = _spectra(signal(spectra), config)
        return (after + momentum * (after - before), after), None

    (spectra, _), _ = jax.lax.scan(corrected, (start, start), length=iterations - 1)
    hops = signal(spectra)[..., span // 2 : span // 2 + frames, :]
    return hops.reshape(audio.shape)


# ------------------------------------------------------------------------------ any length


def consistent_blocks(
    pieces: Iterable[Piece],
    config: Config,
    iterations: int,
    frames: int | None = None,
    device: jax.Device | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """`consistent` of utterances that arrive in pieces, one after another: `(utterance, samples)`.

    The corrections follow each other through the signal, each `reach` frames behind the one before,
    so nothing is computed twice and memory depends on neither length nor number of the utterances.
    `frames` are corrected at once; the samples of a frame come out when `delay` frames after it
    have come in, rounded up to whole `frames`. It runs on `device`, by default the first.
    """
    if iterations == 0:
        return ((piece.utterance, piece.audio) for piece in pieces)
    device = device or jax.devices()[0]
    return _Pipeline(config, iterations, frames or piece_frames(device), device).run(pieces)


def reach(config: Config) -> int:
    """Frames to either side on which a corrected sample depends."""
    return _span(config) - 1


def delay(config: Config, iterations: int) -> int:
    """Frames after its own that a sample of `consistent_blocks` waits for."""
    return iterations * reach(config) + _span(config) // 2 if iterations else 0


def piece_frames(device: jax.Device) -> int:
    """Frames that are corrected at once where nobody waits for them."""
    return CPU_PIECE if device.platform == "cpu" else ACCELERATOR_PIECE


class _Row(NamedTuple):
    """Rows of the tape on which utterances follow each other.

    hops `[n, hop]` with each utterance's mirrored ends; mel `[n, M]` and exists `[n]` of the frame
    whose last hop this is; utterance `[n]`, -1 for hops that are no utterance's own.
    """

    hops: np.ndarray
    mel: np.ndarray
    exists: np.ndarray
    utterance: np.ndarray

    def cut(self, start: int, stop: int | None = None) -> "_Row":
        return _Row(*(each[start:stop] for each in self))


def _on_tape(pieces: Iterable[Piece], config: Config) -> Iterator[_Row]:
    """The rows of one utterance, F + reach of them, as far as its pieces have come."""
    hop, left, behind = config.data.hop_length, _span(config) // 2, reach(config)
    audio, mel = np.zeros(0, np.float32), _no_rows(behind, config).mel
    start = done = 0  # samples before `audio`, rows that are out
    pieces = iter(pieces)
    utterance, ended = -1, False
    while not ended:
        piece = next(pieces, None)
        ended = piece is None
        if piece is not None:
            utterance = piece.utterance
            samples = np.asarray(piece.audio, np.float32)
            audio, mel = np.concatenate([audio, samples]), np.concatenate([mel, piece.mel])
        there = start + len(audio)
        if ended and not there:
            return
        started = there > left * hop  # what the beginning mirrors is there
        ready = there // hop + (behind if ended else left) if started or ended else 0
        place = np.arange((done - left) * hop, (ready - left) * hop)
        if ready > done:
            hops = audio[mirrored(place, there if ended else FAR) - start].reshape(-1, hop)
            exists = np.arange(done, ready) >= behind
            own = (place[::hop] >= 0) & (place[::hop] < there)
            n = ready - done
            yield _Row(hops, mel[:n], exists.astype(np.float32), np.where(own, utterance, -1))
            mel, done = mel[n:], ready
            kept = max(start, (done - left - behind) * hop - 1)
            audio, start = audio[kept - start :], kept


def _no_rows(n: int, config: Config) -> _Row:
    """Rows that separate and follow utterances: nothing exists there."""
    return _Row(
        np.zeros((n, config.data.hop_length), np.float32),
        np.zeros((n, config.waveglow.n_mel_channels), np.float32),
        np.zeros(n, np.float32),
        np.full(n, -1),
    )


class _Pipeline:
    """The tape's rows in, in pieces of `frames`; the same rows corrected, `delay` behind, out."""

    def __init__(self, config: Config, iterations: int, frames: int, device: jax.Device) -> None:
        self.config, self.frames = config, frames
        self.program = piece_program(config, iterations, frames, device)
        self.state = _silent_state(config, iterations)
        self.waiting = _no_rows(0, config)
        self.under_way = np.full(iterations * reach(config), -1)

    def run(self, pieces: Iterable[Piece]) -> Iterator[tuple[int, np.ndarray]]:
        for _, of_one in groupby(pieces, itemgetter(0)):
            for rows in _on_tape(of_one, self.config):
                yield from self._push(rows)
        while (self.under_way >= 0).any() or (self.waiting.utterance >= 0).any():
            yield from self._push(_no_rows(self.frames - len(self.waiting.hops), self.config))

    def _push(self, rows: _Row) -> Iterator[tuple[int, np.ndarray]]:
        pairs = zip(self.waiting, rows, strict=True)
        self.waiting = _Row(*(np.concatenate(pair) for pair in pairs))
        while len(self.waiting.hops) >= self.frames:
            now, self.waiting = self.waiting.cut(0, self.frames), self.waiting.cut(self.frames)
            self.state, hops = self.program(self.state, now.hops, now.mel, now.exists)
            self.under_way = np.concatenate([self.under_way, now.utterance])
            of_hop, self.under_way = self.under_way[: self.frames], self.under_way[self.frames :]
            hops = np.asarray(hops)
            for utterance in dict.fromkeys(of_hop[of_hop >= 0].tolist()):
                yield utterance, hops[of_hop == utterance].reshape(-1)


class _State(NamedTuple):
    """What a piece leaves to the next: what each of N corrections needs from before its own rows.

    hops `[R, hop]`, R = reach; mel `[(N + 1) * R, M]`; exists alike; segments
    `[N, 2 R, span * hop]`; spectra `[N, R, bins]`, without momentum.
    """

    hops: jax.Array | np.ndarray
    mel: jax.Array | np.ndarray
    exists: jax.Array | np.ndarray
    segments: jax.Array | np.ndarray
    spectra: jax.Array | np.ndarray


jax.export.register_namedtuple_serialization(
    _State, serialized_name="waveglow_jax.synthesis.consistency.State"
)


def _silent_state(config: Config, iterations: int) -> _State:
    data, before = config.data, reach(config)
    past = _no_rows((iterations + 1) * before, config)
    segments = (iterations, 2 * before, _span(config) * data.hop_length)
    spectra = (iterations, before, data.filter_length // 2 + 1)
    return _State(
        past.hops[:before],
        past.mel,
        past.exists,
        np.zeros(segments, np.float32),
        np.zeros(spectra, np.complex64),
    )


@lru_cache(maxsize=8)
def piece_program(
    config: Config, iterations: int, frames: int, device: jax.Device
) -> jax.stages.Compiled:
    """The compiled `_corrected_piece`, for pieces of so many frames."""
    rows = _no_rows(frames, config)[:3]
    state = _silent_state(config, iterations)
    there = jax.sharding.SingleDeviceSharding(device)
    return compile_once(
        partial(_corrected_piece, config),
        state,
        *rows,
        name="corrections",
        devices=[device],
        made_for=config,
        in_shardings=there,
        out_shardings=there,
    )


def _corrected_piece(
    config: Config, state: _State, hops: jax.Array, mel: jax.Array, exists: jax.Array
) -> tuple[_State, jax.Array]:
    """Rows a to a + P of the tape: the next state, and hops a - N R to a - N R + P corrected N
    times.

    Correction k has the spectra of frames a - (k + 1) R on: their last hops are R further on.
    """
    n, before, iterations = len(hops), reach(config), len(state.segments)
    hops, mel, exists = (
        jnp.concatenate([old, new])
        for old, new in ((state.hops, hops), (state.mel, mel), (state.exists, exists))
    )
    target = jnp.exp(jnp.minimum(mel, LOUDEST))
    start = _spectra(hops, config)

    def signal(spectra: jax.Array, segments: jax.Array, k: Any) -> tuple[jax.Array, jax.Array]:
        first = (iterations - 1 - k) * before
        around = jax.lax.dynamic_slice_in_dim(exists, first, n + 2 * before)
        own = jax.lax.dynamic_slice_in_dim(target, first + 2 * before, n)
        new = _segments(_with_mel(spectra, own, config), around[2 * before :], config)
        segments = jnp.concatenate([segments, new])
        return _signal(segments, around, config), segments[-2 * before :]

    def corrected(
        carry: tuple[jax.Array, jax.Array], past: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        (spectra, unmoved), (segments, past_unmoved, k) = carry, past
        corrected_hops, segments = signal(spectra, segments, k)
        unmoved = jnp.concatenate([past_unmoved, unmoved])
        after = _spectra(corrected_hops, config)
        moved = after + MOMENTUM * (after - unmoved[:n])
        return (moved, after), (segments, unmoved[-before:])

    ks = jnp.arange(iterations - 1)
    pasts: Any = (state.segments[:-1], state.spectra[:-1], ks)
    (spectra, _), (segments, unmoved) = jax.lax.scan(corrected, (start, start), pasts)
    last, last_segments = signal(spectra, state.segments[-1], iterations - 1)
    after = _State(
        hops[-before:],
        mel[n:],
        exists[n:],
        jnp.concatenate([segments, last_segments[None]]),
        jnp.concatenate([unmoved, state.spectra[-1:]]),
    )
    return after, last[before:]


# ------------------------------------------------------------------------------ one correction


def _span(config: Config) -> int:
    """The hops that a frame touches when its centre lies between two of them: an even number."""
    return 2 * -(-config.data.filter_length // (2 * config.data.hop_length))


def _margin(config: Config) -> int:
    """Samples of a segment before and after its frame."""
    return (_span(config) * config.data.hop_length - config.data.filter_length) // 2


@cache
def _gains(config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mel filters B `[M, bins]`; B over its sum in each bin, so that a ratio per band becomes a
    gain per bin; and the gain `[bins]` where no filter is, 0 elsewhere."""
    filters, data = mel_filters(config.data, config.waveglow.n_mel_channels), config.data
    total = filters.sum(axis=0)
    by_bin = filters / np.where(total > 0, total, 1)
    hertz = np.arange(len(total)) * data.sampling_rate / data.filter_length
    bandwidth = config.synthesis.bandwidth or np.inf
    return filters, by_bin, ((total == 0) & (hertz <= bandwidth)).astype(np.float32)


def _with_mel(spectra: jax.Array, target: jax.Array, config: Config) -> jax.Array:
    """Spectra `[..., F, bins]` scaled towards the mel magnitudes `[..., F, M]`: g X."""
    filters, by_bin, elsewhere = (jnp.asarray(each, target.dtype) for each in _gains(config))
    mel = jnp.matmul(jnp.abs(spectra), filters.T, precision=jax.lax.Precision.HIGHEST)
    ratio = jnp.clip(target / jnp.maximum(mel, LOG_FLOOR), 1 / MOST_RATIO, MOST_RATIO)
    gain = jnp.matmul(ratio, by_bin, precision=jax.lax.Precision.HIGHEST)
    return spectra * (gain + jnp.broadcast_to(elsewhere, gain.shape))


def _segments(spectra: jax.Array, exists: jax.Array, config: Config) -> jax.Array:
    """Spectra `[..., F, bins]` -> windowed frames in time `[..., F, span * hop]`, 0 where there
    are none."""
    frames = irfft(spectra, config.data.filter_length)
    window = jnp.asarray(stft_window(config.data), frames.dtype)
    # Chosen, not multiplied: a neighbour that is not finite would come through a product.
    there = jnp.broadcast_to(exists[..., None] > 0, frames.shape)
    frames = jnp.where(there, frames * jnp.broadcast_to(window, frames.shape), 0)
    margin = _margin(config)
    return jnp.pad(frames, [(0, 0)] * (frames.ndim - 1) + [(margin, margin)])


def _signal(segments: jax.Array, exists: jax.Array, config: Config) -> jax.Array:
    """Segments `[..., n, span * hop]` -> `[..., n - span + 1, hop]`: overlap-added and divided by
    the sum of squared windows, as far as all frames that touch a hop are there."""
    margin = _margin(config)
    squared = jnp.asarray(np.pad(stft_window(config.data), margin) ** 2, segments.dtype)
    weight = jnp.broadcast_to(squared, segments.shape) * exists[..., None]
    least = 1e-6  # of the largest, 1: where no window is, there is no signal
    return _overlapped(segments, config) / jnp.maximum(_overlapped(weight, config), least)


def _overlapped(segments: jax.Array, config: Config) -> jax.Array:
    span, n = _span(config), segments.shape[-2]
    parts = segments.reshape(*segments.shape[:-1], span, config.data.hop_length)
    return cast(jax.Array, sum(parts[..., span - 1 - p : n - p, p, :] for p in range(span)))


def _spectra(hops: jax.Array, config: Config) -> jax.Array:
    """Hops `[..., F + span - 1, hop]` -> spectra `[..., F, bins]` of the frames they hold."""
    span, n = _span(config), hops.shape[-2]
    segments = jnp.concatenate([hops[..., p : n - span + 1 + p, :] for p in range(span)], axis=-1)
    margin = _margin(config)
    frames = segments[..., margin : margin + config.data.filter_length]
    window = jnp.asarray(stft_window(config.data), frames.dtype)
    return rfft(frames * jnp.broadcast_to(window, frames.shape))
