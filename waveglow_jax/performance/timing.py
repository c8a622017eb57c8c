"""Times contenders that take turns, round after round, and tabulates the results.

Because they take turns, other load on the machine affects all of them alike. Ratios are medians
over the rounds.
"""

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from waveglow_jax.errors import UserError

SAME = 2e-3
"""Largest allowed difference between our and PyTorch's float32 outputs, over the largest value."""


@dataclass
class Contender:
    """A function that is timed.

    seconds: wall time of each round. cpu_seconds: CPU time of each round, all cores together.
    """

    name: str
    dtype: str
    run: Callable[[], Any]
    compile_seconds: float | None = None
    memory_bytes: int | None = None
    output: np.ndarray | None = None
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """One line of a benchmark's table.

    share_of_peak: computed from the FLOPs of the published form, even if fewer are executed.
    times_torch, times_torch_cpu: the median over the rounds of the ratio to each PyTorch line, by
    wall time and by CPU time.
    """

    what: str
    dtype: str
    compile_seconds: float | None
    seconds: float
    fastest: float
    slowest: float
    cpu_seconds: float
    samples_per_second: float
    times_real_time: float
    share_of_peak: float
    memory_bytes: int | None
    snr: float | None
    times_torch: dict[str, float]
    times_torch_cpu: dict[str, float]


Progress = Callable[[str], None]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's results.

    task, machine: what was run, and where. peaks: measured matmul FLOP/s of each dtype.
    """

    task: str
    machine: str
    peaks: dict[str, float]
    rows: tuple[Row, ...]


def take_turns(
    contenders: Sequence[Contender],
    repeats: int,
    progress: Progress,
    what: str,
    warm: bool = True,
) -> None:
    for contender in contenders if warm else ():
        progress(f"{what}, {contender.name} {contender.dtype}: first run")
        contender.output = contender.run()
    for turn in range(repeats):
        for contender in contenders:
            progress(f"{what}, {contender.name} {contender.dtype}: round {turn + 1} of {repeats}")
            began, cpu = time.perf_counter(), time.process_time()
            contender.run()
            contender.seconds.append(time.perf_counter() - began)
            contender.cpu_seconds.append(time.process_time() - cpu)


def rows_of(
    what: str,
    contenders: Sequence[Contender],
    n_samples: int,
    flops: float,
    rate: int,
    peaks: dict[str, float],
) -> list[Row]:
    exact = next((c.output for c in contenders if (c.name, c.dtype) == ("ours", "float32")), None)
    torches = [c for c in contenders if c.name == "PyTorch"]

    def times(contender: Contender, clock: str) -> dict[str, float]:
        return {
            each.dtype: float(np.median(np.divide(getattr(each, clock), getattr(contender, clock))))
            for each in torches
        }

    rows = []
    for each in contenders:
        seconds = float(np.median(each.seconds))
        # The peak of the units that the matmuls run on; CPUs have no float16 units.
        peak = peaks.get(each.dtype, float("nan"))
        rough = each.output if each.name == "ours" and each.dtype != "float32" else None
        rows.append(
            Row(
                what=f"{what}, {each.name}",
                dtype=each.dtype,
                compile_seconds=each.compile_seconds,
                seconds=seconds,
                fastest=min(each.seconds),
                slowest=max(each.seconds),
                cpu_seconds=float(np.median(each.cpu_seconds)),
                samples_per_second=n_samples / seconds,
                times_real_time=n_samples / rate / seconds,
                share_of_peak=flops / seconds / peak,
                memory_bytes=each.memory_bytes,
                snr=None if exact is None or rough is None else signal_to_noise(exact, rough),
                times_torch=times(each, "seconds"),
                times_torch_cpu=times(each, "cpu_seconds"),
            )
        )
    return rows


def signal_to_noise(exact: np.ndarray, audio: np.ndarray) -> float:
    """The ratio of the exact samples' power to the power of the difference, in dB."""
    exact = exact.astype(np.float64)
    return float(10 * np.log10(np.sum(exact**2) / np.sum((audio - exact) ** 2)))


def check_same(contenders: Sequence[Contender]) -> None:
    ours, theirs = (
        next((c.output for c in contenders if (c.name, c.dtype) == (name, "float32")), None)
        for name in ("ours", "PyTorch")
    )
    if ours is None:
        return
    off = np.abs(ours - theirs).max() / np.abs(ours).max()
    if not off <= SAME:
        raise UserError(f"PyTorch's samples are {off:.2g} of the peak off ours: not the same model")


def machine_at_hand() -> str:
    device = jax.local_devices()[0]
    kind = f"{os.cpu_count()} cores" if device.platform == "cpu" else device.device_kind
    return f"{kind}, {platform.machine()}, jax {jax.__version__}"


def as_json(found: Benchmark) -> dict[str, Any]:
    return dataclasses.asdict(found)


def as_text(found: Benchmark) -> str:
    """A Markdown table, and an explanation of its columns."""
    columns = [
        *("what", "dtype", "compile, s", "run, s (fastest to slowest)", "CPU, s", "samples/s"),
        *("x real time", "of peak", "memory, MiB", "SNR, dB"),
    ]
    torches = found.rows[0].times_torch
    columns += [f"x PyTorch {dtype}" for dtype in torches]
    lines = [_line(columns), _line("---" for _ in columns)]
    for row in found.rows:
        cells = [
            row.what,
            row.dtype,
            "" if row.compile_seconds is None else f"{row.compile_seconds:.1f}",
            f"{row.seconds:.3g} ({row.fastest:.3g} to {row.slowest:.3g})",
            f"{row.cpu_seconds:.3g}",
            f"{row.samples_per_second:,.0f}",
            f"{row.times_real_time:.2f}",
            f"{row.share_of_peak:.0%}" if np.isfinite(row.share_of_peak) else "",
            "" if row.memory_bytes is None else f"{row.memory_bytes / (1 << 20):,.0f}",
            "" if row.snr is None else f"{row.snr:.1f}",
            *(f"{row.times_torch[d]:.2f} ({row.times_torch_cpu[d]:.2f})" for d in torches),
        ]
        lines.append(_line(cells))
    peaks = ", ".join(f"{peak / 1e9:,.0f} GFLOP/s {dtype}" for dtype, peak in found.peaks.items())
    notes = [f"{found.task} on {found.machine}" + (f"; measured matmul peak {peaks}" * bool(peaks))]
    if torches:
        notes.append("x PyTorch: median ratio of the rounds by the clock (by CPU seconds)")
    return "\n".join([*notes, "", *lines])


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"
