"""The reverse pass of mels of any length and number, exactly, with one compiled window program.

`plan.py` cuts the mels into windows. The whitening may predict from all earlier samples, so the
audio is coloured after the windows, for each utterance in pieces from its start. Arrays: mel
`[F, M]`; windows of it `[B, W, M]`; audio `[T]` with T = F * hop.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from waveglow_jax.config import Config
from waveglow_jax.flow.waveglow import (
    Params,
    colour,
    fold_upsampler,
    folded_size,
    inverse_whitened,
    noise_of_frames,
    own_steps,
    prepare_inverse,
)
from waveglow_jax.synthesis.kept_traces import compile_once
from waveglow_jax.synthesis.plan import Context, Part, Plan, choose, context_of, pack, spread

FOLDED_BYTES = 2 << 30
"""Maximum size of conditioning layers with the upsampler folded in, summed over all devices."""
COLOUR_FRAMES = 32
"""Number of frames that one call of the colouring program takes."""


def worth_folding(config: Config, dtype: Any, platform: str, n_devices: int) -> bool:
    """Whether `fold_upsampler` saves FLOPs on that platform and fits the memory allowed for it."""
    size = folded_size(config, dtype)
    return size is not None and platform != "tpu" and size * n_devices <= FOLDED_BYTES


class Piece(NamedTuple):
    """Samples `[n * hop]` of an utterance, and the corresponding frames `[n, M]` of its log-mel."""

    utterance: int
    audio: np.ndarray
    mel: np.ndarray


@dataclass(frozen=True)
class ReversePass:
    """The compiled reverse pass of one voice on some devices, and the loops that run it.

    Mels are float32 `[F, M]`, already checked; sigma, seed and dtype are those of
    `Voice.synthesize`.
    """

    config: Config
    params: Params
    devices: tuple[jax.Device, ...]

    @cached_property
    def context(self) -> Context:
        return context_of(self.config)

    def plan(
        self,
        lengths: Sequence[int],
        dtype: str,
        window: int | None = None,
        batch: int | None = None,
    ) -> Plan:
        """`choose` for utterances of these lengths, given the programs compiled for that dtype."""
        compiled = [key[:2] for key in self._programs if key[2] == dtype]
        return choose(lengths, self.context, self.devices, compiled, window, batch)

    def compile(self, window: int, batch: int, dtype: str) -> float:
        """Compiles what such windows need; returns the seconds it took, 0 if nothing was missing.

        These are two programs at most: one for windows of that size, and one for all colouring.
        """
        if (window, batch, dtype) in self._programs:
            return 0.0
        began = time.monotonic()
        mesh = self._mesh(batch)
        everywhere, by_row = PartitionSpec(), PartitionSpec("rows")
        program = jax.shard_map(
            partial(_whitened_windows, self.config, dtype),
            mesh=mesh,
            in_specs=(everywhere, by_row, by_row, everywhere, everywhere),
            out_specs=by_row,
        )
        bins = self.config.waveglow.n_mel_channels
        shapes = ((batch, window, bins), jnp.float32), ((batch, window), jnp.int32)
        scalars = ((), jnp.float32), ((), jnp.uint32)
        arguments = (
            self._prepared(mesh, dtype),
            *(jax.ShapeDtypeStruct(*s, sharding=NamedSharding(mesh, by_row)) for s in shapes),
            *(jax.ShapeDtypeStruct(*s, sharding=NamedSharding(mesh, everywhere)) for s in scalars),
        )
        self._programs[window, batch, dtype] = compile_once(
            program,
            *arguments,
            name="windows",
            devices=mesh.devices.tolist(),
            made_for=(self.config, dtype),
        )
        if self.config.waveglow.mel_whitening:
            self._colour_program  # noqa: B018 - compiled when first asked for
        return time.monotonic() - began

    def memory_bytes(self, window: int, batch: int, dtype: str) -> int:
        """Memory of the program for such windows, arguments included; it must be compiled."""
        memory = self._programs[window, batch, dtype].memory_analysis()
        assert memory is not None
        sizes = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        return sum(sizes) + memory.output_size_in_bytes

    def blocks(
        self, mels: Iterable[np.ndarray], plan: Plan, sigma: float, seed: int, dtype: str
    ) -> Iterator[Piece]:
        """Yields the audio of the mels, one mel after another, each in order.

        Mels are taken as the windows fill up, and released when their audio is complete.
        """
        size = plan.window, plan.batch, dtype
        self.compile(*size)
        held: dict[int, np.ndarray] = {}

        def taken() -> Iterator[int]:
            for utterance, mel in enumerate(mels):
                held[utterance] = mel
                yield len(mel)

        windows = pack(taken(), plan.window, plan.context)
        past = self._silence
        while rows := list(islice(windows, plan.batch)):
            windows_of_mel = [
                [held[part.utterance][part.first : part.stop] for part in row] for row in rows
            ]
            whitened = self._whitened(size, rows, windows_of_mel, sigma, seed)
            for part, y in zip((part for row in rows for part in row), whitened, strict=True):
                if part.begin == 0:
                    past = self._silence
                mel = held[part.utterance]
                around = self._around(mel, part.begin, part.end)
                audio, past = self._coloured(y, around, past)
                if part.end == len(mel):
                    del held[part.utterance]
                yield Piece(part.utterance, audio, mel[part.begin : part.end])

    def stream(
        self, frames: Iterator[np.ndarray], chunk: int, sigma: float, seed: int, dtype: str
    ) -> Iterator[Piece]:
        """Yields the audio of one mel, whose frames `[f, M]` arrive over time, `chunk` at a time.

        chunk: in frames, a multiple of the context's period.

        A block needs the `chunk + context.right` frames from its first on; the last block is
        shorter.
        """
        left, right = self.context.left, self.context.right
        window, hop = self.stream_plan(chunk).window, self.config.data.hop_length
        size = window, 1, dtype
        self.compile(*size)
        mel = np.zeros((0, self.config.waveglow.n_mel_channels), np.float32)
        start = done = 0  # frames before `mel`, frames whose audio was yielded
        ended, past = False, self._silence
        while True:
            while not ended and start + len(mel) < done + chunk + right:
                block = next(frames, None)
                ended = block is None
                mel = mel if block is None else np.concatenate([mel, block])
            there = start + len(mel)
            if done == there:
                return
            stop = min(there, start + window)
            end = there if ended and stop == there else done + chunk
            part = Part(0, 0, start, stop, done, end)
            (y,) = self._whitened(size, [[part]], [[mel[: stop - start]]], sigma, seed)
            around = self._around(mel, done - start, end - start)
            audio, past = self._coloured(y, around, past)
            for i in range(done, end, chunk):
                block = audio[(i - done) * hop : (i - done + chunk) * hop]
                yield Piece(0, block, mel[i - start : min(i + chunk, end) - start])
            done = end
            mel, start = mel[max(0, done - left) - start :], max(0, done - left)

    def stream_plan(self, chunk: int) -> Plan:
        """The plan for a stream's blocks of `chunk` frames, whole periods: one window per block."""
        window = self.context.left + chunk + self.context.right
        return Plan(window, 1, 1, self.context, chunk, window)

    def ready_for(self, n_frames: int, dtype: str = "float32") -> tuple[int | None, int | None]:
        """The smallest compiled window and batch that can compute `n_frames` frames, or Nones."""
        both = self.context.left + self.context.right
        sizes = [key[:2] for key in self._programs if key[2] == dtype]
        fit = [size for size in sizes if size[0] >= n_frames or size[0] > both]
        return min(fit, default=(None, None))

    def _whitened(
        self,
        size: tuple[int, int, str],
        rows: Sequence[Sequence[Part]],
        mels: Sequence[Sequence[np.ndarray]],
        sigma: float,
        seed: int,
    ) -> list[np.ndarray]:
        """Calls the program of that size; returns each part's kept whitened audio, in order.

        mels: `[stop - first, M]` of each part, which fill whole periods with their last frame.
        """
        window, batch, dtype = size
        mel = np.zeros((batch, window, self.config.waveglow.n_mel_channels), np.float32)
        frames = np.full((batch, window), -1, np.int32)
        for row, (parts, mels_of_parts) in enumerate(zip(rows, mels, strict=True)):
            for part, own in zip(parts, mels_of_parts, strict=True):
                end = part.offset + part.stop - part.first
                filled = part.offset + self.context.whole(part.stop - part.first)
                mel[row, part.offset : end] = own
                mel[row, end:filled] = own[-1]
                frames[row, part.offset : end] = np.arange(part.first, part.stop)
        prepared = self._prepared(self._mesh(batch), dtype)
        y = self._programs[size](prepared, mel, frames, np.float32(sigma), np.uint32(seed))
        y = np.asarray(y).reshape(batch, window, self.config.data.hop_length)
        return [
            y[
                row, part.offset + part.begin - part.first : part.offset + part.end - part.first
            ].reshape(-1)
            for row, parts in enumerate(rows)
            for part in parts
        ]

    @property
    def _colour_frames(self) -> int:
        return self.context.whole(COLOUR_FRAMES)

    @property
    def _before(self) -> int:
        """The number of frames before a piece that the whitening needs: from the last of them it
        interpolates to the piece's first frame."""
        return 1 if self.config.data.mel.late else 0

    def _around(self, mel: np.ndarray, begin: int, end: int) -> np.ndarray:
        """The frames that colouring the frames `begin` to `end` needs: `_before` earlier ones (the
        first frame again at the utterance's start), and the next one unless it ends there."""
        missing = max(0, self._before - begin)
        around = mel[max(0, begin - self._before) : end + 1]
        return np.pad(around, ((missing, 0), (0, 0)), mode="edge")

    def _coloured(
        self, y: np.ndarray, mel: np.ndarray, past: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Colours whitened audio `[n * hop]`; returns the audio and the `past` of the next block.

        mel: the frames of `_around`. `past` `[order]` is the audio before the block.
        """
        if not self.config.waveglow.mel_whitening:
            return y, past
        hop, audio = self.config.data.hop_length, []
        frames = self._colour_frames
        for begin in range(0, len(y) // hop, frames):
            piece = y[begin * hop : (begin + frames) * hop]
            n_frames = self._before + frames + 1
            mel_of_piece = mel[begin : begin + n_frames]
            missing = n_frames - len(mel_of_piece)
            mel_of_piece = np.pad(mel_of_piece, ((0, missing), (0, 0)), mode="edge")
            padded = np.pad(piece, (0, frames * hop - len(piece)))
            audio.append(np.asarray(self._colour_program(padded, mel_of_piece, past))[: len(piece)])
            past = np.concatenate([past, audio[-1]])[len(audio[-1]) :]
        return np.concatenate(audio), past

    @cached_property
    def _silence(self) -> np.ndarray:
        return np.zeros(self.config.waveglow.whitening_order, np.float32)

    @cached_property
    def _programs(self) -> dict[tuple[int, int, str], jax.stages.Compiled]:
        return {}

    @cached_property
    def _colour_program(self) -> jax.stages.Compiled:
        samples = self._colour_frames * self.config.data.hop_length
        bins = self.config.waveglow.n_mel_channels
        shapes = (samples,), (self._before + self._colour_frames + 1, bins), self._silence.shape
        return compile_once(
            partial(_coloured_piece, self.config, self._before),
            *(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes),
            name="colour",
            devices=jax.devices()[:1],
            made_for=self.config,
        )

    def _mesh(self, batch: int) -> Mesh:
        return Mesh(np.asarray(self.devices[: spread(batch, self.devices)]), ("rows",))

    def _prepared(self, mesh: Mesh, dtype: str) -> Params:
        """The prepared parameters on every device of the mesh, computed once."""
        there = self._prepared_on
        folds = worth_folding(self.config, dtype, self.devices[0].platform, mesh.size)
        key = mesh, dtype if folds else None
        if key not in there:
            prepare = compile_once(
                prepare_inverse, self.params, name="prepare", devices=jax.devices()[:1]
            )
            prepared = prepare(self.params)
            if folds:
                prepared = fold_upsampler(prepared, self.config, dtype)
            there[key] = jax.device_put(prepared, NamedSharding(mesh, PartitionSpec()))
        return there[key]

    @cached_property
    def _prepared_on(self) -> dict[tuple[Mesh, str | None], Params]:
        return {}


def _whitened_windows(
    config: Config,
    dtype: str,
    prepared: Params,
    mel: jax.Array,
    frames: jax.Array,
    sigma: jax.Array,
    seed: jax.Array,
) -> jax.Array:
    """Windows of mel `[B, W, M]` -> whitened audio `[B, W * hop]`.

    frames `[B, W]` holds each frame's number within its utterance; a negative number means that
    there is no frame.
    """
    z = sigma * jax.vmap(lambda row: noise_of_frames(seed, config, row))(frames)
    mask = own_steps(frames >= 0, config)
    y, _ = inverse_whitened(
        prepared, config, z, mel, mask=mask.astype(z.dtype), dtype=jnp.dtype(dtype)
    )
    return y


def _coloured_piece(
    config: Config, before: int, y: jax.Array, mel: jax.Array, past: jax.Array
) -> jax.Array:
    """Whitened audio `[T]`, mel `[before + T / hop + 1, M]`, earlier audio `[order]` -> audio
    `[T]`."""
    return colour(y[None], mel[None], config, past=past[None], first_frame=before)[0][0]
