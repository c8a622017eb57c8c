"""Speed on this machine: the reverse pass, the training step and the loader, beside PyTorch.

The contenders take turns within one process, round after round, so that other load on the machine
affects all of them alike. Ratios are medians over the rounds. Compile time is measured separately.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from waveglow_jax.audio.mel import log_mel_of_padded
from waveglow_jax.config import DTYPES, Config
from waveglow_jax.errors import UserError
from waveglow_jax.files.inputs import AUDIO_SUFFIXES, find_inputs
from waveglow_jax.files.sound import read_audio
from waveglow_jax.flow.likelihood import loss
from waveglow_jax.flow.steps import COUPLING, conditioner_of
from waveglow_jax.flow.upsampler import with_frames_behind
from waveglow_jax.flow.waveglow import Params, forward, init, latent_noise
from waveglow_jax.performance.timing import (
    SAME,
    Benchmark,
    Contender,
    Progress,
    check_same,
    machine_at_hand,
    rows_of,
    take_turns,
)
from waveglow_jax.synthesis.vocoder import Voice
from waveglow_jax.training.batch import Batch
from waveglow_jax.training.dataset import scan_corpus, training_batches
from waveglow_jax.training.parallel import parallel_train_step, replicate
from waveglow_jax.training.step import init_state
from waveglow_jax.weights.release import BUNDLED_VOICE

TORCH_DTYPES = ("float32", "bfloat16")


def benchmark_reverse(
    voice: Voice,
    seconds: Sequence[float],
    dtypes: Sequence[str],
    repeats: int,
    against_torch: bool = False,
    progress: Progress = lambda stage: None,
) -> Benchmark:
    """Times `voice.synthesize`, from mel to samples, on one utterance of each length.

    progress: called with a description of the current stage. Raises UserError if PyTorch is asked
    for but missing, or if its output differs from ours.
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
        take_turns(contenders, repeats, progress, f"{length:g} s")
        if torch_reverse:
            check_same(contenders)
        n_samples = frames * config.data.hop_length
        flops = forward_flops(config, n_samples)
        what = f"{length:g} s"
        rows += rows_of(what, contenders, n_samples, flops, config.data.sampling_rate, peaks)
    return Benchmark("reverse pass", machine_at_hand(), peaks, tuple(rows))


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
        config = voice.config
        z = latent_noise(0, config, len(mel)) * config.synthesis.sigma
        covering = np.array(with_frames_behind(jnp.asarray(mel)[None], config)[0])
        inputs = torch.from_numpy(np.array(z))[None], torch.from_numpy(covering.T.copy())[None]
        samples = len(mel) * config.data.hop_length
        return Contender(
            "PyTorch", dtype, lambda: models[dtype].inverse(*inputs)[0, :samples].numpy()
        )

    return contender


def _speech_mel(voice: Voice, frames: int) -> np.ndarray:
    """The bundled recordings' mel, repeated up to `frames` frames, `[frames, M]`."""
    inputs = find_inputs([str(BUNDLED_VOICE / "recordings")], AUDIO_SUFFIXES)
    rate = voice.config.data.sampling_rate
    mel = np.concatenate([voice.mel(read_audio(each.path, rate)) for each in inputs])
    return np.resize(mel, (frames, mel.shape[1]))


def random_voice(config: Config) -> Voice:
    """A voice of the config's shape with random weights.

    Its last layers are nonzero, because with zeros a comparison of outputs would prove nothing.
    """
    params = init(jax.random.key(config.train.seed), config)
    return Voice(config, _lively(params, config))


def _lively(params: Params, config: Config) -> Params:
    rng = np.random.default_rng(0)
    lively = conditioner_of(config).lively
    flows = [
        {**flow, COUPLING.name: lively(flow[COUPLING.name], rng, 0.02)} for flow in params["flows"]
    ]
    return {**params, "flows": flows}


def benchmark_training(
    config: Config,
    batch: int,
    dtypes: Sequence[str],
    repeats: int,
    against_torch: bool = False,
    progress: Progress = lambda stage: None,
) -> Benchmark:
    """Times one training step on one device, on the same noise for all contenders.

    Ours computes the mel too. Raises UserError as `benchmark_reverse` does.
    """
    torch = _torch(config) if against_torch else None
    train = dataclasses.replace(config.train, batch_size=batch, gradient_accumulation=1)
    config = dataclasses.replace(config, train=train)
    params = _lively(init(jax.random.key(train.seed), config), config)
    size = batch, config.clip_length
    clips = 0.1 * np.random.default_rng(0).normal(size=size).astype(np.float32)
    torch_step = _torch_training(params, config, clips, *torch) if torch else None
    peaks = measured_peaks()
    contenders = []
    for dtype in dtypes:
        progress(f"{dtype}: compiling")
        contenders.append(_our_training(params, config, clips, dtype))
    if torch_step:
        contenders.append(torch_step)
    take_turns(contenders, repeats, progress, "training steps")
    n_samples = batch * config.clip_samples
    flops = 3 * forward_flops(config, n_samples)
    what = f"{batch} clips of {config.clip_samples}"
    rows = rows_of(what, contenders, n_samples, flops, config.data.sampling_rate, peaks)
    return Benchmark("training step", machine_at_hand(), peaks, tuple(rows))


def _our_training(params: Params, config: Config, clips: np.ndarray, dtype: str) -> Contender:
    train = dataclasses.replace(config.train, wn_dtype=dtype)
    config = dataclasses.replace(config, train=train)
    device = jax.local_devices()[:1]
    state = replicate(init_state(config, params), device)
    batch = Batch(clips=clips[None], index=np.arange(len(clips), dtype=np.int32)[None])
    # On one device, `parallel_train_step` returns the jitted function itself.
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
    lead = config.data.lead
    audio = clips[:, lead : lead + config.clip_samples]
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


def benchmark_loader(
    config: Config, data: str, repeats: int, progress: Progress = lambda stage: None
) -> Benchmark:
    """Times reading and decoding training batches; nothing is computed from them.

    A round takes at least a second.

    Raises UserError for data that cannot be used.
    """
    batches = training_batches(scan_corpus(data, config).training, config)
    a_batch = config.train.batch_size * config.clip_samples
    next(batches)
    began, rounds = time.monotonic(), 0
    while time.monotonic() - began < 1 or rounds < 4:
        next(batches)  # otherwise prefetched batches would make the first round look faster
        rounds += 1

    def run() -> None:
        for _ in range(rounds):
            next(batches)

    loader = Contender(f"loader, {config.train.num_workers} workers", "", run)
    take_turns([loader], repeats, progress, "reading", warm=False)
    n_samples, rate = rounds * a_batch, config.data.sampling_rate
    return Benchmark(
        "loader", machine_at_hand(), {}, tuple(rows_of(data, [loader], n_samples, 0, rate, {}))
    )


def measured_peaks(size: int = 2048) -> dict[str, float]:
    """FLOP/s of the fastest of ten square matmuls in each dtype, accumulated in float32."""

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
    """FLOPs of one direction in the published form; a multiply-add counts as two."""
    glow, conditioner = config.waveglow, conditioner_of(config)
    flows = sum(
        conditioner.flops(config, channels // 2) + 2 * channels**2
        for channels in map(glow.channels, range(glow.n_flows))
    )
    per = 1 if glow.conditioning == "sample" else glow.n_group
    upsampler = glow.upsample_kernel / config.data.hop_length * glow.n_mel_channels**2 / per
    return n_samples * (flows / glow.n_group + 2 * upsampler)


def bytes_of(compiled: jax.stages.Compiled) -> int | None:
    """The bytes that the compiler plans for arguments, results and temporaries.

    None if it does not report them.
    """
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + new


def _torch(config: Config) -> tuple[Any, ModuleType]:
    """PyTorch, and the module with the PyTorch model that is compared with ours."""
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
    from waveglow_jax.performance import torch_waveglow

    return torch, torch_waveglow
