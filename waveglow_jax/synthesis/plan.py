"""Planning: mels of any length and number are cut into windows of a few fixed sizes.

A window is a fixed number of mel frames, laid out as a tape: it holds parts of one or several
utterances, with gaps between them that no convolution spans. Where an utterance is cut, each side
has enough frames of context that no kept sample depends on the cut. Cuts and places on the tape are
multiples of the period (`Config.period`), where the boundaries of frames and groups meet.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import jax
import numpy as np

from waveglow_jax.config import Config
from waveglow_jax.flow.steps import conditioner_of

SIZES_AN_OCTAVE = 4
SMALLEST_SIZE = 64


def size_at_least(n_frames: int) -> int:
    """The next of the sizes 64, 80, 96, 112, 128, 160, 192, 224, 256, 320 ..., which are few."""
    size = SMALLEST_SIZE
    while size < n_frames:
        octave = SMALLEST_SIZE * 2 ** int(np.log2(size // SMALLEST_SIZE))
        size += octave // SIZES_AN_OCTAVE
    return size


@dataclass(frozen=True)
class Context:
    """Frames of context left and right of a kept frame, and the gap between two mels.

    All are multiples of the period, the frames between two places where an utterance may be cut.
    """

    left: int
    right: int
    gap: int
    period: int = 1

    def whole(self, frames: int) -> int:
        """The number of frames, rounded up to whole periods."""
        return -(-frames // self.period) * self.period


def context_of(config: Config) -> Context:
    """The config's receptive field in frames, rounded up to whole periods.

    The receptive fields of the flows' conditioners add up. The left context also contains the
    frames whose upsampling overlaps; each side contains at least the frame that a whitening
    interpolates towards. In a gap every layer of the conditioners sees zeros, so neither their
    widest layer nor the upsampling may span it.
    """
    glow, hop = config.waveglow, config.data.hop_length
    field = conditioner_of(config).receptive_field(config)
    reach = -(-glow.n_flows * field.total * glow.n_group // hop)
    overlap = -(-glow.upsample_kernel // hop) - 1
    step = -(-field.widest_layer * glow.n_group // hop)
    right = max(reach, 1) if glow.mel_whitening else reach
    left = reach + overlap
    if glow.mel_whitening and config.data.mel.late:
        left = max(left, 1)
    whole = Context(0, 0, 0, config.period).whole
    return Context(whole(left), whole(right), whole(max(step, overlap, 1)), config.period)


@dataclass(frozen=True)
class Part:
    """Frames `first` to `stop` of an utterance, at frame `offset` of a window.

    The frames from `begin` to `end` are kept; the others are context.
    """

    utterance: int
    offset: int
    first: int
    stop: int
    begin: int
    end: int


def pack(lengths: Iterable[int], window: int, context: Context) -> Iterator[list[Part]]:
    """Lays out utterances of these lengths in windows; each frame is kept once, in order.

    window: in frames, a multiple of the context's period.

    An utterance is cut where a window ends, unless so little of it would fit that starting it in
    the next window costs nothing. Raises ValueError if an utterance is longer than the window and
    the window has no room beside the context.
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
            used += context.whole(stop - first) + context.gap
            done = end
    if parts:
        yield parts


@dataclass(frozen=True)
class Plan:
    """The window size, the batch of windows per call, and the frames that this computes."""

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
"""Maximum number of frames per device and call. Above it a CPU's caches no longer hold them: with
the bundled voice, 640 frames or more run at half the speed."""
CONTEXTS = 14
"""If the context exceeds a quarter of that maximum, this many times the context is the maximum
instead. Such a model is large: its matmuls outweigh what caches save, and little should be computed
twice."""
MOST_FRAMES = 1 << 22
"""Maximum of window times batch where the caller gives them: more would be a typing error."""
CPU_CALL_COST, ACCELERATOR_CALL_COST = 16, 2048
"""Fixed cost of a call, expressed in frames."""
WORK_COST = 0.25
"""Cost of a computed frame on any device, so that saving time with more devices has a price."""
NOT_WORTH_COMPILING = 1.5
"""A program that is already compiled is used if it costs at most this many times the best one."""


def choose(
    lengths: Sequence[int],
    context: Context,
    devices: Sequence[jax.Device],
    compiled: Collection[tuple[int, int]] = (),
    window: int | None = None,
    batch: int | None = None,
) -> Plan:
    """Chooses the window and batch that compute utterances of these lengths at the least cost.

    They come from a few fixed sizes, with a preference for those already compiled; a given window
    is rounded up to whole periods, and a given batch is used as it is. Raises ValueError if a given
    window is too small for its context, if either value is not from 1 to `MOST_FRAMES`, or if their
    product exceeds `MOST_FRAMES`.
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
    longest, both = context.whole(max(lengths, default=1)), context.left + context.right
    window = context.whole(window) if window else None
    if 4 * both > most:
        most = CONTEXTS * both

    @cache
    def windows_of(size: int) -> int:
        return sum(1 for _ in pack(lengths, size, context))

    def cost(size: int, rows: int) -> tuple[float, int]:
        calls = -(-windows_of(size) // rows)
        in_time = calls * (call + rows // spread(rows, devices) * size)
        return in_time + WORK_COST * calls * rows * size, size * rows

    sizes = [window] if window else [*_sizes(longest, both, most), *_shares(longest, both, most)]
    options = {
        (size, rows): cost(size, rows)
        for size in dict.fromkeys(map(context.whole, sizes))
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
    return Plan(size, rows, spread(rows, devices), context, sum(lengths), computed)


def _sizes(longest: int, both: int, most: int) -> list[int]:
    """Sizes that hold the longest utterance whole, or a part of it beside its context."""
    sizes = [size_at_least(1)]
    while sizes[-1] < most:
        sizes.append(size_at_least(sizes[-1] + 1))
    return [size for size in sizes if size >= longest or size > both]


def _shares(longest: int, both: int, most: int) -> list[int]:
    """Sizes of which 2 to 8 windows just cover the longest utterance, rounded up to 16 frames."""
    sizes = (-(-(longest + (n - 1) * both) // n // 16) * 16 for n in range(2, 9))
    return [size for size in sizes if max(both, SMALLEST_SIZE) < size <= most]


def _batches(size: int, most: int, n_devices: int) -> list[int]:
    """Batches: a single row, or powers of two of rows per device, as long as they fit."""
    batches = [1] if n_devices > 1 else []
    rows = 1
    while not batches or rows == 1 or rows * size <= most:
        batches.append(rows * n_devices)
        rows *= 2
    return batches


def spread(rows: int, devices: Sequence[jax.Device]) -> int:
    """The number of devices for these rows: all, if they divide the rows evenly, otherwise one."""
    return 1 if rows % len(devices) else len(devices)
