"""Mels of any length and number through one compiled program, window after window, exactly.

A window is a fixed number of mel frames, laid out as a tape: parts of one utterance or several,
with gaps between them that no convolution spans. Where an utterance is cut, so much of it lies on
either side that what is kept hears nothing of the cut. The whitening may predict from all samples
before, so audio is coloured after the windows, each utterance in pieces from its start.
Arrays: mel `[F, M]`; windows of it `[B, W, M]`; audio `[T]` with T = F * hop.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from waveglow_jax.config import Config
from waveglow_jax.flow.steps import conditioner_of
from waveglow_jax.flow.waveglow import (
    Params,
    colour,
    fold_upsampler,
    folded_size,
    inverse_whitened,
    noise_of_frames,
    prepare_inverse,
)
from waveglow_jax.synthesis.kept_traces import compile_once

SIZES_AN_OCTAVE = 4
SMALLEST_SIZE = 64


def size_at_least(n_frames: int) -> int:
    """The next of 64, 80, 96, 112, 128, 160, 192, 224, 256, 320 ...: few sizes are compiled."""
    size = SMALLEST_SIZE
    while size < n_frames:
        octave = SMALLEST_SIZE * 2 ** int(np.log2(size // SMALLEST_SIZE))
        size += octave // SIZES_AN_OCTAVE
    return size


# ------------------------------------------------------------------------------ cutting


@dataclass(frozen=True)
class Context:
    """Frames that a kept one hears before and after it, and the gap that keeps two mels apart."""

    left: int
    right: int
    gap: int


def context_of(config: Config) -> Context:
    """The config's receptive field in frames, rounded up.

    The receptive fields of the flows' conditioners add up. To the left there are also the frames
    whose upsampling overlaps; to the right the one that a whitening interpolates towards. In a gap
    the conditioners see zeros in every layer, so their widest layer must not span it, nor the
    upsampling.
    """
    glow, hop = config.waveglow, config.data.hop_length
    groups = hop // glow.n_group
    field = conditioner_of(config).receptive_field(config)
    reach = -(-glow.n_flows * field.total // groups)
    overlap = -(-glow.upsample_kernel // hop) - 1
    step = -(-field.widest_layer // groups)
    right = max(reach, 1) if glow.mel_whitening else reach
    return Context(reach + overlap, right, max(step, overlap, 1))


@dataclass(frozen=True)
class Part:
    """Frames `first` to `stop` of an utterance, at frame `offset` of a window.

    Of these, those from `begin` to `end` are kept; the others are context.
    """

    utterance: int
    offset: int
    first: int
    stop: int
    begin: int
    end: int


def pack(lengths: Iterable[int], window: int, context: Context) -> Iterator[list[Part]]:
    """Utterances of so many frames, laid out in windows: each frame is kept once, in order.

    An utterance is cut where a window ends, unless so little of it would fit that starting it in
    the next window costs nothing. Raises ValueError for one that is longer than a window with no
    room beside the context.
    """
    parts: list[Part] = []
    used = 0
    for utterance, length in enumerate(lengths):
        both = context.left + context.right
        if length > window <= both:
            raise ValueError(
                f"a window of {window} frames has no room beside the context of {both}: "
                f"take at least {both + 1}"
            )
        done = 0
        while done < length:
            first = max(0, done - context.left)
            stop = min(length, first + window - used)
            if parts and stop < length and stop - first <= both:
                yield parts
                parts, used = [], 0
                continue
            end = length if stop == length else stop - context.right
            parts.append(Part(utterance, used, first, stop, done, end))
            used += stop - first + context.gap
            done = end
    if parts:
        yield parts


@dataclass(frozen=True)
class Plan:
    """The size of the windows, how many go through the program at once, and what that costs."""

    window: int
    batch: int
    devices: int
    context: Context
    kept_frames: int
    computed_frames: int

    @property
    def overhead(self) -> float:
        """The share of the computed frames that is context, gap or padding."""
        return 1 - self.kept_frames / max(1, self.computed_frames)

    def __str__(self) -> str:
        c = self.context
        return (
            f"windows of {self.window} frames (context {c.left} + {c.right}), batch {self.batch} "
            f"on {self.devices} device{'s'[: self.devices > 1]}, overhead {self.overhead:.0%}"
        )


CPU_CALL_FRAMES, ACCELERATOR_CALL_FRAMES = 512, 16384
"""The most frames a device has at once: beyond, a CPU's caches no longer hold them (half as fast
from 640 on, for the bundled voice)."""
CONTEXTS = 14
"""Where the context alone is a quarter of that, so many times the context instead: such a model is
large, its products outweigh what caches spare, and little must be computed twice."""
MOST_FRAMES = 1 << 22
"""Of a window and batch that are given: more would be a slip of the finger."""
CPU_CALL_COST, ACCELERATOR_CALL_COST = 16, 2048
"""What a call costs beside its frames, as so many frames."""
WORK_COST = 0.25
"""What a frame costs wherever it is computed: several devices spare time, but not at any price."""
NOT_WORTH_COMPILING = 1.5
"""A program that is compiled already is taken if it costs at most so many times the best one."""


def choose(
    lengths: Sequence[int],
    context: Context,
    devices: Sequence[jax.Device],
    compiled: Collection[tuple[int, int]] = (),
    window: int | None = None,
    batch: int | None = None,
) -> Plan:
    """The window and batch that compute utterances of these lengths for the least.

    Of a few fixed sizes, those compiled already preferred; or as given. Raises ValueError if a
    given window is too small for its context, or either is below 1 or beyond all machines.
    """
    for name, value in (("window", window), ("batch", batch)):
        if value is not None and not 1 <= value <= MOST_FRAMES:
            raise ValueError(f"{name} {value} must be from 1 to {MOST_FRAMES}")
    if (window or 1) * (batch or 1) > MOST_FRAMES:
        raise ValueError(
            f"{batch} windows of {window} frames are over {MOST_FRAMES} frames at once"
        )
    on_cpu = devices[0].platform == "cpu"
    most = CPU_CALL_FRAMES if on_cpu else ACCELERATOR_CALL_FRAMES
    call = CPU_CALL_COST if on_cpu else ACCELERATOR_CALL_COST
    longest, both = max(lengths, default=1), context.left + context.right
    if 4 * both > most:
        most = CONTEXTS * both

    @cache
    def windows_of(size: int) -> int:
        return sum(1 for _ in pack(lengths, size, context))

    def cost(size: int, rows: int) -> tuple[float, int]:
        calls = -(-windows_of(size) // rows)
        in_time = calls * (call + rows // _spread(rows, devices) * size)
        return in_time + WORK_COST * calls * rows * size, size * rows

    sizes = [window] if window else [*_sizes(longest, both, most), *_shares(longest, both, most)]
    options = {
        (size, rows): cost(size, rows)
        for size in sizes
        for rows in ([batch] if batch else _batches(size, most, len(devices)))
    }
    there = {
        (size, rows): cost(size, rows)
        for size, rows in compiled
        if window in (None, size) and batch in (None, rows) and (size >= longest or size > both)
    }
    best = min(options, key=options.__getitem__)
    ready = min(there, key=there.__getitem__, default=None)
    if ready and there[ready][0] <= NOT_WORTH_COMPILING * options[best][0]:
        best = ready
    size, rows = best
    computed = -(-windows_of(size) // rows) * rows * size
    return Plan(size, rows, _spread(rows, devices), context, sum(lengths), computed)


def _sizes(longest: int, both: int, most: int) -> list[int]:
    """Windows that hold the longest utterance whole, or a good part of it beside its context."""
    sizes = [size_at_least(1)]
    while sizes[-1] < most:
        sizes.append(size_at_least(sizes[-1] + 1))
    return [size for size in sizes if size >= longest or size > both]


def _shares(longest: int, both: int, most: int) -> list[int]:
    """Windows that a few of cover the longest utterance with nothing left over, to 16 frames."""
    sizes = (-(-(longest + (n - 1) * both) // n // 16) * 16 for n in range(2, 9))
    return [size for size in sizes if max(both, SMALLEST_SIZE) < size <= most]


def _batches(size: int, most: int, n_devices: int) -> list[int]:
    """One row alone, or rows over all devices, in powers of two as long as they fit."""
    batches = [1] if n_devices > 1 else []
    rows = 1
    while not batches or rows == 1 or rows * size <= most:
        batches.append(rows * n_devices)
        rows *= 2
    return batches


def _spread(rows: int, devices: Sequence[jax.Device]) -> int:
    """The devices that so many rows go to: all, if they divide them."""
    return 1 if rows % len(devices) else len(devices)


# ------------------------------------------------------------------------------ running

FOLDED_BYTES = 2 << 30
"""The most that conditioning layers with the upsampler inside may take on all devices together."""
COLOUR_FRAMES = 32
"""Frames of a piece that is coloured at once."""


def worth_folding(config: Config, dtype: Any, platform: str, n_devices: int) -> bool:
    """Whether `fold_upsampler` spares products there, in the memory that it may take."""
    size = folded_size(config, dtype)
    return size is not None and platform != "tpu" and size * n_devices <= FOLDED_BYTES


class Piece(NamedTuple):
    """Samples `[n * hop]` of an utterance, and their frames of its log-mel `[n, M]`."""

    utterance: int
    audio: np.ndarray
    mel: np.ndarray


@dataclass(frozen=True)
class ReversePass:
    """The compiled reverse pass of one voice over some devices, and what runs it over windows.

    mels are float32 `[F, M]` that have been checked; sigma, seed and dtype as for
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
        """`choose` for utterances of these lengths, given what is compiled for that dtype."""
        compiled = [key[:2] for key in self._programs if key[2] == dtype]
        return choose(lengths, self.context, self.devices, compiled, window, batch)

    def compile(self, window: int, batch: int, dtype: str) -> float:
        """Compiles what such windows need; returns the seconds it took, 0 if nothing was missing.

        Two programs at most: one for windows of that size, one for all colouring.
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
        """Of the program for such windows, which has been compiled, with its arguments."""
        memory = self._programs[window, batch, dtype].memory_analysis()
        assert memory is not None
        sizes = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        return sum(sizes) + memory.output_size_in_bytes

    def blocks(
        self, mels: Iterable[np.ndarray], plan: Plan, sigma: float, seed: int, dtype: str
    ) -> Iterator[Piece]:
        """The audio of the mels: one mel after another, each in order.

        The mels are taken as the windows fill up, and let go of when their audio is there.
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
                audio, past = self._coloured(y, mel[part.begin : part.end + 1], past)
                if part.end == len(mel):
                    del held[part.utterance]
                yield Piece(part.utterance, audio, mel[part.begin : part.end])

    def stream(
        self, frames: Iterator[np.ndarray], chunk: int, sigma: float, seed: int, dtype: str
    ) -> Iterator[Piece]:
        """Audio of one mel whose frames `[f, M]` arrive over time, in blocks of `chunk` frames.

        A block is there `chunk + context.right` frames after its beginning; the last is shorter.
        """
        left, right = self.context.left, self.context.right
        window, hop = self.stream_plan(chunk).window, self.config.data.hop_length
        size = window, 1, dtype
        self.compile(*size)
        mel = np.zeros((0, self.config.waveglow.n_mel_channels), np.float32)
        start = done = 0  # frames before `mel`, frames whose audio is out
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
            audio, past = self._coloured(y, mel[done - start : end + 1 - start], past)
            for i in range(done, end, chunk):
                block = audio[(i - done) * hop : (i - done + chunk) * hop]
                yield Piece(0, block, mel[i - start : min(i + chunk, end) - start])
            done = end
            mel, start = mel[max(0, done - left) - start :], max(0, done - left)

    def stream_plan(self, chunk: int) -> Plan:
        """The windows that a stream's blocks of `chunk` frames are computed in, one at a time."""
        window = self.context.left + chunk + self.context.right
        return Plan(window, 1, 1, self.context, chunk, window)

    def ready_for(self, n_frames: int, dtype: str = "float32") -> tuple[int | None, int | None]:
        """The smallest window and batch compiled that so many frames can go through, if any."""
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
        """One call of the program of that size: the whitened audio that each part keeps, in order.

        mels: `[stop - first, M]` of each part.
        """
        window, batch, dtype = size
        mel = np.zeros((batch, window, self.config.waveglow.n_mel_channels), np.float32)
        frames = np.full((batch, window), -1, np.int32)
        for row, (parts, mels_of_parts) in enumerate(zip(rows, mels, strict=True)):
            for part, own in zip(parts, mels_of_parts, strict=True):
                place = slice(part.offset, part.offset + part.stop - part.first)
                mel[row, place] = own
                frames[row, place] = np.arange(part.first, part.stop)
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

    def _coloured(
        self, y: np.ndarray, mel: np.ndarray, past: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Whitened audio `[n * hop]` and its mel, a frame longer unless it ends there, to audio.

        `past` is the audio before, `[order]`; it is given back for the next block.
        """
        if not self.config.waveglow.mel_whitening:
            return y, past
        hop, audio = self.config.data.hop_length, []
        for begin in range(0, len(y) // hop, COLOUR_FRAMES):
            piece = y[begin * hop : (begin + COLOUR_FRAMES) * hop]
            mel_of_piece = mel[begin : begin + COLOUR_FRAMES + 1]
            missing = COLOUR_FRAMES + 1 - len(mel_of_piece)
            mel_of_piece = np.pad(mel_of_piece, ((0, missing), (0, 0)), mode="edge")
            padded = np.pad(piece, (0, COLOUR_FRAMES * hop - len(piece)))
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
        samples = COLOUR_FRAMES * self.config.data.hop_length
        bins = self.config.waveglow.n_mel_channels
        shapes = (samples,), (COLOUR_FRAMES + 1, bins), self._silence.shape
        return compile_once(
            partial(_coloured_piece, self.config),
            *(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes),
            name="colour",
            devices=jax.devices()[:1],
            made_for=self.config,
        )

    def _mesh(self, batch: int) -> Mesh:
        return Mesh(np.asarray(self.devices[: _spread(batch, self.devices)]), ("rows",))

    def _prepared(self, mesh: Mesh, dtype: str) -> Params:
        """The parameters of the reverse pass on every device of the mesh, made once."""
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

    frames `[B, W]` numbers each frame within its utterance; below 0 there is none.
    """
    z = sigma * jax.vmap(lambda row: noise_of_frames(seed, config, row))(frames)
    mask = jnp.repeat(frames >= 0, z.shape[1] // frames.shape[1], axis=1)
    y, _ = inverse_whitened(
        prepared, config, z, mel, mask=mask.astype(z.dtype), dtype=jnp.dtype(dtype)
    )
    return y


def _coloured_piece(config: Config, y: jax.Array, mel: jax.Array, past: jax.Array) -> jax.Array:
    """Whitened `[T]`, mel `[T / hop + 1, M]`, the audio before it `[order]` -> audio `[T]`."""
    return colour(y[None], mel[None], config, past=past[None])[0][0]
