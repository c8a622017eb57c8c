"""The latent search: its result is a typical sample of the flow and has the mel."""

import numpy as np
import pytest
from test_vocoder import HOP, close, jitted_inverse, some_mel, voice_of

import waveglow_jax as wg
from waveglow_jax.audio.consistency import consistent
from waveglow_jax.files.sound import read_audio
from waveglow_jax.flow.waveglow import forward, latent_noise
from waveglow_jax.synthesis.typical import MOST_FRAMES, typical_sample
from waveglow_jax.synthesis.vocoder import Voice
from waveglow_jax.weights.release import BUNDLED_VOICE

pytestmark = pytest.mark.usefixtures("no_full_scale")

RECORDING = sorted((BUNDLED_VOICE / "recordings").glob("*.wav"))[0]


def searched(voice: Voice, mel: np.ndarray, sigma: float = 1.0, **how):
    """The result of a search with few rounds, to save time."""
    return typical_sample(voice.params, voice.config, mel, sigma, **how)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["group", "sample"])
@pytest.mark.parametrize("sigma", [1.0, 0.7])
def test_is_a_typical_sample_of_the_flow_itself(kind, sigma):
    voice, mel = voice_of(kind), some_mel(21)
    found = searched(voice, mel, sigma, rounds=2, corrections=3)
    assert found.audio.shape == (21 * HOP,)
    np.testing.assert_allclose(np.sqrt(np.mean(found.z**2)), sigma, rtol=1e-4)
    assert np.abs(found.z).max() < 3
    # Nothing is corrected after it: the flow alone turns this z into this audio.
    audio, log_det = jitted_inverse(voice.params, voice.config, found.z[None], mel[None])
    close(found.audio, audio[0], 1e-5)
    density = -0.5 * (found.z.astype(np.float64) ** 2 + np.log(2 * np.pi)).sum()
    nats = (density - float(log_det[0])) / len(found.audio)
    assert abs(found.nats - nats) < 1e-4
    _, encoded = voice.encode(found.audio[None], mel[None])
    assert abs(found.nats - encoded[0]) < 2e-3


@pytest.mark.slow
def test_padding_means_nothing():
    """21 frames are padded to 64, which must not influence the result."""
    voice = voice_of("sample")
    short, whole = some_mel(64)[:21], some_mel(64)
    ours = searched(voice, short, rounds=1, corrections=2)
    config, params = voice.config, voice.params
    audio, _ = jitted_inverse(params, config, latent_noise(0, config, 21)[None], short[None])
    z, _ = forward(params, config, consistent(audio, short[None], config, 2), short[None])
    z = np.asarray(z) / np.maximum(1, np.abs(z) / 2.5)
    close(ours.z, z[0] / np.sqrt(np.mean(z**2)), 1e-4)
    assert searched(voice, whole, rounds=1, corrections=2).audio.shape == (64 * HOP,)


@pytest.mark.slow
def test_rounds_bring_the_bundled_voice_to_its_mel():
    voice = wg.load()
    mel = voice.mel(read_audio(RECORDING, 22050))[100:164]

    def error(audio: np.ndarray) -> float:
        return float(np.abs(voice.mel(audio)[2:62] - mel[2:62]).mean())

    bare = voice.synthesize(mel, 1.0, consistency=0)
    found = searched(voice, mel, rounds=2, corrections=8)
    assert error(found.audio) < 0.35 * error(bare)
    assert np.abs(found.z).max() < 3


@pytest.mark.slow
def test_sigma_0_and_a_mel_of_one_frame():
    for mel in (some_mel(1), some_mel(5)):
        found = searched(voice_of("sample"), mel, 0.0, rounds=1, corrections=2)
        assert np.isfinite(found.audio).all() and not found.z.any()


@pytest.mark.slow
def test_the_voices_door():
    voice, mels = voice_of("sample"), [some_mel(9), some_mel(5)]
    each = voice.synthesize(mels, consistency="latent")
    assert [len(audio) for audio in each] == [9 * HOP, 5 * HOP]
    np.testing.assert_array_equal(each[1], voice.typical_sample(mels[1]).audio)
    assert voice.latency_frames(16, consistency=0) > 0


def test_what_cannot_be_is_refused():
    voice = voice_of("sample")
    with pytest.raises(ValueError, match="too long for the latent search"):
        voice.synthesize(np.zeros((MOST_FRAMES + 1, 80), np.float32), consistency="latent")
    for work in (voice.stream, lambda _, **how: voice.latency_frames(**how)):
        with pytest.raises(ValueError, match="cannot be streamed"):
            work(some_mel(3), consistency="latent")
