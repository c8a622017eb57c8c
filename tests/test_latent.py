"""The latent, its parts and interpolation; the three commands; the toy flow of the docs."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from compiling import quick_jit
from test_cli import below, one_error, recording, run  # noqa: F401 - a fixture
from test_vocoder import lively_params, some_audio, some_mel, tiny_config, voice_of

import waveglow_jax as wg
from waveglow_jax.analysis import latent
from waveglow_jax.audio.consistency import consistent
from waveglow_jax.config import config_from_dict
from waveglow_jax.flow.waveglow import inverse
from waveglow_jax.synthesis import vocoder

HOP, RATE = 256, 22050
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("weights") / "voice"
    wg.save(folder, tiny_config(), lively_params(tiny_config()))
    return str(folder)


@pytest.fixture(autouse=True)
def load_once(monkeypatch):
    """All commands share one voice and its compiled programs."""
    monkeypatch.setattr(vocoder, "load", lambda source: voice_of("group"))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "n_samples"), [("group", 20 * HOP + 77), ("sample", 20 * HOP)])
def test_a_recording_comes_back_whole(kind, n_samples):
    voice, audio = voice_of(kind), some_audio(n_samples)
    found = latent.encode(voice, audio)
    assert found.z.shape[0] * voice.config.waveglow.n_group == math.ceil(n_samples / HOP) * HOP
    again = voice.decode(found.z, found.mel)[: found.n_samples]
    assert again.shape == audio.shape
    exact = latent.round_trip(audio, again)
    assert exact.snr_db > 90 and exact.max_error < 1e-5
    assert exact.max_error == np.abs(again - audio).max()


@pytest.mark.slow
def test_decoding_is_the_flow_s_inverse():
    voice, config = voice_of("group"), tiny_config()
    z = np.random.default_rng(0).normal(size=(21 * HOP // 16, 16)).astype(np.float32)
    mel = some_mel(21)
    expected = quick_jit(inverse, static_argnums=1)(voice.params, config, z[None], mel[None])[0][0]
    np.testing.assert_allclose(voice.decode(z, mel), expected, atol=2e-5)


@pytest.mark.slow
def test_decoded_and_corrected():
    voice, config = voice_of("group"), tiny_config()
    z = np.random.default_rng(0).normal(size=(20 * HOP // 16, 16)).astype(np.float32)
    mel = some_mel(21)  # one frame more than z
    bare = voice.decode(z, mel)
    expected = np.asarray(consistent(bare, mel, config, 2))
    found = voice.decode(z, mel, consistency=2)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_round_trip_is_in_decibels():
    audio = some_audio(1000)
    found = latent.round_trip(audio, audio * np.float32(1.1))
    assert found.snr_db == pytest.approx(20, abs=1e-3)
    assert latent.round_trip(audio, audio).snr_db == math.inf


def test_groups_are_the_channels_that_leave_together():
    assert tiny_config().waveglow.exits() == [slice(0, 4), slice(4, 16)]
    glow = {"n_flows": 12, "n_group": 8, "n_early_every": 4, "n_early_size": 2}
    published = config_from_dict({"waveglow_config": glow})
    assert published.waveglow.exits() == [slice(0, 2), slice(2, 4), slice(4, 8)]


@pytest.mark.usefixtures("no_full_scale")
@pytest.mark.slow
def test_only_the_chosen_part_of_z_changes():
    voice, config = voice_of("group"), tiny_config()
    found = latent.encode(voice, some_audio(20 * HOP))
    seconds = (0.05, 0.1)
    part = latent.chosen_part(config, len(found.z), [0], seconds)
    times = np.arange(len(found.z)) * 16 / RATE
    rows = (times >= 0.05) & (times < 0.1)
    assert part[rows, :4].all() and part.sum() == 4 * rows.sum()

    for changed in (
        latent.with_noise(found.z, part, config, sigma=0.5, seed=3),
        latent.scaled(found.z, part, 2.0),
    ):
        assert (changed[~part] == found.z[~part]).all() and (changed[part] != found.z[part]).all()
        audio = voice.decode(changed, found.mel)[: found.n_samples]
        # The flow is a bijection given its mel: the changed latent is this audio's own.
        z, _ = voice.encode(audio[None], found.mel[None])
        np.testing.assert_allclose(z[0], changed, atol=2e-3)
    noise = latent.with_noise(found.z, np.ones_like(part), config, sigma=1.0, seed=3)
    np.testing.assert_allclose(
        voice.decode(noise, found.mel[:-1]),
        voice.synthesize(found.mel[:-1], sigma=1.0, seed=3),
        atol=1e-5,
    )
    for groups, seconds in (([2], (0, 1)), ([0], (0.5, 0.6)), ([0], (0.1, 0.1)), ([], (0, 1))):
        with pytest.raises(ValueError, match=r"group|chooses nothing"):
            latent.chosen_part(config, len(found.z), groups, seconds)


def test_slerp_keeps_the_temperature():
    a, b = np.random.default_rng(0).normal(size=(2, 400, 16))
    for share in (0.0, 0.25, 0.5, 1.0):
        middle = latent.slerp(a, b, share)
        assert middle.std() == pytest.approx(1, abs=0.02)
        # The angle to the start grows in proportion.
        cosines = [np.sum(x * a) / np.linalg.norm(x) / np.linalg.norm(a) for x in (middle, b)]
        angles = np.arccos(np.clip(cosines, -1, 1))
        assert angles[0] == pytest.approx(share * angles[1], abs=1e-6)
    np.testing.assert_allclose(latent.slerp(a, b, 0.0), a)
    np.testing.assert_allclose(latent.slerp(a, b, 1.0), b)
    np.testing.assert_allclose(latent.slerp(a, 3 * a, 0.5), 2 * a)
    np.testing.assert_allclose(latent.slerp(a, 0 * a, 0.5), a / 2)
    # The arithmetic mean has a smaller norm.
    assert np.linalg.norm(0.5 * (a + b)) < 0.75 * np.linalg.norm(a)


@pytest.mark.slow
def test_between_two_of_different_lengths():
    voice = voice_of("group")
    first, second = (latent.encode(voice, some_audio(n * HOP, seed=n)) for n in (12, 9))
    z, mel = latent.between(first, second, 1.0, "z")
    np.testing.assert_allclose(z, second.z, atol=1e-6)
    np.testing.assert_array_equal(mel, first.mel[:10])
    z, mel = latent.between(first, second, 0.5, "mel")
    np.testing.assert_array_equal(z, first.z[: len(second.z)])
    np.testing.assert_allclose(mel, (first.mel[:10] + second.mel) / 2, rtol=1e-6)


# ------------------------------------------------------------------------------ commands


@pytest.mark.slow
def test_resynthesize_tells_how_exact_it_is(run, tmp_path, weights):  # noqa: F811
    path = recording(tmp_path / "in/a.wav", 20 * HOP + 77)
    code, out, err = run("resynthesize", tmp_path / "in", "-o", tmp_path / "o", "--json")
    told = json.loads(out[0])
    assert (code, err) == (0, []) and told["changed"] == 0 and told["snr_db"] > 90
    assert below(tmp_path / "o") == ["a.png", "a.wav"]
    first, second = (soundfile.read(p, dtype="int16")[0] for p in (path, tmp_path / "o/a.wav"))
    assert np.abs(first.astype(int) - second).max() <= 1
    code, out, err = run(
        *("resynthesize", path, "-o", tmp_path / "p", "--replace", 1, "--groups", "1"),
        *("--from", 0.1, "--to", 0.2),
    )
    assert code == 0 and "of z replaced by noise of sigma 1" in out[0]
    for options in (("--scale", 0), ("--consistency", 2)):
        code, out, err = run("resynthesize", path, "-o", tmp_path / "q", *options, "--json")
        assert code == 0 and json.loads(out[0])["snr_db"] < 60


@pytest.mark.slow
def test_interpolate_and_sweep_write_what_they_name(run, tmp_path):  # noqa: F811
    a, b = recording(tmp_path / "a.wav", 20 * HOP), recording(tmp_path / "b.wav", 12 * HOP)
    code, out, _ = run("interpolate", a, b, "-o", tmp_path / "i", "--steps", 3, "--path", "mel")
    names = ["mel_0.00", "mel_0.50", "mel_1.00"]
    assert (code, len(out)) == (0, 3)
    expected = [f"{name}.{suffix}" for name in names for suffix in ("png", "wav")]
    assert below(tmp_path / "i") == ["mel.png", *expected]
    start, end = (soundfile.read(tmp_path / f"i/{n}.wav")[0] for n in (names[0], names[-1]))
    # The part that is cut off influences the samples shortly before the cut.
    cut = 10 * HOP
    np.testing.assert_allclose(start[:cut], soundfile.read(a)[0][:cut], atol=1e-3)
    assert np.abs(start - end).max() > 1e-2

    np.save(tmp_path / "c.npy", some_mel(20).T)
    code, out, _ = run(
        *("sweep", a, tmp_path / "c.npy", "-o", tmp_path / "s", "-s", "0,0.5", "--json"),
        *("--consistency", 2),
    )
    assert code == 0 and [json.loads(line)["sigma"] for line in out] == [[0, 0.5]] * 2
    kinds = [".png", "_sigma0.5.wav", "_sigma0.wav"]
    assert below(tmp_path / "s") == [name + kind for name in "ac" for kind in kinds]
    expected = voice_of("group").synthesize(some_mel(20), sigma=0.5, seed=0, consistency=2)
    found = soundfile.read(tmp_path / "s/c_sigma0.5.wav")[0]
    np.testing.assert_allclose(found, np.clip(expected, -1, 1), atol=1e-4)


@pytest.mark.slow
def test_bad_input_is_one_line(run, tmp_path):  # noqa: F811
    good = recording(tmp_path / "good.wav", 20 * HOP)
    other = recording(tmp_path / "z_1.00.wav", 20 * HOP)
    short = recording(tmp_path / "short.wav", 100)
    out = tmp_path / "o"
    for arguments, words in (
        (("resynthesize", tmp_path / "none.wav", "-o", out), "no such file"),
        (("resynthesize", short, "-o", out), "too short"),
        (("resynthesize", good, "-o", out, "--replace", 1, "--groups", "7"), "groups 0 to 1"),
        (("resynthesize", good, "-o", out, "--scale", 1, "--from", 9), "chooses nothing"),
        (("resynthesize", good, "-o", tmp_path), "overwrite an input"),
        (("interpolate", good, short, "-o", out), "too short"),
        (("interpolate", good, tmp_path, "-o", out), "one recording each"),
        (("interpolate", good, other, "-o", tmp_path, "--steps", 2), "overwrite an input"),
        (("sweep", tmp_path / "none.npy", "-o", out), "no such file"),
        (("sweep", good, "-o", tmp_path), "the next run would take"),
    ):
        code, _, err = run(*arguments)
        assert code == 1
        one_error(err, words)
    for arguments in (
        ("resynthesize", good, "-o", out, "--groups", "0"),
        ("resynthesize", good, "-o", out, "--replace", 1, "--scale", 1),
        ("resynthesize", good, "-o", out, "--groups", "one", "--scale", 1),
        ("interpolate", good, good, "-o", out, "--steps", 1),
        ("sweep", good, "-o", out, "-s", "0.5,"),
        ("sweep", good, "-o", out, "-s=-1"),
    ):
        assert run(*arguments)[0] == 2


@pytest.mark.slow
def test_the_toy_flow_learns_inverts_and_knows_its_determinant(capsys):
    spec = importlib.util.spec_from_file_location(
        "toy_flow", ROOT / "docs" / "explanation" / "toy_flow.py"
    )
    toy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toy)
    found = toy.main(steps=1000)
    assert "nats per point: " in capsys.readouterr().out
    # Near, up to the random sample: no density gives the points a higher mean than their own.
    assert -0.05 < found["nats per point"] - found["the density's own"] < 0.01
    assert found["largest round-trip error"] < 1e-4
    assert found["largest log-determinant error"] < 1e-5
