"""Mels of other conventions: converted, and made to sound without a voice."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import soxr
from test_cli import run, weights  # noqa: F401 - fixtures
from test_conventions import by_librosa
from test_doctor import AUDIO as SPEECH

from waveglow_jax.audio.consistency import consistent
from waveglow_jax.conventions import CONVENTIONS
from waveglow_jax.synthesis import foreign
from waveglow_jax.synthesis.foreign import (
    config_of,
    converted,
    corrected_as,
    expected_error,
    frames_after,
    frames_for_one,
    lost,
    rewritten,
    same_spectrum,
    sound_of,
    why_not_of,
)
from waveglow_jax.synthesis.mels import mel_of_samples

KEYS = [row.key for row in CONVENTIONS]
ROWS = {row.key: row for row in CONVENTIONS}
AUDIO = SPEECH[:16000]
FEW = 4
"""The number of corrections. More of them take longer to run, not to compile."""


def mel_in(key: str, audio: np.ndarray = AUDIO) -> np.ndarray:
    """`[F, M]` by librosa."""
    rate = ROWS[key].spectrum.rate
    audio = audio if rate == 22050 else soxr.resample(audio, 22050, rate)
    return by_librosa(np.asarray(audio, np.float64), ROWS[key]).astype(np.float32)


def own_convention(key: str, **fields):
    """The config of a row, with other fields of its mel."""
    config = config_of(key)
    mel = foreign.replace(config.data.mel, **fields)
    return foreign.replace(config, data=foreign.replace(config.data, mel=mel))


# ------------------------------------------------------------------------------ exact


def test_rewritten_is_what_librosa_gives():
    """Power without a logarithm becomes decibels, and goes back exactly except at the floor."""
    linear, decibels = config_of("librosa"), config_of("librosa-db")
    np.testing.assert_allclose(
        rewritten(mel_in("librosa"), linear, decibels), mel_in("librosa-db"), atol=1e-3
    )
    np.testing.assert_allclose(
        rewritten(mel_in("librosa-db"), decibels, linear), mel_in("librosa"), rtol=1e-4, atol=1e-9
    )
    assert lost(linear, decibels) == "" and lost(decibels, linear) == "below its floor"


def test_rewritten_without_norm_and_in_log10():
    import librosa

    source = config_of("tacotron2")
    target = own_convention("tacotron2", norm="none", log="log10", floor=1e-2)
    spectra = np.abs(librosa.stft(np.asarray(AUDIO, np.float64), n_fft=1024, hop_length=256,
                                  pad_mode="reflect"))  # fmt: skip
    filters = librosa.filters.mel(sr=22050, n_fft=1024, n_mels=80, fmax=8000, norm=None)
    theirs = np.log10(np.maximum(filters @ spectra, 1e-2)).T
    ours = rewritten(mel_in("tacotron2"), source, target)
    # Slaney's norm makes bands softer by 1/14 at least, so this floor is met before ours.
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert lost(source, target) == ""
    assert "below" in lost(source, own_convention("tacotron2", floor=1e-7))
    capped = own_convention("tacotron2", ceiling=1.0)
    assert lost(capped, source) == "above its ceiling" and lost(source, capped) == ""


def test_which_spectra_are_the_same():
    pairs = {(a, b) for a in KEYS for b in KEYS if a < b}
    same = {pair for pair in pairs if same_spectrum(*map(config_of, pair))}
    assert same == {("librosa", "librosa-db")}
    assert not same_spectrum(config_of("hifigan"), own_convention("hifigan", epsilon=0.0))
    with pytest.raises(ValueError, match="one spectrum"):
        rewritten(mel_in("tacotron2"), config_of("tacotron2"), config_of("hifigan"))


# ------------------------------------------------------------------------------ through a signal


def test_the_sound_is_that_of_all_corrections_at_once():
    config, mel = config_of("vocos-24khz"), mel_in("vocos-24khz")
    noise = 0.01 * np.random.default_rng(3).standard_normal(len(mel) * 256)
    whole = consistent(noise.astype(np.float32), jnp.asarray(mel), corrected_as(config), FEW)
    np.testing.assert_allclose(sound_of(mel, config, FEW, seed=3), whole, atol=1e-5)


def test_frames_are_interpolated_where_few_windows_overlap():
    """Of torchaudio's default, whose windows overlap by half, every second frame is given."""
    config, mel = config_of("torchaudio"), mel_in("torchaudio")
    times = np.arange(2 * len(mel)) / 2
    between = np.stack([np.interp(times, np.arange(len(mel)), band) for band in mel.T], axis=1)
    own = corrected_as(config)
    assert (own.data.hop_length, config.data.hop_length) == (100, 200)
    noise = 0.01 * np.random.default_rng(3).standard_normal(len(mel) * 200).astype(np.float32)
    whole = consistent(noise, jnp.asarray(between, jnp.float32), own, FEW)
    made = sound_of(mel, config, FEW, seed=3)
    np.testing.assert_allclose(made, whole, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("make", [sound_of, lambda *a: converted(*a, config_of("hifigan"))])
def test_no_sound_of_what_is_no_mel(make):
    config, mel = config_of("tacotron2"), mel_in("tacotron2")
    for bad, words in (
        (mel.T, r"is not \[frames, 80\]"),
        (mel[:0], r"is not \[frames, 80\]"),
        (np.full_like(mel, np.nan), "not finite"),
    ):
        with pytest.raises(ValueError, match=words):
            make(bad, config)


def test_how_many_frames_are_interpolated():
    assert {key: n for key in KEYS if (n := frames_for_one(config_of(key))) > 1} == {
        "torchaudio": 2,
        "torchaudio-16khz": 2,
    }
    config = config_of("torchaudio")
    for hop, window, n in ((200, 800, 1), (201, 400, 3), (199, 400, 1)):  # 199 is a prime number
        data = foreign.replace(config.data, hop_length=hop, filter_length=1024, win_length=window)
        assert frames_for_one(foreign.replace(config, data=data)) == n


@pytest.mark.parametrize(
    "source, target",
    [("vocos-24khz", "tacotron2"), ("wavernn", "hifigan"), ("tacotron2", "rayhane")],
)
def test_converted_is_near_the_targets_own_mel(source, target):
    ours, theirs = config_of(source), config_of(target)
    made, true = converted(mel_in(source), ours, theirs, 8), mel_in(target)
    assert len(made) == frames_after(len(mel_in(source)), ours, theirs)
    assert abs(len(made) - len(true)) <= 1, "the mel leaves the length open by a hop"
    n = min(len(made), len(true))
    form = theirs.data.mel
    off = np.abs(made[:n] - true[:n]) / form.slope
    assert off.mean() < 0.35, "of speech that is shifted by half a hop it is already 0.45"


@pytest.mark.parametrize("key", ["vocos-24khz", "bigvgan-44khz", "hifigan", "rayhane"])
def test_the_frames_are_told_before(key):
    for frames in (9, 50, 173, 1001):
        ours, theirs = config_of(key), config_of("espnet-24khz")
        samples = np.zeros(frames * ours.data.hop_length, np.float32)
        made = foreign.mel_of_sound(samples, ours, theirs)
        assert len(made) == frames_after(frames, ours, theirs)


def test_every_pair_has_an_expected_error():
    for source in KEYS:
        for target in KEYS:
            error = expected_error(source, target)
            if same_spectrum(config_of(source), config_of(target)):
                assert error < 0.01
            else:
                assert 0.01 < error < 6, (source, target)
    assert expected_error("own", "tacotron2") is None


# ------------------------------------------------------------------------------ what a mel can be


@pytest.mark.parametrize("key", KEYS)
def test_a_mel_can_be_of_its_own_convention(key):
    for gain in (1e-4, 1.0, 0.999 / np.abs(AUDIO).max()):
        assert why_not_of(mel_in(key, gain * AUDIO), config_of(key)) == ""
    assert why_not_of(mel_in(key, np.sign(AUDIO)), config_of(key)) == ""
    noise = np.sign(np.random.default_rng(0).standard_normal(len(AUDIO)))
    assert why_not_of(by_librosa(noise, ROWS[key]), config_of(key)) == ""


def test_a_linear_mel_is_no_logarithmic_one():
    assert "most of its values are above" in why_not_of(
        np.exp(mel_in("tacotron2")), config_of("tacotron2")
    )


@pytest.mark.parametrize(
    "read_as, is_of, why",
    [
        ("tacotron2", "librosa-db", "most of its values are below"),
        ("tacotron2", "librosa", "it reaches"),
        ("librosa", "tacotron2", "most of its values are below"),
        ("wavernn", "rayhane", "most of its values are below"),
        ("diffwave", "tacotron2", "most of its values are below"),
        ("tacotron2", "wavernn", "most of its values are above"),
        ("hifigan", "diffwave", "most of its values are above"),
    ],
)
def test_a_mel_of_another_convention_is_told_by_its_values(read_as, is_of, why):
    assert why in why_not_of(mel_in(is_of), config_of(read_as))


# ------------------------------------------------------------------------------ the commands


def written(path, mel) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.asarray(mel, np.float32).T)
    return str(path)


def test_convert_mel_does_the_good_ones(run, tmp_path):  # noqa: F811
    folder = tmp_path / "in"
    written(folder / "good.npy", mel_in("vocos-24khz"))
    written(folder / "bands.npy", mel_in("tacotron2"))
    written(folder / "db.npy", 20 / np.log(10) * mel_in("vocos-24khz"))
    written(folder / "short.npy", mel_in("vocos-24khz")[:1])
    np.save(folder / "wide.npy", np.full((100, 20), 1e300))
    out = tmp_path / "out"
    code, lines, err = run("convert-mel", folder, "--from", "vocos-24khz", "--to", "hifigan",
                           "-o", out, "--consistency", FEW, "--json")  # fmt: skip
    told, bands, db, short, wide, count = err
    assert code == 1 and count == "4 of 5 files could not be done"
    assert told.endswith("converted through a signal: the error was measured for 32 corrections")
    assert "bands.npy" in bands and "100 bands" in bands
    assert "db.npy" in db and "most of its values" in db and "doctor" in db
    assert "short.npy" in short and "too short" in short
    assert "wide.npy" in wide and "not finite" in wide
    (line,) = lines
    said = json.loads(line)
    mel = np.load(out / "good.npy")
    assert mel.shape == (80, said["frames"]) and not said["exact"]
    assert said["expected_error"] is None
    want = converted(mel_in("vocos-24khz"), config_of("vocos-24khz"), config_of("hifigan"), FEW)
    np.testing.assert_allclose(mel, want.T, atol=1e-5)


def test_convert_mel_tells_the_error_of_the_default(run, tmp_path):  # noqa: F811
    file = written(tmp_path / "mel.npy", mel_in("vocos-24khz"))
    _, (line,), (told,) = run("convert-mel", file, "--from", "vocos-24khz", "--to", "hifigan",
                              "-o", tmp_path / "out", "--json")  # fmt: skip
    error = expected_error("vocos-24khz", "hifigan")
    assert told.endswith(f"expected error {error:.2f} (mean absolute, in units of ln)")
    assert json.loads(line)["expected_error"] == error


def test_convert_mel_exactly(run, tmp_path):  # noqa: F811
    file = written(tmp_path / "mel.npy", mel_in("librosa"))
    target = tmp_path / "made.npy"
    code, _, err = run("convert-mel", file, "--from", "librosa", "--to", "librosa-db", "-f", target)
    assert (code, err) == (0, ["librosa: converted exactly"])
    np.testing.assert_allclose(np.load(target).T, mel_in("librosa-db"), atol=1e-3)


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["--from", "vocos", "-o", "out"], 2, "did you mean vocos-24khz"),
        (["--from", "hifigan", "--to", "espnt", "-o", "out"], 2, "did you mean espnet"),
        (["--from", "hifigan", "--to", "espnet", "-w", "voice", "-o", "out"], 2, "leave one out"),
        (["--from", "hifigan"], 2, "give -o"),
    ],
)
def test_convert_mel_refuses(run, tmp_path, words, code, said):  # noqa: F811
    file = written(tmp_path / "mel.npy", mel_in("hifigan"))
    found, _, err = run("convert-mel", file, *words)
    assert found == code and said in err[-1] and (code == 2 or len(err) == 1)


def test_a_voice_takes_another_mel(run, tmp_path, weights):  # noqa: F811
    """`weights` is of Tacotron 2's mel; the frames and samples are those of the converted mel."""
    file = written(tmp_path / "mel.npy", mel_in("hifigan"))
    options = ["--consistency", 1, "-w", weights, "-o", tmp_path / "out"]
    code, _, err = run("synthesize", file, "--mel-convention", "hifigan", *options)
    assert code == 0 and err[0].startswith("hifigan: converted through a signal: expected error")
    samples, rate = soundfile.read(tmp_path / "out/mel.wav")
    frames = frames_after(len(mel_in("hifigan")), config_of("hifigan"), config_of("tacotron2"))
    assert rate == 22050 and len(samples) == frames * 256
    assert run("convert-mel", file, "--from", "hifigan", "-w", weights, "-o", tmp_path)[0] == 1
    code, _, _ = run("convert-mel", file, "--from", "hifigan", "-w", weights, "-f",
                     tmp_path / "own.npy")  # fmt: skip
    assert code == 0
    assert run("synthesize", tmp_path / "own.npy", *options)[0] == 0
    again, _ = soundfile.read(tmp_path / "out/own.wav")
    np.testing.assert_allclose(again, samples, atol=2e-4)


def test_no_network(run, tmp_path):  # noqa: F811
    """A mel and a recording, at the convention's own rate."""
    mel = mel_in("vocos-24khz")
    file = written(tmp_path / "mel.npy", mel)
    soundfile.write(tmp_path / "talk.wav", soxr.resample(AUDIO, 22050, 24000), 24000)
    options = ["--mel-convention", "vocos-24khz", "--consistency", FEW]
    out = tmp_path / "out"
    code, lines, err = run(
        "synthesize", file, tmp_path / "talk.wav", "--no-network", "-o", out, *options
    )
    assert (code, err) == (0, [])
    assert all("at 24000 Hz" in line and f"{FEW} corrections" in line for line in lines)
    samples, rate = soundfile.read(out / "mel.wav")
    assert rate == 24000
    config = config_of("vocos-24khz")
    np.testing.assert_allclose(samples, np.clip(sound_of(mel, config, FEW), -1, 1), atol=5e-5)
    heard, rate = soundfile.read(out / "talk.wav")
    assert rate == 24000 and np.corrcoef(np.abs(heard), np.abs(samples[: len(heard)]))[0, 1] > 0.9


@pytest.mark.parametrize(
    "option",
    [["-w", "voice"], ["-s", "0.5"], ["-s", "0"], ["-d", "0.1"], ["--dtype", "bfloat16"],
     ["--window", "9"], ["--stream"], ["--consistency", "latent"], ["--verbose"]],
    ids=" ".join,
)  # fmt: skip
def test_no_network_refuses_what_needs_a_voice(run, tmp_path, option):  # noqa: F811
    file = written(tmp_path / "mel.npy", mel_in("tacotron2"))
    where = [] if "--stream" in option else ["-o", tmp_path / "out"]
    code, _, err = run("synthesize", file, "--no-network", *where, *option)
    assert code == 2 and "needs a voice: it does not go with --no-network" in err[-1]


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_every_row_sounds_like_the_recording(key):
    stoi = pytest.importorskip("pystoi").stoi
    config = config_of(key)
    rate = config.data.sampling_rate
    audio = np.asarray(SPEECH[: 4 * 22050], np.float32)
    audio = audio if rate == 22050 else soxr.resample(audio, 22050, rate)
    made = sound_of(mel_of_samples(audio, config), config)[: len(audio)]
    assert stoi(audio[: len(made)], made, rate) > 0.95


@pytest.fixture(autouse=True, scope="module")
def forget():
    yield
    jax.clear_caches()  # the programs of fourteen conventions
