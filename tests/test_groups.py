"""Groups that do not divide the hop: the original's numbers, and exactly F * hop samples."""

import dataclasses
import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from compiling import quick_jit
from reference_flow import Shape, forward, inverse, random_state
from safetensors.numpy import save_file

import waveglow_jax as wg
from waveglow_jax.analysis.likelihoods import likelihood_of
from waveglow_jax.analysis.signals import signal_of
from waveglow_jax.cli import main
from waveglow_jax.config import Config
from waveglow_jax.flow.bijections import log_det_by_frame
from waveglow_jax.flow.likelihood import log_likelihood
from waveglow_jax.flow.waveglow import latent_noise, noise_of_frames
from waveglow_jax.synthesis.export import export
from waveglow_jax.synthesis.onnx_export import write_onnx
from waveglow_jax.synthesis.plan import context_of, pack
from waveglow_jax.synthesis.typical import typical_sample
from waveglow_jax.synthesis.vocoder import Voice
from waveglow_jax.training.batch import Batch
from waveglow_jax.training.parallel import parallel_train_step, replicate
from waveglow_jax.training.samples import synthesis_program
from waveglow_jax.training.step import init_state
from waveglow_jax.weights.correspondence import torch_tensors
from waveglow_jax.weights.release import read_weights

pytestmark = pytest.mark.usefixtures("no_full_scale")

# Hop and group, and the frames after which the boundaries of both meet. 8 divides 200.
CASES = {
    "256/12": (256, 12, 3),
    "300/8": (300, 8, 2),
    "275/8": (275, 8, 8),
    "200/8": (200, 8, 1),
    "200/512": (200, 512, 64),  # the last group may need three frames more
}
RAGGED = [
    "256/12",
    "300/8",
    *(pytest.param(case, marks=pytest.mark.slow) for case in ("275/8", "200/512")),
]
EXACT = {"200/512": 4e-5}
"""Sums of 512 products: in float32 even one shot is 1.6e-5 off the reference."""
SIGMA, SEED = 0.7, 5


@cache
def shape_of(case: str) -> Shape:
    hop, group, _ = CASES[case]
    return Shape(hop, group)


@cache
def state_of(case: str) -> dict[str, np.ndarray]:
    return random_state(shape_of(case))


@pytest.fixture(scope="module")
def voice_of(tmp_path_factory):
    """The voice of a case, whose weights come from a file with the original's names."""

    @cache
    def voice(case: str) -> Voice:
        path = tmp_path_factory.mktemp("published") / "waveglow.safetensors"
        save_file(state_of(case), path)
        weights = read_weights(path)
        data = dataclasses.replace(weights.config.data, hop_length=CASES[case][0])
        config = dataclasses.replace(weights.config, data=data)
        return Voice(config, weights.params, tuple(jax.devices()[:1]))

    return voice


def mel_of(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, frames]).normal(-2, 1, (frames, 5)).astype(np.float32)


def audio_of(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, samples]).normal(0, 0.1, samples).astype(np.float32)


@cache
def one_shot(case: str, config: Config, frames: int) -> np.ndarray:
    """The reference's samples of the whole mel, `[F * hop]`: nothing cut, nothing padded."""
    z = SIGMA * np.asarray(latent_noise(SEED, config, frames))
    audio = inverse(state_of(case), shape_of(case), z.T, mel_of(frames).T)
    return audio[: frames * config.data.hop_length]


def close(ours, theirs, relative: float) -> None:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert error <= relative, f"off by {error:.2e} of the largest value"


# ------------------------------------------------------------------------------ the grid


@pytest.mark.parametrize("case", CASES)
def test_period_and_steps_are_those_of_counting(voice_of, case):
    hop, group, period = CASES[case]
    config = voice_of(case).config
    meetings = [frames for frames in range(1, 80) if (frames * hop) % group == 0]
    assert config.period == period == meetings[0]
    for frames in range(20):
        steps = config.steps_of(frames)
        assert (steps - 1) * group < frames * hop <= steps * group
        samples = frames * hop + hop - 1
        assert config.whole_frames(samples) == max([0, *(m for m in meetings if m <= frames)])
    context = context_of(config)
    assert not any(n % period for n in (context.left, context.right, context.gap))


def test_windows_are_cut_where_frames_and_groups_meet(voice_of):
    context = context_of(voice_of("275/8").config)
    assert context.period == 8
    lengths = [3, 50, 8, 101, 1]
    window = context.left + context.right + 24
    kept = []
    for parts in pack(lengths, window, context):
        free = 0
        for part in parts:
            assert part.offset % 8 == part.first % 8 == part.begin % 8 == 0
            assert part.offset >= free
            free = part.offset + context.whole(part.stop - part.first) + context.gap
            kept += [(part.utterance, frame) for frame in range(part.begin, part.end)]
        assert free - context.gap <= window
    assert kept == [(u, frame) for u, length in enumerate(lengths) for frame in range(length)]


def test_noise_depends_on_seed_and_period_alone(voice_of):
    config = voice_of("256/12").config
    long = np.asarray(latent_noise(3, config, 30))
    assert long.shape == (640, 12)
    for frames in (1, 2, 3, 7):
        np.testing.assert_array_equal(
            latent_noise(3, config, frames), long[: -(-frames * 256 // 12)]
        )
    np.testing.assert_array_equal(noise_of_frames(3, config, jnp.arange(9, 15)), long[192:320])
    assert len(np.unique(long)) > 0.99 * long.size


# ------------------------------------------------------------------------------ the reference


@pytest.mark.parametrize("case", CASES)
def test_both_directions_are_the_references(voice_of, case):
    hop, group, _ = CASES[case]
    voice, frames = voice_of(case), 5
    steps = -(-frames * hop // group)
    audio = audio_of(steps * group)
    for extra in (0, 1):  # the frame that may follow the signal is used, too
        mel = mel_of(frames + extra)
        z, log_det = quick_jit(wg.forward, static_argnums=1)(
            voice.params, voice.config, audio[None], mel[None]
        )
        theirs, their_log_det = forward(state_of(case), shape_of(case), audio, mel.T)
        close(z[0], theirs.T, 1e-4)
        assert float(log_det[0]) == pytest.approx(their_log_det, rel=1e-4)
    again, back = quick_jit(wg.inverse, static_argnums=1)(voice.params, voice.config, z, mel[None])
    close(again[0], audio, 1e-4)
    assert float(back[0]) == pytest.approx(-their_log_det, rel=1e-4)
    close(again[0], inverse(state_of(case), shape_of(case), np.asarray(z[0]).T, mel.T), 1e-4)


def test_the_reference_is_invertible():
    """Without this, the tests above would prove nothing about the log-determinant."""
    shape = Shape(15, 4, channels=4, layers=2, kernel=3, upsample_kernel=20)
    state, mel = random_state(shape), mel_of(3).T
    audio = audio_of(48).astype(np.float64)
    z, log_det = forward(state, shape, audio, mel)
    np.testing.assert_allclose(inverse(state, shape, z, mel), audio, atol=1e-12)
    step = 1e-6
    jacobian = np.stack(
        [
            (forward(state, shape, audio + step * one, mel)[0] - z).ravel() / step
            for one in np.eye(48)
        ]
    )
    assert np.linalg.slogdet(jacobian)[1] == pytest.approx(log_det, abs=1e-3)


# ------------------------------------------------------------------------------ synthesis


@pytest.mark.parametrize("case", RAGGED)
def test_windows_batches_and_streams_are_one_shot(voice_of, case):
    hop, _, period = CASES[case]
    voice = voice_of(case)
    lengths = [2, 41, 1, 13]
    audio = voice.synthesize([mel_of(n) for n in lengths], SIGMA, SEED, window=23, batch=3)
    for n, ours in zip(lengths, audio, strict=True):
        assert ours.shape == (n * hop,)
        close(ours, one_shot(case, voice.config, n), EXACT.get(case, 1e-5))
    chunk = voice.chunk_frames(5)
    assert chunk == -(-5 // period) * period
    mel = mel_of(41)
    blocks = list(voice.stream((mel[at : at + 3] for at in range(0, 41, 3)), 5, SIGMA, SEED))
    assert [len(block) for block in blocks[:-1]] == [chunk * hop] * (len(blocks) - 1)
    close(np.concatenate(blocks), one_shot(case, voice.config, 41), EXACT.get(case, 1e-5))


@pytest.mark.slow
@pytest.mark.parametrize("case", RAGGED)
def test_chosen_windows_and_corrections(voice_of, case):
    voice = voice_of(case)
    close(
        voice.synthesize(mel_of(41), SIGMA, SEED),
        one_shot(case, voice.config, 41),
        EXACT.get(case, 1e-5),
    )
    settings = {"sigma": SIGMA, "seed": SEED, "consistency": 3}
    whole = voice.synthesize(mel_of(41), **settings)
    close(voice.synthesize(mel_of(41), **settings, window=23, batch=2), whole, 1e-4)
    close(np.concatenate(list(voice.stream(mel_of(41), 5, **settings))), whole, 1e-4)
    assert voice.synthesize(mel_of(3), denoise=0.1).shape == (3 * CASES[case][0],)


@pytest.mark.slow
def test_a_typical_sample_is_decoded_from_its_z(voice_of):
    voice, frames = voice_of("256/12"), 31
    found = typical_sample(voice.params, voice.config, mel_of(frames), rounds=1, corrections=2)
    assert found.audio.shape == (frames * 256,) and found.z.shape == (-(-frames * 256 // 12), 12)
    mel = mel_of(frames).T
    theirs = inverse(state_of("256/12"), shape_of("256/12"), found.z.T, mel)
    close(found.audio, theirs[: frames * 256], 1e-5)
    _, log_det = forward(state_of("256/12"), shape_of("256/12"), theirs, mel)
    nats = log_likelihood(found.z[None], np.float32(log_det)[None])
    assert found.nats == pytest.approx(float(nats[0]), abs=1e-4)


def test_an_export_has_both_sizes_free(voice_of):
    voice, frames = voice_of("256/12"), 5
    program = jax.export.deserialize(bytearray(export(voice.config, voice.params)))
    z = SIGMA * np.asarray(latent_noise(SEED, voice.config, frames))
    audio = program.call(z[None], mel_of(frames)[None])
    close(audio[0], one_shot("256/12", voice.config, frames), 1e-5)


@pytest.mark.slow
def test_an_onnx_file_has_both_sizes_free(voice_of, tmp_path):
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    voice, frames = voice_of("256/12"), 5
    write_onnx(tmp_path / "voice.onnx", voice.config, voice.params)
    session = onnxruntime.InferenceSession(tmp_path / "voice.onnx")
    z = SIGMA * np.asarray(latent_noise(SEED, voice.config, frames))
    (audio,) = session.run(None, {"z": z[None], "mel": mel_of(frames)[None]})
    close(audio[0], one_shot("256/12", voice.config, frames), 1e-5)


# ------------------------------------------------------------------------------ encoding


@pytest.mark.parametrize("case", ["256/12", pytest.param("275/8", marks=pytest.mark.slow)])
def test_encode_and_decode_any_length(voice_of, case):
    hop, group, _ = CASES[case]
    voice, samples = voice_of(case), 8 * hop + 3
    missing = -samples % group
    audio = audio_of(samples)
    with pytest.warns(UserWarning, match=f"{missing} zeros"):
        z, nats = voice.encode(audio)
    mel = voice.mel(audio)
    whole = np.pad(audio, (0, missing))
    theirs, log_det = forward(state_of(case), shape_of(case), whole, mel.T)
    close(z, theirs.T, 1e-4)
    theirs_nats = (log_det - np.sum(theirs**2) / 2) / whole.size - 0.5 * np.log(2 * np.pi)
    assert float(nats) == pytest.approx(theirs_nats, rel=1e-4)
    close(voice.decode(z, mel), whole, 1e-4)
    corrected = voice.decode(z, mel, consistency=1)
    own = min(len(whole) // hop, len(mel)) * hop
    assert np.abs(corrected[:own] - whole[:own]).max() > 1e-4
    np.testing.assert_array_equal(corrected[own:], voice.decode(z, mel)[own:])


def test_likelihood_by_frame_sums_to_that_of_the_whole_periods(voice_of, monkeypatch):
    monkeypatch.setattr("waveglow_jax.analysis.likelihoods.KEPT_FRAMES", 6)
    voice = voice_of("256/12")
    audio = audio_of(76 * 256 + 100)
    mel = mel_of(77)
    found = likelihood_of(voice.params, voice.config, audio, mel)
    assert found.frames == 75 == len(found.of_frame)
    whole = audio[: 75 * 256]
    z, log_det = forward(state_of("256/12"), shape_of("256/12"), whole, mel[:76].T)
    energy = np.repeat(-0.5 * np.sum(z**2, axis=0) / 12, 12).reshape(75, 256).sum(axis=1) / 256
    np.testing.assert_allclose(found.energy, energy, rtol=1e-4)
    nats = (log_det - np.sum(z**2) / 2) / whole.size - 0.5 * np.log(2 * np.pi)
    assert found.nats == pytest.approx(nats, rel=1e-4)
    with pytest.raises(ValueError, match="600 samples are less than 3 frames"):
        likelihood_of(voice.params, voice.config, audio[:600], mel[:3])


def test_shared_parts_of_a_log_determinant_count_by_their_shares():
    of_steps = np.random.default_rng(0).normal(size=(2, 64, 5)).astype(np.float32)
    ours = log_det_by_frame(jnp.asarray(of_steps), 64, 3)
    of_samples = np.repeat(of_steps.sum(axis=2) / 12, 12, axis=1)
    np.testing.assert_allclose(ours, of_samples.reshape(2, 3, 256).sum(axis=2), rtol=1e-4)
    assert float(log_det_by_frame(jnp.float32(3), 64, 3)) == pytest.approx(64)


def test_pieces_of_recordings_are_whole_periods(voice_of):
    config = voice_of("256/12").config
    audio = audio_of(40 * 256)
    signal = signal_of("a", audio, mel_of(41), config, 8 * 256)
    assert len(signal.audio) == 6 * 256 and len(signal.mel) == 7


# ------------------------------------------------------------------------------ training


def test_training_sees_the_whole_groups_of_a_clip(voice_of, tmp_path):
    """The loss is that of the reference, and it falls."""
    voice = voice_of("256/12")
    raw = {"batch_size": 2, "learning_rate": 1e-3, "noise_std": 0.0}
    train = dataclasses.replace(voice.config.train, **raw)
    data = dataclasses.replace(voice.config.data, segment_length=2000)
    config = dataclasses.replace(voice.config, train=train, data=data)
    assert (config.clip_samples, config.clip_frames) == (1992, 8)
    clips = np.stack([audio_of(7 * 256 + 1024, seed) for seed in (1, 2)])
    mel = np.stack([mel_of(8, seed) for seed in (1, 2)])
    batch = Batch(clips=clips[None], index=np.arange(2, dtype=np.int32)[None], mel=mel[None])
    device = jax.devices()[:1]
    step = parallel_train_step(config, 9, device)
    state = replicate(init_state(config, voice.params), device)
    losses = []
    for _ in range(4):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    theirs = 0.0
    for clip, own in zip(clips, mel, strict=True):
        audio = clip[512 : 512 + 2000]
        z, log_det = forward(state_of("256/12"), shape_of("256/12"), audio, own.T)
        theirs += (np.sum(z**2) / 2 - log_det) / 1992 / 2
    assert losses[0] == pytest.approx(theirs, rel=1e-4)
    assert losses == sorted(losses, reverse=True)


@pytest.mark.slow
def test_samples_during_training(voice_of):
    voice, frames = voice_of("256/12"), 5
    sigmas = np.float32([SIGMA, 1])
    audio = synthesis_program(voice.params, mel_of(frames), sigmas, voice.config)
    z = SIGMA * np.asarray(latent_noise(0, voice.config, frames))
    theirs = inverse(state_of("256/12"), shape_of("256/12"), z.T, mel_of(frames).T)
    close(audio[0], theirs[: frames * 256], 1e-4)
    assert audio.shape == (2, frames * 256)


# ------------------------------------------------------------------------------ configs


def test_published_names_there_and_back(voice_of):
    voice = voice_of("256/12")
    assert voice.config.waveglow.n_group == 12
    again = torch_tensors(voice.params, voice.config)
    for name, tensor in state_of("256/12").items():
        np.testing.assert_array_equal(again[name], tensor)


# ------------------------------------------------------------------------------ commands


@pytest.mark.slow
def test_commands(tmp_path):
    """Every command runs on a config with groups of 12 at a hop of 256, from training to a
    report."""
    glow = {"n_flows": 2, "n_group": 12, "n_early_every": 1}
    train = {"steps": 2, "batch_size": 8, "validation_fraction": 0.4, "validation_clips": 2}
    raw = {
        "waveglow_config": {**glow, "WN_config": {"n_layers": 2, "n_channels": 8}},
        "data_config": {"segment_length": 2048},
        "train_config": {**train, "synthesis_clips": 1},
    }
    config, run, out = tmp_path / "groups.json", str(tmp_path / "run"), str(tmp_path / "out")
    config.write_text(json.dumps(raw))
    data = tmp_path / "data"
    data.mkdir()
    for i in range(3):
        soundfile.write(data / f"{i}.wav", audio_of(24_000, i), 22050)
    recording = str(data / "0.wav")
    for command in (
        ["train", str(config), "--data", str(data), "-o", run],
        ["likelihood", recording, "-w", run],
        ["resynthesize", recording, "-w", run, "-o", out],
        ["synthesize", recording, "-w", run, "-o", out, "--consistency", "1"],
        ["invertibility", "--random", str(config), recording, "--seconds", "0.2"],
        ["benchmark", "--config", str(config), "--seconds", "0.5", "--repeats", "1"],
    ):
        assert main(command) == 0, command
    assert len(soundfile.read(f"{out}/0.wav")[0]) == (1 + 24_000 // 256) * 256
