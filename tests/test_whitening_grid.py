"""Whitening blocks that divide neither the hop nor the segment: the same rule as for groups."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from test_vocoder import lively_params, tiny_config

import waveglow_jax as wg
from waveglow_jax.analysis.likelihoods import likelihood_of
from waveglow_jax.config import Config, MelWhitening
from waveglow_jax.flow.waveglow import latent_noise
from waveglow_jax.synthesis.vocoder import Voice
from waveglow_jax.training.batch import Batch
from waveglow_jax.training.parallel import parallel_train_step, replicate
from waveglow_jax.training.step import init_state

pytestmark = pytest.mark.usefixtures("no_full_scale")

SIGMA, SEED = 0.7, 3
# Hop, block, order of the predictor, and the frames after which the boundaries of all meet.
CASES = {
    "predicting": (50, 20, 6, 8),
    "blocks": (50, 20, 0, 8),
    "blocks of half a hop and more": (48, 36, 6, 3),
}


def config_of(case: str) -> Config:
    hop, block, order, _ = CASES[case]
    config = tiny_config()
    glow = dataclasses.replace(
        config.waveglow,
        upsample_kernel=2 * hop,
        conditioning="sample",
        mel_whitening=MelWhitening(block=block, order=order),
    )
    data = dataclasses.replace(config.data, hop_length=hop, segment_length=10 * hop + 7)
    return dataclasses.replace(config, waveglow=glow, data=data)


@pytest.fixture(
    scope="module",
    params=["predicting", *(pytest.param(c, marks=pytest.mark.slow) for c in [*CASES][1:])],
)
def voice(request) -> Voice:
    config = config_of(request.param)
    assert config.period == CASES[request.param][3]
    return Voice(config, lively_params(config), tuple(jax.devices()[:1]))


def mel_of(frames: int, config: Config) -> np.ndarray:
    rng = np.random.default_rng(frames)
    return rng.normal(-4, 1, (frames, config.waveglow.n_mel_channels)).astype(np.float32)


def one_shot(voice: Voice, mel: np.ndarray) -> np.ndarray:
    z = SIGMA * latent_noise(SEED, voice.config, len(mel))
    inverse = quick_jit(lambda z, mel: wg.inverse(voice.params, voice.config, z, mel)[0])
    return np.asarray(inverse(z[None], mel[None]))[0, : len(mel) * voice.config.data.hop_length]


@pytest.mark.parametrize("frames", [1, 5, 18])
def test_windows_streams_and_one_shot_agree(voice, frames):
    mel = mel_of(frames, voice.config)
    whole = one_shot(voice, mel)
    atol = 1e-5 * np.abs(whole).max()
    made = voice.synthesize(mel, SIGMA, SEED)
    assert made.shape == (frames * voice.config.data.hop_length,)
    np.testing.assert_allclose(made, whole, rtol=0, atol=atol)
    np.testing.assert_allclose(
        voice.synthesize(mel, SIGMA, SEED, window=24), whole, rtol=0, atol=atol
    )
    both = voice.synthesize([mel, mel_of(7, voice.config)], SIGMA, SEED)
    np.testing.assert_allclose(both[0], whole, rtol=0, atol=atol)
    streamed = np.concatenate(list(voice.stream(mel, sigma=SIGMA, seed=SEED, chunk_frames=8)))
    np.testing.assert_allclose(streamed, whole, rtol=0, atol=atol)


def test_encode_and_decode_are_inverse(voice):
    config = voice.config
    audio = 0.1 * np.random.default_rng(0).normal(size=12 * config.data.hop_length + 3)
    audio = audio.astype(np.float32)
    mel = voice.mel(audio)
    with pytest.warns(UserWarning, match=f"whole blocks of {config.block}"):
        z, nats = voice.encode(audio, mel)
    assert len(z) * config.waveglow.n_group % config.block == 0 and np.isfinite(nats)
    np.testing.assert_allclose(voice.decode(z, mel)[: len(audio)], audio, rtol=0, atol=1e-5)


def test_log_det_is_the_jacobians(voice):
    config = voice.config
    n = 2 * config.block
    frames = -(-n // config.data.hop_length)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), voice.params)
        mel = jnp.asarray(mel_of(frames, config), "float64")[None]
        audio = 0.1 * jax.random.normal(jax.random.key(0), (1, n), "float64")
        _, log_det = wg.forward(params, config, audio, mel)
        jacobian = jax.jacrev(lambda x: wg.forward(params, config, x[None], mel)[0].reshape(-1))
        expected = np.linalg.slogdet(np.asarray(jacobian(audio[0])))[1]
    assert float(log_det[0]) == pytest.approx(expected, rel=1e-8)


def test_the_likelihood_of_a_recording_is_the_sum_over_windows(voice):
    config, hop = voice.config, voice.config.data.hop_length
    frames = 6 * config.period
    audio = 0.1 * np.random.default_rng(1).normal(size=frames * hop).astype(np.float32)
    mel = voice.mel(audio)
    _, nats = voice.encode(audio, mel)
    found = likelihood_of(voice.params, config, audio, mel)
    assert found.nats == pytest.approx(float(nats), abs=1e-4)
    assert len(found.of_frame) == frames


def test_training_takes_steps(voice):
    config = voice.config
    train = dataclasses.replace(config.train, batch_size=2, learning_rate=1e-3, noise_std=0.01)
    config = dataclasses.replace(config, train=train)
    assert config.clip_samples % config.block == 0 < config.clip_samples
    clips = 0.1 * np.random.default_rng(2).normal(size=(1, 2, config.clip_length))
    batch = Batch(clips=clips.astype(np.float32), index=np.arange(2, dtype=np.int32)[None])
    devices = jax.devices()[:1]
    step = parallel_train_step(config, 10, devices)
    state = replicate(init_state(config), devices)
    losses = []
    for _ in range(4):
        state, notes = step(state, batch)
        losses.append(float(notes["loss"]))
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
