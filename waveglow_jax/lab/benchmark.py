"""Speed on the machine at hand: the reverse pass, the training step, the loader; beside PyTorch.

What is compared takes turns within one process, round after round, so that whatever else the
machine does falls on all alike; ratios are medians over the rounds. Compile time is apart.
"""

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.audio.files import AUDIO_SUFFIXES
from waveglow_jax.audio.inputs import find_inputs
from waveglow_jax.audio.mel import log_mel_of_padded
from waveglow_jax.audio.sound import read_audio
from waveglow_jax.config import DTYPES, Config
from waveglow_jax.errors import UserError
from waveglow_jax.flow.likelihood import loss
from waveglow_jax.flow.steps import COUPLING, conditioner_of
from waveglow_jax.flow.waveglow import Params, forward, init, latent_noise
from waveglow_jax.synthesis.vocoder import Voice
from waveglow_jax.training.dataset import scan_corpus, training_batches
from waveglow_jax.training.parallel import parallel_train_step, replicate
from waveglow_jax.training.step import init_state
from waveglow_jax.weights.release import BUNDLED_VOICE

TORCH_DTYPES = ("float32", "bfloat16")
SAME = 2e-3
"""How far our outputs and PyTorch's in float32 may be apart, of the largest value."""


@dataclass
class Contender:
    """Something timed: seconds of each round, by the clock and of all cores together."""

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
    """One line of a benchmark's table. `flops` are the published form's, however few are computed;
    `times_torch` the rounds' median ratio to each PyTorch line, by the clock and by CPU seconds."""

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
    """task: what was run, on which machine; peaks: measured matmul FLOP/s of each dtype."""

    task: str
    machine: str
    peaks: dict[str, float]
    rows: tuple[Row, ...]


# ------------------------------------------------------------------------------ reverse pass


def benchmark_reverse(
    voice: Voice,
    seconds: Sequence[float],
    dtypes: Sequence[str],
    repeats: int,
    against_torch: bool = False,
    progress: Progress = lambda stage: None,
) -> Benchmark:
    """`voice.synthesize` of one utterance of each length, mel to samples.

    progress: called with what is being done. Raises UserError if PyTorch is asked for and missing,
    or computes something else.
    """
    torch_reverse = _torch_reverse(voice) if against_torch else None
    config, rows, peaks = voice.config, [], measured_peaks()
    for length in seconds:
        frames = max(1, round(length * config.data.sampling_rate / config.data.hop_length))
        mel = _speech_mel(voice, frames)
        contenders = []
        for dtype in dtypes:
            progress(f"{length:g} s, {dtype}: compiling")
            contenders.append(_our_reverse(voice, mel, dtype))
        if torch_reverse:
            contenders += [torch_reverse(mel, dtype) for dtype in TORCH_DTYPES]
        _take_turns(contenders, repeats, progress, f"{length:g} s")
        if torch_reverse:
            _check_same(contenders)
        n_samples = frames * config.data.hop_length
        flops = forward_flops(config, n_samples)
        what = f"{length:g} s"
        rows += _rows(what, contenders, n_samples, flops, config.data.sampling_rate, peaks)
    return Benchmark("reverse pass", _machine(), peaks, tuple(rows))


def _our_reverse(voice: Voice, mel: np.ndarray, dtype: str) -> Contender:
    plan = voice.plan([len(mel)], dtype)
    compiling = voice.compile(plan, dtype, consistency=0)
    sigma = voice.config.synthesis.sigma
    return Contender(
        "ours",
        dtype,
        lambda: voice.synthesize(mel, sigma=sigma, dtype=dtype, consistency=0),
        compiling,
        voice.memory_bytes(plan, dtype),
    )


def _torch_reverse(voice: Voice) -> Callable[[np.ndarray, str], Contender]:
    torch, model_of = _torch(voice.config)
    models = {
        dtype: model_of.from_params(voice.params, voice.config).ready_for_synthesis(
            getattr(torch, dtype)
        )
        for dtype in TORCH_DTYPES
    }

    def contender(mel: np.ndarray, dtype: str) -> Contender:
        z = latent_noise(0, voice.config, len(mel)) * voice.config.synthesis.sigma
        inputs = torch.from_numpy(np.array(z))[None], torch.from_numpy(mel.T.copy())[None]
        return Contender("PyTorch", dtype, lambda: models[dtype].inverse(*inputs)[0].numpy())

    return contender


def _speech_mel(voice: Voice, frames: int) -> np.ndarray:
    """The bundled recordings' mel, over and over, `[frames, M]`."""
    inputs = find_inputs([str(BUNDLED_VOICE / "recordings")], AUDIO_SUFFIXES)
    rate = voice.config.data.sampling_rate
    mel = np.concatenate([voice.mel(read_audio(each.path, rate)) for each in inputs])
    return np.resize(mel, (frames, mel.shape[1]))


def random_voice(config: Config) -> Voice:
    """Of the config's shape, with lively last layers: zero ones would compare nothing."""
    params = init(jax.random.key(config.train.seed), config)
    return Voice(config, _lively(params, config))


def _lively(params: Params, config: Config) -> Params:
    rng = np.random.default_rng(0)
    lively = conditioner_of(config).lively
    flows = [
        {**flow, COUPLING.name: lively(flow[COUPLING.name], rng, 0.02)} for flow in params["flows"]
    ]
    return {**params, "flows": flows}


# ------------------------------------------------------------------------------ training step


def benchmark_training(
    config: Config,
    batch: int,
    dtypes: Sequence[str],
    repeats: int,
    against_torch: bool = False,
    progress: Progress = lambda stage: None,
) -> Benchmark:
    """One training step on one device, the same noise for all; ours computes the mel too.

    Raises UserError as `benchmark_reverse` does.
    """
    torch = _torch(config) if against_torch else None
    train = dataclasses.replace(config.train, batch_size=batch, gradient_accumulation=1)
    config = dataclasses.replace(config, train=train)
    params = _lively(init(jax.random.key(train.seed), config), config)
    size = batch, config.data.segment_length + config.data.filter_length
    clips = 0.1 * np.random.default_rng(0).normal(size=size).astype(np.float32)
    torch_step = _torch_training(params, config, clips, *torch) if torch else None
    peaks = measured_peaks()
    contenders = []
    for dtype in dtypes:
        progress(f"{dtype}: compiling")
        contenders.append(_our_training(params, config, clips, dtype))
    if torch_step:
        contenders.append(torch_step)
    _take_turns(contenders, repeats, progress, "training steps")
    n_samples = batch * config.data.segment_length
    flops = 3 * forward_flops(config, n_samples)
    what = f"{batch} clips of {config.data.segment_length}"
    rows = _rows(what, contenders, n_samples, flops, config.data.sampling_rate, peaks)
    return Benchmark("training step", _machine(), peaks, tuple(rows))


def _our_training(params: Params, config: Config, clips: np.ndarray, dtype: str) -> Contender:
    train = dataclasses.replace(config.train, wn_dtype=dtype)
    config = dataclasses.replace(config, train=train)
    device = jax.local_devices()[:1]
    state = replicate(init_state(config, params), device)
    batch = {"clips": clips[None], "index": np.arange(len(clips), dtype=np.int32)[None]}
    # On one device `parallel_train_step` gives the jitted function itself.
    jitted = cast(jax.stages.Wrapped, parallel_train_step(config, train.steps, device))
    lowered = jitted.lower(state, batch)
    began = time.monotonic()
    step = lowered.compile()
    compiling = time.monotonic() - began

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        float(metrics["loss"])

    return Contender("ours", dtype, run, compiling, bytes_of(step))


def _torch_training(
    params: Params, config: Config, clips: np.ndarray, torch: Any, model_of: ModuleType
) -> Contender:
    half = config.data.filter_length // 2
    audio = clips[:, half : half + config.data.segment_length]
    mel = np.asarray(jax.jit(log_mel_of_padded, static_argnums=1)(clips, config))
    inputs = (
        torch.from_numpy(audio.copy()),
        torch.from_numpy(mel.transpose(0, 2, 1).copy()),
    )
    trainer = model_of.Trainer(model_of.from_params(params, config))
    z, log_det = jax.jit(forward, static_argnums=1)(params, config, audio, mel)
    ours, theirs = float(loss(z, log_det, config.train.sigma)), trainer.loss_of(*inputs)
    if not abs(ours - theirs) <= SAME * abs(ours):
        raise UserError(f"PyTorch's loss is {theirs:.6f}, ours {ours:.6f}: not the same model")
    return Contender("PyTorch", "float32", lambda: trainer.step(*inputs))


# ------------------------------------------------------------------------------ loader


def benchmark_loader(
    config: Config, data: str, repeats: int, progress: Progress = lambda stage: None
) -> Benchmark:
    """Training batches read and decoded, nothing computed from them; a round is a second at least.

    Raises UserError for data that cannot be used.
    """
    batches = training_batches(scan_corpus(data, config).training, config)
    a_batch = config.train.batch_size * config.data.segment_length
    next(batches)
    began, rounds = time.monotonic(), 0
    while time.monotonic() - began < 1 or rounds < 4:
        next(batches)  # what was read ahead meanwhile would flatter the first round
        rounds += 1

    def run() -> None:
        for _ in range(rounds):
            next(batches)

    loader = Contender(f"loader, {config.train.num_workers} workers", "", run)
    _take_turns([loader], repeats, progress, "reading", warm=False)
    n_samples, rate = rounds * a_batch, config.data.sampling_rate
    return Benchmark("loader", _machine(), {}, tuple(_rows(data, [loader], n_samples, 0, rate, {})))


# ------------------------------------------------------------------------------ measuring


def _take_turns(
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


def _rows(
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
        # The peak of the units that the products run on: float16 has none of its own on CPUs.
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
    """The power of the exact samples over that of the difference, in dB."""
    exact = exact.astype(np.float64)
    return float(10 * np.log10(np.sum(exact**2) / np.sum((audio - exact) ** 2)))


def _check_same(contenders: Sequence[Contender]) -> None:
    ours, theirs = (
        next((c.output for c in contenders if (c.name, c.dtype) == (name, "float32")), None)
        for name in ("ours", "PyTorch")
    )
    if ours is None:
        return
    off = np.abs(ours - theirs).max() / np.abs(ours).max()
    if not off <= SAME:
        raise UserError(f"PyTorch's samples are {off:.2g} of the peak off ours: not the same model")


def measured_peaks(size: int = 2048) -> dict[str, float]:
    """FLOP/s of the best of ten square products in each dtype, summed in float32."""

    @jax.jit
    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b, preferred_element_type=jnp.float32)

    peaks = {}
    for dtype in DTYPES:
        a = jnp.ones((size, size), dtype)
        times = []
        for _ in range(11):
            began = time.perf_counter()
            product(a, a).block_until_ready()
            times.append(time.perf_counter() - began)
        peaks[dtype] = 2 * size**3 / min(times[1:])
    return peaks


def forward_flops(config: Config, n_samples: int) -> float:
    """FLOPs of one direction as published, two per multiplication and its sum."""
    glow, conditioner = config.waveglow, conditioner_of(config)
    flows = sum(
        conditioner.flops(config, channels // 2) + 2 * channels**2
        for channels in map(glow.channels, range(glow.n_flows))
    )
    per = 1 if glow.conditioning == "sample" else glow.n_group
    upsampler = glow.upsample_kernel / config.data.hop_length * glow.n_mel_channels**2 / per
    return n_samples * (flows / glow.n_group + 2 * upsampler)


def bytes_of(compiled: jax.stages.Compiled) -> int | None:
    """What the compiler plans for arguments, results and temporaries; None if it does not say."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + new


def _machine() -> str:
    device = jax.local_devices()[0]
    kind = f"{os.cpu_count()} cores" if device.platform == "cpu" else device.device_kind
    return f"{kind}, {platform.machine()}, jax {jax.__version__}"


def _torch(config: Config) -> tuple[Any, ModuleType]:
    """PyTorch, and the model in it that stands beside ours."""
    glow = config.waveglow
    if glow.mel_whitening or glow.conditioning != "sample" or glow.alternating_halves:
        raise UserError(
            "--against torch: only models of the published kind have a PyTorch form here (no "
            "mel_whitening, conditioning 'sample'); take --config nvidia256"
        )
    try:
        import torch
    except ImportError:
        raise UserError(
            "--against torch: PyTorch is not installed; pip install torch, or leave it out"
        ) from None
    from waveglow_jax.lab import torch_waveglow

    return torch, torch_waveglow


# ------------------------------------------------------------------------------ telling


def as_json(found: Benchmark) -> dict[str, Any]:
    return dataclasses.asdict(found)


def as_text(found: Benchmark) -> str:
    """A Markdown table, and what its columns say."""
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
