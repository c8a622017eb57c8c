"""Tests, measures and trains on an accelerator, and stores each result at once.

    python benchmarks/measurements/accelerator_day.py -o OUT [--stages machine tests ...]
        [--scale full|tiny] [--data CORPUS] [--minutes STAGE=MINUTES ...]

Each stage is a process of its own with a time limit. It writes one line of JSON to
OUT/STAGE.jsonl as soon as it has measured something, so that nothing is lost when the time is up.
The same command resumes where it was stopped: it does not repeat measurements that OUT already
holds. OUT/report.md has a table for each stage.

Stages: machine (device, driver, measured peaks), tests (the suite's accelerator part), reverse (mel
to samples, beside PyTorch), training (one step, beside PyTorch), invertibility (round trips at each
matmul precision), voice (a training run on CORPUS, for the remaining time).

docs/how-to/accelerator.md explains the tables.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# The JAX and the PyTorch of one process share the device's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

MINUTES = {
    "machine": 2.0,
    "reverse": 12.0,
    "training": 12.0,
    "tests": 8.0,
    "invertibility": 5.0,
    "voice": 60.0,
}
"""Time limits of the stages, which run in this order."""

SECONDS_TO_STOP = 90
"""Time that a stage has to finish after its limit; the training run saves a checkpoint and a
release."""

PUBLISHED_FIGURES = {
    "reverse": "The published model card states 1,200 kHz in float16 on one V100 (256 channels).",
    "training": "DeepLearningExamples reports 149,479 samples/s on one A100 (512 channels, AMP).",
}

SHAPES = ("nvidia256", "paper")
"""The configs of the published model's shape and of the paper's."""

SECONDS_OF_COMPILING = 150
"""Generous upper bound of the time that a training run needs before its first step."""


@dataclass(frozen=True)
class Scale:
    """The size of the measurements."""

    matmul: int
    copy_bytes: int
    sizes: tuple[tuple[float, int], ...]
    """Seconds and batch of each reverse pass, the most informative first."""
    steps: tuple[tuple[str, int, bool], ...]
    """Config, clips and `checkpoint_flows` of each training step, the most informative first."""
    at_once: int
    """Number of programs that are compiled concurrently."""
    few: tuple[tuple[str, int], ...]
    """Fields of waveglow_config that make the models small, for a rehearsal."""


SCALES = {
    "full": Scale(
        matmul=8192,
        copy_bytes=1 << 30,
        sizes=((10, 8), (10, 1), (1, 1), (60, 1), (10, 32), (1, 8), (1, 32), (60, 8), (60, 32)),
        steps=(
            ("voice_gpu", 64, False),
            *((name, 24, False) for name in SHAPES),
            ("nvidia256", 96, False),
            ("paper", 48, False),
            *((name, 96, True) for name in SHAPES),
            *((name, clips, again) for clips in (12, 192) for name in SHAPES for again in (0, 1)),
        ),
        at_once=6,
        few=(),
    ),
    "tiny": Scale(
        matmul=256,
        copy_bytes=1 << 20,
        sizes=((0.1, 2), (0.1, 1)),
        steps=(("voice_gpu", 1, False), *((name, 1, k) for name in SHAPES for k in (False, True))),
        at_once=2,
        few=(("n_flows", 2), ("n_early_every", 1)),
    ),
}


# ------------------------------------------------------------------------------ the whole day


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    parser.add_argument("--stages", nargs="+", choices=MINUTES, default=list(MINUTES))
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--data", type=Path, metavar="CORPUS", help="recordings, for stage voice")
    parser.add_argument("--minutes", nargs="+", default=[], metavar="STAGE=MINUTES")
    parser.add_argument("--run-stage", help=argparse.SUPPRESS)  # for the process of a stage
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.run_stage:
        return run_stage(arguments)
    limits = limits_of(arguments)
    failed = 0
    for name in arguments.stages:
        command = [sys.executable, __file__, *sys.argv[1:], "--run-stage", name]
        began = time.monotonic()
        outcome = finished(command, 60 * limits[name])
        failed += outcome.startswith("ended")
        Rows(arguments.output, "stages").write(
            key=f"{name} {time.time():.0f}",
            stage=name,
            seconds=time.monotonic() - began,
            outcome=outcome,
        )
        print(f"{name}: {outcome}", flush=True)
        (arguments.output / "report.md").write_text(report(arguments.output), encoding="utf-8")
    return 1 if failed else 0


def limits_of(arguments: argparse.Namespace) -> dict[str, float]:
    """Minutes of each stage."""
    named = (name.partition("=") for name in arguments.minutes)
    return MINUTES | {name: float(minutes) for name, _, minutes in named}


def finished(command: list[str], seconds: float) -> str:
    """Runs a command and returns how its process ended.

    At its time limit, the process group gets SIGTERM first and is then killed.
    """
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        outcome = f"stopped at its limit of {seconds / 60:g} minutes"
    else:
        return "done" if code == 0 else f"ended with exit code {code}"
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return outcome


class Rows:
    """The JSON lines of one stage, each with a `key` that names what was measured."""

    def __init__(self, output: Path, stage: str):
        self.path = output / f"{stage}.jsonl"
        if self.path.exists():
            # A line that a time limit cut short is removed and measured again.
            whole, _, cut = self.path.read_text(encoding="utf-8").rpartition("\n")
            if cut:
                self.path.write_text(whole + "\n" * bool(whole), encoding="utf-8")
        self.known = {row["key"] for row in self.read()}

    def read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def write(self, **row: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.known.add(row["key"])

    def measure(self, key: str, work: Callable[[], dict[str, Any]]) -> None:
        """Writes the result of the work, or "out of memory" if the memory does not suffice."""
        if key in self.known:
            return
        try:
            found = work()
        except Exception as error:
            if not out_of_memory(error):
                raise
            found = {"failed": "out of memory"}
        self.write(key=key, **found)
        print(json.dumps({"key": key, **found}), flush=True)


def out_of_memory(error: Exception) -> bool:
    text = f"{type(error).__name__} {error}"
    return any(word in text for word in ("RESOURCE_EXHAUSTED", "OutOfMemory", "out of memory"))


def run_stage(arguments: argparse.Namespace) -> int:
    stage = {
        "machine": measure_machine,
        "tests": run_tests,
        "reverse": measure_reverse,
        "training": measure_training,
        "invertibility": measure_invertibility,
        "voice": train_voice,
    }[arguments.run_stage]
    rows = Rows(arguments.output, arguments.run_stage)
    return stage(rows, SCALES[arguments.scale], arguments) or 0


# ------------------------------------------------------------------------------ measuring


SECONDS_OF_TIMING = 3.0
"""Total duration of the rounds of one measurement; there are 2 to 20 of them."""


def median_seconds(run: Callable[[], Any]) -> float:
    """The median seconds of several runs after a warm-up run. `run` waits for its own result."""
    return in_turns({"only": run})["only"]


def in_turns(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The median seconds of each function; every round runs them one after another."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    ends = time.perf_counter() + SECONDS_OF_TIMING
    for n in range(20):
        if n >= 2 and time.perf_counter() > ends:
            break
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: sorted(found)[len(found) // 2] for name, found in seconds.items()}


Timing = Callable[[], dict[str, Any]]


def measure_all(
    rows: Rows, jobs: dict[str, Callable[[], Timing]], names: Iterable[str], scale: Scale
) -> None:
    """Compiles `scale.at_once` programs concurrently, times them one by one, then takes the next.

    A job compiles and returns the function that measures. A program takes one to two minutes of one
    core to compile here, so compiling one after another would take hours. If one measurement fails,
    the others still run.
    """
    for name in names:  # before the threads start, each of which would make them
        parameters(name, scale)
    keys, failures = [key for key in jobs if key not in rows.known], []
    for first in range(0, len(keys), scale.at_once):
        some = keys[first : first + scale.at_once]
        with ThreadPoolExecutor(scale.at_once) as pool:
            compiled = {key: pool.submit(jobs[key]) for key in some}
        for key in some:
            try:
                rows.measure(key, partial(timed, compiled[key]))
            except Exception as error:
                print(f"{key}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                failures.append(error)
    if failures:
        raise failures[0]


def timed(compiled: Future[Timing]) -> dict[str, Any]:
    return compiled.result()()


@cache
def shape(name: str, scale: Scale) -> Any:
    """The config of this name, made small for a rehearsal."""
    from waveglow_jax.config import load_config

    config = load_config(ROOT / "configs" / f"{name}.json")
    if not scale.few:
        return config
    wn = replace(config.waveglow.WN_config, n_layers=2, n_channels=8, n_skip_channels=8)
    return replace(config, waveglow=replace(config.waveglow, **dict(scale.few), WN_config=wn))


@cache
def parameters(name: str, scale: Scale) -> Any:
    """Random parameters, made on the CPU, where hundreds of small operations compile fast."""
    import jax

    from waveglow_jax.performance.benchmark import random_voice

    with jax.default_device(jax.devices("cpu")[0]):
        return jax.device_get(random_voice(shape(name, scale)).params)


@cache
def torch_model(name: str, scale: Scale) -> Any:
    """The same parameters in PyTorch, on the device."""
    from waveglow_jax.performance.torch_waveglow import from_params

    return from_params(parameters(name, scale), shape(name, scale)).to(torch_device())


def torch_device() -> Any:
    """PyTorch's device beside JAX's, or None where PyTorch is missing."""
    import jax

    try:
        import torch
    except ImportError:
        return None
    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and not torch.cuda.is_available():
        return None
    # We compute float32 in full precision; TF32 would compute another function.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if on_gpu else "cpu")


def synchronised(run: Callable[[], Any], device: Any) -> Callable[[], Any]:
    """The function with a wait for PyTorch's device to finish."""
    import torch

    def wait() -> Any:
        result = run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return result

    return wait


def add_torch_compile(
    inverse: Any,
    inputs: Any,
    device: Any,
    runs: dict[str, Callable[[], Any]],
    found: dict[str, Any],
) -> None:
    """Adds PyTorch's compiled reverse pass to the runs; if that fails, `found` records it."""
    import torch

    began = time.perf_counter()
    program = torch.compile(inverse)
    run = synchronised(lambda: program(*inputs), device)
    try:
        run()
    except Exception as error:  # its compiler may lack anything here
        found["torch_compile"] = f"failed: {type(error).__name__}"
    else:
        found["torch_compile_seconds"] = time.perf_counter() - began
        runs["compiled"] = run


# ------------------------------------------------------------------------------ stages


def measure_machine(rows: Rows, scale: Scale, _: argparse.Namespace) -> None:
    """Measures FLOP/s of matmuls and bytes/s of a copy, and records the device and the versions."""
    import jax
    import jax.numpy as jnp
    import jaxlib

    device = jax.local_devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")

    def versions() -> dict[str, Any]:
        query = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total",
            "--format=csv,noheader",
        ]
        try:
            driver = subprocess.run(
                query, capture_output=True, text=True, timeout=60
            ).stdout.strip()
        except OSError:
            driver = ""
        return {
            "device": device.device_kind,
            "count": jax.device_count(),
            "memory_bytes": memory,
            "driver": driver,
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "python": sys.version.split()[0],
        }

    rows.measure("versions", versions)
    size = scale.matmul
    for name, dtype, precision in (
        ("bfloat16", "bfloat16", "default"),
        ("float16", "float16", "default"),
        ("float32, default (TF32 on such GPUs)", "float32", "default"),
        ("float32, highest", "float32", "highest"),
    ):

        def product(dtype: str = dtype, precision: str = precision) -> dict[str, Any]:
            a = jax.random.normal(jax.random.key(0), (size, size), jnp.float32).astype(dtype)
            run = jax.jit(lambda x: jnp.matmul(x, x, precision=precision))
            seconds = median_seconds(lambda: run(a).block_until_ready())
            return {"flops_per_second": 2 * size**3 / seconds}

        rows.measure(f"matmul {name}", product)

    def copy() -> dict[str, Any]:
        x = jnp.zeros(scale.copy_bytes // 4, jnp.float32)
        run = jax.jit(lambda x: x + 1)
        seconds = median_seconds(lambda: run(x).block_until_ready())
        return {"bytes_per_second": 2 * scale.copy_bytes / seconds}

    rows.measure("copy, bytes read and written", copy)


def run_tests(rows: Rows, scale: Scale, arguments: argparse.Namespace) -> int:
    """Runs tests/test_accelerator.py, then the default tests, on this device.

    Several processes can share a GPU, but not a TPU.
    """
    several = ["-n", "4" if shutil.which("nvidia-smi") else "0"]
    of_accelerators = ["-m", "", "tests/test_accelerator.py"]
    worst = 0
    for name, what in (("of accelerators", of_accelerators), ("default", several)):
        if scale.few and what is several:
            continue
        log = arguments.output / f"tests_{name.replace(' ', '_')}.log"
        command = [sys.executable, "-m", "pytest", "-n", "0", "-rs", "-p", "no:cacheprovider"]
        environment = {**os.environ, "WAVEGLOW_JAX_TEST_DEVICE": "accelerator"}
        with log.open("w", encoding="utf-8") as file:
            done = subprocess.run(
                [*command, *what], cwd=ROOT, env=environment, stdout=file, stderr=file
            )
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1]
        rows.write(key=f"{name} {time.time():.0f}", exit_code=done.returncode, summary=last)
        worst = max(worst, done.returncode)
    return worst


def measure_reverse(rows: Rows, scale: Scale, _: argparse.Namespace) -> None:
    """Times mel and noise on the device -> samples on the device, in turns with PyTorch."""
    from waveglow_jax.config import DTYPES

    jobs = {
        f"{name}, {seconds:g} s x {batch}, {dtype}": partial(
            reverse, name, seconds, batch, dtype, scale
        )
        for seconds, batch in scale.sizes
        for name in SHAPES
        for dtype in DTYPES
    }
    measure_all(rows, jobs, SHAPES, scale)


def reverse(name: str, seconds: float, batch: int, dtype: str, scale: Scale) -> Timing:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from waveglow_jax.flow.waveglow import fold_upsampler, inverse_prepared, prepare_inverse
    from waveglow_jax.performance.benchmark import bytes_of, forward_flops
    from waveglow_jax.synthesis.reverse_pass import worth_folding

    config, params = shape(name, scale), parameters(name, scale)
    glow, data = config.waveglow, config.data
    frames = max(1, round(seconds * data.sampling_rate / data.hop_length))
    n_samples = frames * data.hop_length
    rng = np.random.default_rng(0)
    z = rng.normal(size=(batch, n_samples // glow.n_group, glow.n_group)).astype(np.float32)
    mel = rng.normal(-5, 1, size=(batch, frames, glow.n_mel_channels)).astype(np.float32)

    def samples_of(prepared: Any, z: Any, mel: Any) -> Any:
        return inverse_prepared(prepared, config, z, mel, dtype=jnp.dtype(dtype))[0]

    def prepare(params: Any) -> Any:
        prepared = jax.jit(prepare_inverse)(params)
        if worth_folding(config, dtype, jax.default_backend(), 1):
            prepared = fold_upsampler(prepared, config, jnp.dtype(dtype))
        return prepared

    program = jax.jit(samples_of).lower(jax.eval_shape(prepare, params), z, mel)
    began = time.perf_counter()
    compiled = program.compile()
    found: dict[str, Any] = {
        "samples": batch * n_samples,
        "flops": forward_flops(config, batch * n_samples),
        "compile_seconds": time.perf_counter() - began,
        "memory_bytes": bytes_of(compiled),
    }

    def timing() -> dict[str, Any]:
        prepared, inputs = prepare(params), (jnp.asarray(z), jnp.asarray(mel))
        runs = {"ours": lambda: compiled(prepared, *inputs).block_until_ready()}
        ours = np.asarray(compiled(prepared, *inputs))
        if (device := torch_device()) is None:
            return {**found, "median_seconds": in_turns(runs)}
        import torch

        torch.cuda.empty_cache()
        model = deepcopy(torch_model(name, scale)).ready_for_synthesis(getattr(torch, dtype))
        theirs = torch.from_numpy(z).to(device), torch.from_numpy(mel).mT.contiguous().to(device)
        eager = synchronised(lambda: model.inverse(*theirs), device)
        try:
            made = eager().float().cpu().numpy()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return {**found, "eager": "out of memory", "median_seconds": in_turns(runs)}
        found["difference"] = float(np.abs(ours - made).max() / np.abs(made).max())
        runs["eager"] = eager
        if (seconds, batch) == scale.sizes[0] and dtype == "bfloat16":  # compiling takes a minute
            add_torch_compile(model.inverse, theirs, device, runs, found)
        return {**found, "median_seconds": in_turns(runs)}

    return timing


def measure_training(rows: Rows, scale: Scale, _: argparse.Namespace) -> None:
    """Times one step in bfloat16, including the mel, beside PyTorch under autocast."""
    jobs = {step_key(*step): partial(training_step, *step, scale) for step in scale.steps}
    measure_all(rows, jobs, {step[0] for step in scale.steps}, scale)


def step_key(name: str, clips: int, checkpointed: bool) -> str:
    return f"{name}, {clips} clips" + ", checkpoint_flows" * checkpointed


def training_step(name: str, clips: int, checkpointed: bool, scale: Scale) -> Timing:
    import jax
    import numpy as np

    from waveglow_jax.audio.mel import log_mel_of_padded
    from waveglow_jax.performance.benchmark import bytes_of, forward_flops
    from waveglow_jax.training.batch import Batch
    from waveglow_jax.training.parallel import parallel_train_step, replicate
    from waveglow_jax.training.step import init_state

    config = shape(name, scale)
    train = replace(
        config.train, batch_size=clips, checkpoint_flows=bool(checkpointed), wn_dtype="bfloat16"
    )
    config, devices, data = replace(config, train=train), jax.local_devices()[:1], config.data
    params = parameters(name, scale)
    audio = np.random.default_rng(0).normal(size=(clips, data.segment_length + data.filter_length))
    audio = (0.1 * audio).astype(np.float32)
    batch = Batch(clips=audio[None], index=np.arange(clips, dtype=np.int32)[None])
    shapes = jax.eval_shape(partial(init_state, config), params)
    program = parallel_train_step(config, train.steps, devices).lower(shapes, batch)
    began = time.perf_counter()
    step = program.compile()
    n_samples = clips * data.segment_length
    found: dict[str, Any] = {
        "samples": n_samples,
        "flops": 3 * forward_flops(config, n_samples),
        "compile_seconds": time.perf_counter() - began,
        "memory_bytes": bytes_of(step),
    }

    def timing() -> dict[str, Any]:
        with jax.default_device(jax.devices("cpu")[0]):
            first = jax.device_get(init_state(config, params))
        state = replicate(first, devices)

        def ours() -> None:
            nonlocal state
            state, metrics = step(state, batch)
            float(metrics["loss"])

        runs: dict[str, Callable[[], Any]] = {"ours": ours}
        device = torch_device()
        if device is None or checkpointed or config.waveglow.mel_whitening:
            return {**found, "median_seconds": in_turns(runs)}
        import torch

        from waveglow_jax.performance.torch_waveglow import Trainer

        torch.cuda.empty_cache()
        half = data.filter_length // 2
        clip = torch.from_numpy(audio[:, half : half + data.segment_length].copy()).to(device)
        mel = np.asarray(jax.jit(log_mel_of_padded, static_argnums=1)(audio, config))
        mel = torch.from_numpy(mel.transpose(0, 2, 1).copy()).to(device)
        trainer = Trainer(deepcopy(torch_model(name, scale)))

        def autocast() -> None:
            with torch.autocast(device.type, dtype=torch.bfloat16):
                trainer.step(clip, mel)

        try:
            autocast()
            runs["autocast"] = synchronised(autocast, device)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            found["autocast"] = "out of memory"
        return {**found, "median_seconds": in_turns(runs)}

    return timing


def measure_invertibility(rows: Rows, scale: Scale, _: argparse.Namespace) -> None:
    """Measures round trips of the bundled voice and of random weights, per matmul precision."""
    import waveglow_jax as wg

    for precision in ("default", "high", "highest"):
        for name in ("bundled voice", "nvidia256"):

            def round_trips(name: str = name, precision: str = precision) -> dict[str, Any]:
                if name == "bundled voice":
                    voice = wg.load(keep_programs=False)
                else:
                    voice = wg.Voice(shape(name, scale), parameters(name, scale))
                return round_trip(voice, precision)

            rows.measure(f"{name}, {precision}", round_trips)


def round_trip(voice: Any, precision: str) -> dict[str, Any]:
    """The samples' error relative to the largest sample, and the log-determinants' error."""
    import jax
    import numpy as np

    import waveglow_jax as wg
    from waveglow_jax.files.sound import read_audio
    from waveglow_jax.flow import bijections, whitening, wn_kernels
    from waveglow_jax.weights.release import BUNDLED_VOICE

    hop = voice.config.data.hop_length
    recording = sorted((BUNDLED_VOICE / "recordings").glob("*.wav"))[0]
    audio = read_audio(recording, voice.config.data.sampling_rate)[: 64 * hop][None]
    audio = audio + np.float32(1e-4) * np.random.default_rng(0).normal(size=audio.shape)
    audio = audio.astype(np.float32)
    mel = voice.mel(audio)[:, :-1]  # one frame per hop, for both directions
    # The flow asks for `highest` itself; here it must use the precision that is measured.
    for module in (bijections, whitening, wn_kernels):
        module.EXACT = jax.lax.Precision[precision.upper()]
    with jax.default_matmul_precision(precision):
        z, log_det = jax.jit(lambda p, x, mel: wg.forward(p, voice.config, x, mel))(
            voice.params, audio, mel
        )
        jax.block_until_ready((z, log_det))
        back, back_log_det = jax.jit(lambda p, z, mel: wg.inverse(p, voice.config, z, mel))(
            voice.params, z, mel
        )
    back, total = np.asarray(back), np.asarray(log_det + back_log_det)
    return {
        "round_trip": float(np.abs(back - audio).max() / np.abs(audio).max()),
        "log_det_nats_per_sample": float(np.abs(total).max()) / audio.shape[1],
    }


def train_voice(rows: Rows, scale: Scale, arguments: argparse.Namespace) -> int:
    """Trains on the corpus, resuming where the last run stopped, and writes its release folder.

    The release is in float16, in files of less than 16 MiB, so that it is small enough to bring
    back.
    """
    if arguments.data is None:
        rows.write(key=f"{time.time():.0f}", failed="no --data, so that nothing was trained")
        return 0
    run, release = arguments.output / "voice", arguments.output / "voice_release"
    config = "tiny" if scale.few else "voice_gpu"
    steps = 2 if scale.few else steps_in_time(arguments)
    train = [str(ROOT / "train.py"), str(ROOT / "configs" / f"{config}.json")]
    train += ["--data", str(arguments.data / "train"), "--output", str(run)]
    train += ["--train.steps", str(steps)] if steps else []
    train += [] if scale.few else ["--train.validation_files", str(arguments.data / "heldout")]
    # At the time limit, the run stops by itself and saves a checkpoint.
    signal.signal(signal.SIGTERM, lambda *_: None)
    began = time.monotonic()
    code = subprocess.run([sys.executable, *train]).returncode
    convert = ["-m", "waveglow_jax", "convert", str(run), "-o", str(release), "--dtype", "float16"]
    released = subprocess.run([sys.executable, *convert], cwd=ROOT).returncode == 0
    rows.write(
        key=f"{time.time():.0f}",
        config=config,
        seconds=time.monotonic() - began,
        exit_code=code,
        release=released,
    )
    return 0 if released else 1


def steps_in_time(arguments: argparse.Namespace) -> int | None:
    """The number of steps that fit the stage's time limit, or None if it cannot be estimated.

    The estimate needs the step time that stage `training` measured. The learning-rate schedule ends
    with the run, so the run has to end by itself.
    """
    rows = {row["key"]: row for row in Rows(arguments.output, "training").read()}
    row = rows.get(step_key("voice_gpu", 64, False))
    if row is None or "median_seconds" not in row:
        return None
    limit = 60 * limits_of(arguments)["voice"] - SECONDS_OF_COMPILING
    # Validation, checkpoints and waiting for batches also take time.
    return max(1000, int(0.8 * limit / row["median_seconds"]["ours"]) // 1000 * 1000)


# ------------------------------------------------------------------------------ the report


def report(output: Path) -> str:
    """Markdown: one table for each stage that has measured something."""
    parts = ["# A day on an accelerator", ""]
    peaks = {
        row["key"].removeprefix("matmul "): row["flops_per_second"]
        for row in Rows(output, "machine").read()
        if "flops_per_second" in row
    }
    for stage in (*MINUTES, "stages"):
        rows = Rows(output, stage).read()
        if not rows:
            continue
        parts += [f"## {stage}", ""]
        if stage in PUBLISHED_FIGURES:
            parts += [PUBLISHED_FIGURES[stage], ""]
        table = [cells_of(row, peaks) for row in rows]
        columns = list(dict.fromkeys(name for cells in table for name in cells))
        parts += [line(columns), line("---" for _ in columns)]
        parts += [line(cells.get(name, "") for name in columns) for cells in table]
        parts.append("")
    return "\n".join(parts)


def cells_of(row: dict[str, Any], peaks: dict[str, float]) -> dict[str, str]:
    """The cells of a row's line in the table: ratios and rates instead of raw seconds."""
    cells = {"what": str(row["key"])}
    seconds = row.get("median_seconds", {})
    if "ours" in seconds:
        cells["ours, ms"] = f"{1e3 * seconds['ours']:.3g}"
        cells["samples/s"] = f"{row['samples'] / seconds['ours']:,.0f}"
        peak = peaks.get(dtype_of(row["key"]))
        if peak:
            cells["share of the matmul peak"] = f"{row['flops'] / seconds['ours'] / peak:.0%}"
        for name in ("eager", "compiled", "autocast"):
            if name in seconds:
                cells[f"x PyTorch {name}"] = f"{seconds[name] / seconds['ours']:.2f}"
    for name, value in row.items():
        if name in ("key", "median_seconds", "samples", "flops"):
            continue
        title = name.replace("_", " ")
        if name.endswith("bytes"):
            cells[title.replace("bytes", "GiB")] = "" if value is None else f"{value / 2**30:.2f}"
        elif name.endswith("per_second"):
            cells[title.replace("flops", "TFLOP").replace("bytes", "TB")] = f"{value / 1e12:.4g}"
        else:
            cells[title] = f"{value:.3g}" if isinstance(value, float) else str(value)
    return cells


def dtype_of(key: str) -> str:
    """The measured peak that a measurement is compared with; training runs in bfloat16."""
    last = key.rsplit(", ", 1)[-1]
    return {"float32": "float32, highest", "float16": "float16"}.get(last, "bfloat16")


def line(cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
