"""Likelihoods of recordings: in total, their shares per frame, and under wrong mels."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import soundfile
from test_vocoder import lively_params, some_audio, some_mel, tiny_config

import waveglow_jax as wg
from waveglow_jax.analysis import likelihoods
from waveglow_jax.analysis.likelihoods import (
    leaving_groups,
    likelihood_figure,
    likelihood_of,
    noisy,
)
from waveglow_jax.cli import main
from waveglow_jax.config import config_from_dict, config_to_dict
from waveglow_jax.synthesis import vocoder
from waveglow_jax.synthesis.vocoder import Voice

HOP, FRAMES = 256, 90


def predicting_config():
    raw = config_to_dict(tiny_config())
    raw["waveglow_config"]["mel_whitening"] = {"block": 64, "floor": 0.02, "order": 24}
    return config_from_dict(raw)


CONFIGS = {
    "published": tiny_config("sample"),
    "whitening": tiny_config("group"),
    "predicting": predicting_config(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_shares_of_the_frames_add_up_to_the_flows_own(name, monkeypatch):
    config = CONFIGS[name]
    params = lively_params(config)
    audio, mel = some_audio(FRAMES * HOP + 7), some_mel(FRAMES + 1)
    # Several windows, as short as their context allows.
    monkeypatch.setattr(likelihoods, "KEPT_FRAMES", 28)
    found = likelihood_of(params, config, audio, mel)
    audio = audio[: FRAMES * HOP]
    z, nats = Voice(config, params).encode(audio[None], mel[None])
    assert found.frames == FRAMES
    assert found.nats == pytest.approx(float(nats[0]), rel=1e-5)
    assert found.of_frame.mean() == pytest.approx(found.nats, rel=1e-12)
    parts = found.energy + found.log_det - 0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(found.of_frame, parts, rtol=1e-12)
    assert found.bits == pytest.approx(15 - found.nats / math.log(2))
    # A frame's energy is that of the z at its own steps.
    energy = -0.5 * np.sum(np.float64(z[0]).reshape(FRAMES, -1) ** 2, axis=1) / HOP
    np.testing.assert_allclose(found.energy, energy, rtol=1e-3, atol=1e-4)
    of_channels = {"all": (slice(None), found.z)}
    of_channels |= {k: (c, found.groups[k]) for k, c in leaving_groups(config).items()}
    for channels, moments in of_channels.values():
        values = z[0][:, channels].ravel().astype(np.float64)
        assert moments.mean == pytest.approx(values.mean(), abs=1e-3 * values.std())
        assert moments.std == pytest.approx(values.std(), rel=1e-3)
        assert moments.kurtosis == pytest.approx(scipy.stats.kurtosis(values), abs=1e-2)


@pytest.mark.slow
def test_the_log_det_of_a_frame_is_what_its_own_samples_are_stretched_by():
    """With a conditioner whose receptive field is one step, every frame is a flow of its own."""
    sizes = {"n_layers": 1, "n_channels": 4, "kernel_size": 1}
    raw = config_to_dict(tiny_config())
    raw["waveglow_config"] |= {"WN_config": sizes, "upsample_kernel": HOP}
    config = config_from_dict(raw)
    params = lively_params(config)
    audio, mel = some_audio(3 * HOP), np.repeat(some_mel(1), 4, axis=0)
    found = likelihood_of(params, config, audio, mel)
    for k in range(3):
        piece = audio[k * HOP : (k + 1) * HOP]
        _, log_det = wg.forward(params, config, piece[None], jnp.asarray(mel[None, :2]))
        assert found.log_det[k] == pytest.approx(float(log_det[0]) / HOP, rel=1e-4)
    assert np.ptp(found.log_det) > 1e-3


def test_groups_are_those_that_leave():
    assert leaving_groups(tiny_config()) == {
        "before flow 1": slice(0, 4),
        "at the end": slice(4, 16),
    }


def test_mels_that_do_not_fit_are_refused():
    config = CONFIGS["published"]
    for shape in ((FRAMES + 2, 80), (FRAMES - 1, 80), (FRAMES, 40)):
        with pytest.raises(ValueError, match=str(shape[0])):
            likelihood_of({}, config, np.zeros(FRAMES * HOP), np.zeros(shape))


def test_noise_is_of_that_size_and_always_the_same():
    audio = some_audio(3 * HOP + 5)
    first, again = noisy(audio, 0.01, HOP), noisy(audio, 0.01, HOP)
    np.testing.assert_array_equal(first, again)
    assert first.shape == (3 * HOP,)
    assert (first - audio[: 3 * HOP]).std() == pytest.approx(0.01, rel=0.1)
    np.testing.assert_array_equal(noisy(audio, 0, HOP), audio[: 3 * HOP])


@pytest.mark.slow
def test_the_picture_draws():
    config = CONFIGS["whitening"]
    mel = some_mel(9)
    found = likelihood_of(lively_params(config), config, some_audio(8 * HOP), mel)
    figure = likelihood_figure(found, mel, config.data, "title")
    assert len(figure.axes) == 3
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_ydata(), found.of_frame)


# ------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "voice"
    wg.save(folder, CONFIGS["whitening"], lively_params(CONFIGS["whitening"]))
    return folder


@pytest.fixture
def run(capsys):
    """A command -> (exit code, lines on stdout, lines on stderr)."""

    def run(*arguments):
        try:
            code = main([str(argument) for argument in ("likelihood", *arguments)])
        except SystemExit as stopped:
            code = stopped.code
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out.splitlines(), err.splitlines()

    return run


def recording(path, samples=FRAMES * HOP):
    soundfile.write(path, some_audio(samples), 22050, subtype="FLOAT")
    return path


@pytest.mark.slow
def test_the_command_tells_what_the_flow_does(run, weights, tmp_path):
    path = recording(tmp_path / "a.wav")
    code, out, _ = run(path, "-w", weights, "--json", "--noise", "0.002")
    assert code == 0
    (found,) = map(json.loads, out)
    voice = vocoder.load(weights)
    audio = some_audio(FRAMES * HOP)
    _, nats = voice.encode(noisy(audio, 0.002, HOP)[None], voice.mel(audio)[None])
    assert found["nats"] == pytest.approx(float(nats[0]), rel=1e-4)
    assert len(found["of_frame"]) == found["frames"] == FRAMES
    code, out, _ = run(path, "-w", weights, "--plot", "-o", tmp_path / "out")
    assert code == 0
    assert out[0].startswith(f"{path}  ")
    assert "nats per sample" in out[0]
    assert (tmp_path / "out" / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_mel_from_a_file(run, weights, tmp_path):
    path, voice = recording(tmp_path / "a.wav"), vocoder.load(weights)
    mel = voice.mel(some_audio(FRAMES * HOP))

    def nats(mel):
        np.save(tmp_path / "mel.npy", np.float32(mel.T))
        code, out, err = run(path, "-w", weights, "--json", "--mel", tmp_path / "mel.npy")
        return json.loads(out[0])["nats"] if code == 0 else err

    own = json.loads(run(path, "-w", weights, "--json")[1][0])["nats"]
    assert nats(mel) == pytest.approx(own, abs=1e-6)
    assert nats(mel[:-3]) != pytest.approx(own, abs=1e-6)
    # A wrong convention, and values under which float32 overflows.
    assert abs(nats(mel / math.log(10)) - own) > 0.1
    assert nats(20 * mel + 100) is None
    (error,) = nats(mel[: FRAMES // 2])
    assert "mel.npy" in error
    assert str(FRAMES // 2) in error
    assert str(FRAMES + 1) in error


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("nowhere.wav",), 1),
        (("short.wav",), 1),
        (("a.wav", "--mel", "nowhere.npy"), 1),
        (("a.wav", "--plot"), 2),
        (("a.wav", "-o", "out"), 2),
        (("a.wav", "short.wav", "--mel", "mel.npy"), 2),
        (("a.wav", "--noise", "2"), 2),
    ],
)
def test_what_cannot_be_is_refused(run, weights, tmp_path, monkeypatch, arguments, code):
    monkeypatch.chdir(tmp_path)
    recording(tmp_path / "a.wav", 2048)
    recording(tmp_path / "short.wav", 100)
    found, _, err = run(*arguments, "-w", weights)
    assert found == code
    assert ("error: " in err[-1]) and (len(err) == 1 or code == 2)
