"""Corrections that bring audio of any length to its mel, piece by piece: `consistent` in blocks.

`audio/consistency.py` describes the algorithm and defines hops, spectra and segments. Arrays: audio
`[T]`, log-mel `[F, M]`, T = F * hop.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.audio.consistency import (
    MOMENTUM,
    hops_before,
    reach,
    segments_of,
    signal_of,
    span_of,
    spectra_of,
    target_of,
    with_mel,
)
from waveglow_jax.audio.mel import FAR, mirrored
from waveglow_jax.config import Config
from waveglow_jax.synthesis.kept_traces import compile_once
from waveglow_jax.synthesis.reverse_pass import Piece

CPU_PIECE, ACCELERATOR_PIECE = 64, 1024
"""Number of frames that one call of the program corrects."""


def consistent_blocks(
    pieces: Iterable[Piece],
    config: Config,
    iterations: int,
    frames: int | None = None,
    device: jax.Device | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """`consistent` for utterances that arrive in pieces, one after another: `(utterance, samples)`.

    The corrections form a pipeline through the signal, each `reach` frames behind the previous one,
    so nothing is computed twice and memory depends on neither length nor number of the utterances.
    Each call corrects `frames` frames; the samples of a frame come out when `delay` frames after it
    have come in, rounded up to a multiple of `frames`. It runs on `device`, by default the first.
    """
    if iterations == 0:
        return ((piece.utterance, piece.audio) for piece in pieces)
    device = device or jax.devices()[0]
    return _Pipeline(config, iterations, frames or piece_frames(device), device).run(pieces)


def delay(config: Config, iterations: int) -> int:
    """Number of frames after its own that a sample of `consistent_blocks` waits for."""
    return iterations * reach(config) + hops_before(config) if iterations else 0


def piece_frames(device: jax.Device) -> int:
    """Number of frames per call where latency does not matter."""
    return CPU_PIECE if device.platform == "cpu" else ACCELERATOR_PIECE


class _Row(NamedTuple):
    """Rows of the tape on which utterances follow each other.

    hops `[n, hop]` include the mirrored ends of each utterance; mel `[n, M]` and exists `[n]`
    describe the frame whose last hop is this row; utterance `[n]` is -1 for hops that belong to no
    utterance.
    """

    hops: np.ndarray
    mel: np.ndarray
    exists: np.ndarray
    utterance: np.ndarray

    def cut(self, start: int, stop: int | None = None) -> "_Row":
        return _Row(*(each[start:stop] for each in self))


def _on_tape(pieces: Iterable[Piece], config: Config) -> Iterator[_Row]:
    """Yields the F + reach rows of one utterance as its pieces arrive."""
    hop, left, behind = config.data.hop_length, hops_before(config), reach(config)
    audio, mel = np.zeros(0, np.float32), _no_rows(behind, config).mel
    start = done = 0  # samples before `audio`, rows already yielded
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
        started = there > left * hop  # the samples that the beginning mirrors have arrived
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
    """Rows that separate and follow utterances: no frame exists there."""
    return _Row(
        np.zeros((n, config.data.hop_length), np.float32),
        np.zeros((n, config.waveglow.n_mel_channels), np.float32),
        np.zeros(n, np.float32),
        np.full(n, -1),
    )


class _Pipeline:
    """Takes the tape's rows in pieces of `frames`; yields them corrected, `delay` frames later."""

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
    """State between pieces: what each of the N corrections needs from before its own rows.

    hops `[R, hop]`, R = reach; mel `[(N + 1) * R, M]`; exists `[(N + 1) * R]`; segments
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
    segments = (iterations, 2 * before, span_of(config) * data.hop_length)
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
    """The compiled `_corrected_piece`, for pieces of `frames` frames."""
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
    """Corrects one piece: takes rows a to a + P of the tape, and returns the next state and the
    hops a - N R to a - N R + P, corrected N times.

    Correction k works on the spectra of the frames from a - (k + 1) R on, whose last hops are R
    rows later.
    """
    n, before, iterations = len(hops), reach(config), len(state.segments)
    hops, mel, exists = (
        jnp.concatenate([old, new])
        for old, new in ((state.hops, hops), (state.mel, mel), (state.exists, exists))
    )
    target = target_of(mel, config)
    start = spectra_of(hops, config)

    def signal(spectra: jax.Array, segments: jax.Array, k: Any) -> tuple[jax.Array, jax.Array]:
        first = (iterations - 1 - k) * before
        around = jax.lax.dynamic_slice_in_dim(exists, first, n + 2 * before)
        own = jax.lax.dynamic_slice_in_dim(target, first + 2 * before, n)
        new = segments_of(with_mel(spectra, own, config), around[2 * before :], config)
        segments = jnp.concatenate([segments, new])
        return signal_of(segments, around, config), segments[-2 * before :]

    def corrected(
        carry: tuple[jax.Array, jax.Array], past: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        (spectra, unmoved), (segments, past_unmoved, k) = carry, past
        corrected_hops, segments = signal(spectra, segments, k)
        unmoved = jnp.concatenate([past_unmoved, unmoved])
        after = spectra_of(corrected_hops, config)
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
