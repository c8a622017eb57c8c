"""The denoiser against the original's numbers and plain loops, in one shot and as a stream."""

import subprocess
import sys

import jax
import numpy as np
import pytest
import scipy.signal
from compiling import quick_jit
from golden import expected
from test_vocoder import HOP, close, lively_params, some_mel, tiny_config

import waveglow_jax as wg
from waveglow_jax.synthesis import denoiser
from waveglow_jax.synthesis.denoiser import bias_spectrum_of, denoise, denoised_blocks
from waveglow_jax.synthesis.vocoder import Voice

pytestmark = pytest.mark.usefixtures("no_full_scale")


@pytest.fixture(scope="module")
def golden():
    return expected("denoiser_expected.npz")


@pytest.fixture(scope="module")
def voice() -> Voice:
    return Voice(tiny_config(), lively_params(tiny_config()), tuple(jax.devices()[:1]))


def by_loops(audio: np.ndarray, bias: np.ndarray, strength: float) -> np.ndarray:
    """The same in float64, frame after frame."""
    window = scipy.signal.get_window("hann", 1024)
    padded = np.pad(audio.astype(np.float64), 512, mode="reflect")
    out, weight = np.zeros_like(padded), np.zeros_like(padded)
    for start in range(0, len(audio) + 1, 256):
        spectrum = np.fft.rfft(window * padded[start : start + 1024])
        magnitude = np.maximum(np.abs(spectrum) - strength * bias.astype(np.float64), 0)
        frame = np.fft.irfft(magnitude * np.exp(1j * np.angle(spectrum)))
        out[start : start + 1024] += window * frame
        weight[start : start + 1024] += window**2
    return (out / np.maximum(weight, 1e-12))[512:-512]


@pytest.mark.parametrize("strength", ["0.01", "0.1", "1.0"])
def test_golden(golden, strength):
    ours = denoise(golden["wav"], golden["bias_spec"], float(strength))
    assert ours.shape == golden["wav"].shape and ours.dtype == np.float32
    # The original stops with the last frame's centre.
    theirs = golden[f"denoised_{strength}"]
    np.testing.assert_allclose(ours[: len(theirs)], theirs, rtol=0, atol=1e-6)
    assert np.abs(theirs - golden["wav"][: len(theirs)]).max() > 1e-4


def test_golden_bias(golden):
    ours = bias_spectrum_of(golden["bias_audio"])
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, golden["bias_spec"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("samples", [513, 1024, 1025, 8192, 8193, 30000])
def test_to_the_very_ends(golden, samples):
    audio = golden["wav"][:samples]
    ours = denoise(audio, golden["bias_spec"], 0.3)
    np.testing.assert_allclose(ours, by_loops(audio, golden["bias_spec"], 0.3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("samples", [1, 2, 255, 256, 512, 2000])
def test_short_ones_and_strength_0_are_unchanged(golden, samples):
    audio = golden["wav"][:samples]
    np.testing.assert_allclose(denoise(audio, golden["bias_spec"], 0), audio, rtol=0, atol=1e-7)
    assert np.isfinite(denoise(audio, golden["bias_spec"], 1)).all()
    assert not np.any(denoise(audio, golden["bias_spec"] + 1e6, 1))
    assert not np.any(denoise(np.zeros_like(audio), golden["bias_spec"], 1))


@pytest.mark.parametrize("samples", [1, 256, 513, 700, 8192, 20011])
def test_streamed(golden, samples):
    audio, bias = golden["wav"][:samples], golden["bias_spec"]
    cuts = np.cumsum(np.random.default_rng(0).integers(0, 1500, 40))
    taken = 0

    def arriving():
        nonlocal taken
        for block in np.split(audio, cuts[cuts < samples]):
            taken += len(block)
            yield block

    out = np.zeros(0, np.float32)
    for block in denoised_blocks(arriving(), bias, 0.3):
        out = np.concatenate([out, block])
        assert taken == samples or taken - len(out) < denoiser.DELAY + denoiser.HOP
    np.testing.assert_allclose(out, denoise(audio, bias, 0.3), rtol=0, atol=1e-6)
    assert list(denoised_blocks([], bias, 0.3)) == []


def test_refusals(golden):
    audio, bias = golden["wav"], golden["bias_spec"]
    for wrong in ((audio[None], bias, 1), (audio, bias[1:], 1), (audio, bias, -1)):
        with pytest.raises(ValueError, match=r"audio|bias|strength"):
            denoise(*wrong)
    with pytest.raises(ValueError, match="strength"):
        denoised_blocks([audio], bias, float("inf"))


@pytest.mark.slow
def test_a_voices_bias_is_its_first_frame_of_the_zero_mel(voice):
    zeros = np.zeros((1, 88 * HOP // 16, 16), np.float32)
    inverse = quick_jit(wg.inverse, static_argnums=1)
    audio, _ = inverse(voice.params, voice.config, zeros, np.zeros((1, 88, 80), np.float32))
    first = np.pad(np.asarray(audio[0], np.float64), (512, 0), mode="reflect")[:1024]
    first = np.abs(np.fft.rfft(scipy.signal.get_window("hann", 1024) * first))
    close(voice.bias_spectrum, first, 1e-4)


@pytest.mark.slow
def test_through_the_voice(voice):
    mels = [some_mel(31), some_mel(1), some_mel(97)]
    plain, ours = voice.synthesize(mels), voice.synthesize(mels, denoise=0.2)
    for mel, before, after in zip(mels, plain, ours, strict=True):
        expected = denoise(before, voice.bias_spectrum, 0.2)
        assert np.abs(expected - before).max() > 1e-2
        close(after, expected)
        blocks = list(voice.stream(iter(np.array_split(mel, 5)), 13, denoise=0.2))
        close(np.concatenate(blocks), expected)
    assert voice.latency_frames(13, 0.2) == voice.latency_frames(13) + 3


@pytest.mark.slow
def test_by_its_full_name():
    """This needs a fresh interpreter, because this process has imported the module."""
    code = "import waveglow_jax as wg; print(wg.synthesis.denoiser.denoise.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "denoise\n", done.stderr
