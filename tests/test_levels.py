"""Wrong mels and wrong samples cause a warning or an error."""

import warnings

import numpy as np
import pytest
from test_vocoder import lively_params, some_audio, some_mel, tiny_config

import waveglow_jax as wg
from waveglow_jax.cli import main
from waveglow_jax.errors import LevelWarning
from waveglow_jax.synthesis.levels import CLIPPED_SHARE, limited, limited_each
from waveglow_jax.synthesis.vocoder import Voice

QUIET, LOUD = 0.01, 90.0
"""Temperatures at which random weights stay within full scale, and far beyond it."""


@pytest.fixture(scope="module")
def voice() -> Voice:
    return Voice(tiny_config(), lively_params(tiny_config()))


@pytest.fixture(scope="module")
def weights(tmp_path_factory, voice) -> str:
    folder = tmp_path_factory.mktemp("weights") / "voice"
    wg.save(folder, voice.config, voice.params)
    return str(folder)


@pytest.fixture
def spoken(capfd, tmp_path, weights):
    """Temperature and mels by name -> exit code and stderr's lines of `synthesize`."""

    def spoken(sigma: float, mels: dict[str, np.ndarray], *options: str) -> tuple[int, list[str]]:
        (tmp_path / "in").mkdir()
        for name, mel in mels.items():
            np.save(tmp_path / "in" / f"{name}.npy", mel.T)
        arguments = ["synthesize", str(tmp_path / "in"), "-w", weights, "-s", str(sigma), *options]
        code = main(arguments)
        return code, capfd.readouterr().err.splitlines()

    return spoken


# ------------------------------------------------------------------------------ what comes out


def test_blocks_are_held_to_full_scale_and_one_warning_tells_the_share():
    blocks = [np.array([0.5, -3, 1], np.float32), np.array([2, 0], np.float32)]
    with pytest.warns(LevelWarning, match=r"^40\.0% of the samples.*doctor") as told:
        held = list(limited(blocks))
    assert len(told) == 1
    np.testing.assert_array_equal(np.concatenate(held), np.float32([0.5, -1, 1, 1, 0]))


def test_each_signal_has_its_own_share():
    good, bad = np.zeros(10, np.float32), np.full(10, 7, np.float32)
    with pytest.warns(LevelWarning, match="100.0%") as told:
        out = list(limited_each([(0, good), (0, good), (1, bad), (2, good)]))
    assert len(told) == 1
    assert [number for number, _ in out] == [0, 0, 1, 2]


def test_a_rare_peak_is_no_reason_to_warn():
    samples = np.zeros(10_000, np.float32)
    samples[: int(CLIPPED_SHARE * len(samples))] = 1.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (held,) = limited([samples])
    assert held.max() == 1


def test_what_overflows_is_nan_and_never_infinite():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (held,) = limited([np.array([np.inf, -np.inf, np.nan, 9], np.float32)])
    np.testing.assert_array_equal(held, np.float32([np.nan, np.nan, np.nan, 1]))


@pytest.mark.slow
@pytest.mark.parametrize("consistency", [0, 2, "latent"])
@pytest.mark.parametrize("denoise", [0.0, 0.1])
def test_corrected_samples_stay_within_full_scale_and_bare_ones_are_the_flows(
    voice, consistency, denoise
):
    settings = {"sigma": LOUD, "denoise": denoise, "consistency": consistency}
    with pytest.warns(LevelWarning, match="beyond full scale"):
        audio = voice.synthesize(some_mel(20) + 6, **settings)
    assert np.abs(audio).max() == 1 if consistency else np.abs(audio).max() > 1
    if consistency != "latent":
        with pytest.warns(LevelWarning, match="beyond full scale"):
            streamed = np.concatenate(list(voice.stream(some_mel(20) + 6, 8, **settings)))
        np.testing.assert_allclose(np.abs(streamed).max(), np.abs(audio).max(), rtol=1e-4)


def test_a_mel_that_overflows_is_refused(voice):
    with pytest.raises(ValueError, match=r"no finite samples.*doctor"):
        voice.synthesize(some_mel(20) + 1000)
    with pytest.raises(ValueError, match=r"no finite samples.*doctor"):
        list(voice.stream(some_mel(20) + 1000))


@pytest.mark.slow
def test_the_denoisers_bias_is_of_the_bare_voice(voice, monkeypatch):
    """As in the original, it is measured without clipping, which would change the spectrum."""
    loud = Voice(voice.config, voice.params)
    loud.__dict__["_reverse"] = voice._reverse
    limit = "waveglow_jax.synthesis.levels.FULL_SCALE"
    monkeypatch.setattr(limit, 1e-3)
    held = loud.bias_spectrum
    monkeypatch.setattr(limit, np.inf)
    np.testing.assert_array_equal(held, Voice(voice.config, voice.params).bias_spectrum)


# ------------------------------------------------------------------------------ what goes in


def test_int16_is_scaled_as_soundfile_does(voice):
    samples = np.rint(some_audio(4000) * 32767).astype(np.int16)
    scaled = samples.astype(np.float32) / 32768
    np.testing.assert_array_equal(voice.mel(samples), voice.mel(scaled))
    batch, mel = samples[None, :2560], some_mel(10)[None]
    for got, expected in zip(
        voice.encode(batch, mel), voice.encode(scaled[None, :2560], mel), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("kind", [np.int32, np.uint8, np.int64, bool])
def test_other_integers_are_refused_with_the_remedy(voice, kind):
    with pytest.raises(ValueError, match=r"full scale.*divide"):
        voice.mel(np.ones(4000, kind))
    with pytest.raises(ValueError, match=r"full scale.*divide"):
        voice.encode(np.ones((1, 2560), kind), some_mel(10)[None])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(voice, value):
    audio, mel = some_audio(2560), some_mel(10)
    audio[7] = value
    with pytest.raises(ValueError, match="not finite"):
        voice.mel(audio)
    with pytest.raises(ValueError, match="not finite"):
        voice.encode(audio[None], mel[None])
    mel[3, 3] = value
    with pytest.raises(ValueError, match="not finite"):
        voice.encode(some_audio(2560)[None], mel[None])


def test_floats_of_another_full_scale_are_told(voice):
    with pytest.warns(LevelWarning, match=r"where full scale is 1.*32768"):
        voice.mel(some_audio(4000) * 32768)


# ------------------------------------------------------------------------------ commands


@pytest.mark.slow
@pytest.mark.parametrize("options", [("-o", "out"), ("-o", "out", "--consistency", "latent")])
def test_one_line_for_each_file_names_it(spoken, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    mels = {"a": some_mel(20), "b": some_mel(30), "wild": some_mel(20) + 1000}
    code, err = spoken(LOUD, mels, *options)
    warned = [line for line in err if line.startswith("warning: ")]
    assert len(warned) == 2 and all("of the samples" in line for line in warned)
    assert "in/a.npy" in warned[0] and "in/b.npy" in warned[1]
    (error,) = (line for line in err if line.startswith("error: "))
    assert code == 1 and "wild" in error and "doctor" in error
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.wav", "b.wav"]


@pytest.mark.slow
def test_a_stream_names_the_file_too(spoken):
    code, err = spoken(LOUD, {"a": some_mel(20), "wild": some_mel(20) + 1000}, "--stream")
    (warned,) = (line for line in err if line.startswith("warning: "))
    assert "a.npy" in warned and "doctor" in warned
    (error,) = (line for line in err if line.startswith("error: "))
    assert code == 1 and "wild.npy" in error and "doctor" in error


@pytest.mark.slow
def test_good_mels_pass_without_a_word(spoken, tmp_path):
    code, err = spoken(QUIET, {"a": some_mel(20)}, "-o", str(tmp_path / "out"))
    assert (code, err) == (0, [])
