"""The doctor against mels of known conventions and planted mistakes, computed with librosa here."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile

import waveglow_jax as wg
from waveglow_jax.audio.correlation import overlap
from waveglow_jax.cli import main
from waveglow_jax.config import Config
from waveglow_jax.conventions import CONVENTIONS, HALF_HOP
from waveglow_jax.doctor.advice import next_step
from waveglow_jax.doctor.alone import diagnose_alone
from waveglow_jax.doctor.diagnose import diagnose
from waveglow_jax.doctor.fit import Case, _lag
from waveglow_jax.doctor.recipe import mended
from waveglow_jax.files.mels import read_mel
from waveglow_jax.weights.release import BUNDLED_VOICE

RATE = 22050
RECORDINGS = sorted((BUNDLED_VOICE / "recordings").glob("*.wav"))
SPEECH = np.concatenate([soundfile.read(path, dtype="float32")[0] for path in RECORDINGS])
AUDIO = SPEECH[: 3 * RATE]
OWN = Config().convention


def mel(audio=AUDIO, rate=RATE, n_fft=1024, hop=256, win=None, half_hop=False, **filters):
    """`[M, F]` magnitudes or powers."""
    power = filters.pop("power", 1)
    pad_mode, center = filters.pop("pad_mode", "reflect"), filters.pop("center", True)
    if half_hop:
        audio, center = np.pad(audio, (n_fft - hop) // 2, mode="reflect"), False
    stft = librosa.stft(
        audio, n_fft=n_fft, hop_length=hop, win_length=win, center=center, pad_mode=pad_mode
    )
    filters = {"n_mels": 80, "fmin": 0, "fmax": 8000, **filters}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # bands without a bin: torchaudio's default
        basis = librosa.filters.mel(sr=rate, n_fft=n_fft, **filters)
    return basis @ np.abs(stft) ** power


def ln(magnitude, floor=1e-5):
    return np.log(np.maximum(magnitude, floor))


def log10(magnitude, floor=1e-10):
    return np.log10(np.maximum(magnitude, floor))


def decibels(magnitude, floor=1e-5):
    return 20 * np.log10(np.maximum(magnitude, floor))


def at(rate: int) -> np.ndarray:
    return librosa.resample(AUDIO, orig_sr=RATE, target_sr=rate)


def emphasised(audio):
    return np.append(audio[:1], audio[1:] - 0.97 * audio[:-1])


def standardised(x):
    return (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)


def late(x, frames):
    return np.pad(x, ((0, 0), (frames, 0)), constant_values=np.log(1e-5))[:, : x.shape[1]]


_HTK = {"htk": True, "norm": None}
_POWER_HTK = {"n_fft": 400, "hop": 200, "n_mels": 128, "power": 2, **_HTK}
NAMED = {
    "HiFi-GAN / BigVGAN": lambda: ln(mel(half_hop=True)),
    "BigVGAN, 24 kHz, 100 bands": lambda: ln(
        mel(at(24000), 24000, n_mels=100, fmax=12000, half_hop=True)
    ),
    "BigVGAN, 44.1 kHz, 128 bands": lambda: ln(
        mel(at(44100), 44100, 2048, 512, n_mels=128, fmax=22050, half_hop=True)
    ),
    "Vocos, 24 kHz": lambda: ln(mel(at(24000), 24000, n_mels=100, fmax=12000, **_HTK), 1e-7),
    "ParallelWaveGAN / ESPnet": lambda: log10(mel(fmin=80, fmax=7600)),
    "ParallelWaveGAN / ESPnet, 24 kHz": lambda: log10(
        mel(at(24000), 24000, 2048, 300, 1200, fmin=80, fmax=7600)
    ),
    "librosa's default, in dB": lambda: librosa.power_to_db(
        librosa.feature.melspectrogram(y=AUDIO, sr=RATE)
    ),
    "librosa's default, no logarithm": lambda: librosa.feature.melspectrogram(y=AUDIO, sr=RATE),
    "torchaudio's default": lambda: mel(fmax=11025, **_POWER_HTK),
    "torchaudio's default, 16 kHz": lambda: mel(at(16000), 16000, fmax=8000, **_POWER_HTK),
    "WaveRNN (fatchord)": lambda: np.clip(
        (decibels(mel(n_fft=2048, hop=275, win=1100, fmin=40, fmax=11025)) + 100) / 100, 0, 1
    ),
    "Tacotron-2 (Rayhane-mamah)": lambda: np.clip(
        8 * (decibels(mel(emphasised(AUDIO), RATE, 2048, 275, 1100, fmin=55, fmax=7600)) + 80) / 100
        - 4,
        -4,
        4,
    ),
    "DiffWave / WaveGrad": lambda: np.clip(
        (decibels(mel(fmin=20, fmax=11025, **_HTK) / np.sqrt(384)) - 20 + 100) / 100, 0, 1
    ),
}
"""Conventions as their software has them."""

BUT = "Tacotron 2 / WaveGlow, but with "
MISTAKES = {
    "log10": (lambda: log10(mel(), 1e-5), BUT + "log10 instead of natural logarithm", True),
    "dB": (lambda: decibels(mel()), BUT + "dB instead of natural logarithm", True),
    "no logarithm": (mel, BUT + "no logarithm instead of natural logarithm", True),
    "[0, 1]": (
        lambda: (decibels(mel()) + 100) / 120,
        BUT + "normalised otherwise instead of natural logarithm",
        True,
    ),
    "[-4, 4]": (
        lambda: np.clip(8 * (decibels(mel()) + 80) / 100 - 4, -4, 4),
        BUT + "[-4, 4]: 8 (dB + 80) / 100 - 4 instead of natural logarithm",
        False,
    ),
    "standardised": (
        lambda: standardised(log10(mel(fmin=80, fmax=7600))),
        "ParallelWaveGAN / ESPnet, but with every band normalised by itself instead of log10",
        False,
    ),
    "power": (
        lambda: ln(mel(power=2)),
        BUT + "the spectrum to the power of 2 instead of 1",
        False,
    ),
    "HTK": (lambda: ln(mel(htk=True)), BUT + "the htk mel scale instead of slaney", False),
    "no norm": (
        lambda: ln(mel(norm=None)),
        BUT + "filters with norm none instead of slaney",
        True,
    ),
    "fmax 7600": (
        lambda: ln(mel(fmax=7600)),
        BUT + "bands up to 7600 Hz instead of 8000",
        False,
    ),
    "fmax None": (
        lambda: ln(mel(fmax=None)),
        BUT + "bands up to 11025 Hz instead of 8000",
        False,
    ),
    "window": (
        lambda: ln(mel(win=800)),
        BUT + "a window of 800 samples instead of 1024",
        False,
    ),
    "FFT": (
        lambda: ln(mel(n_fft=2048)),
        BUT + "an FFT of 2048 instead of 1024, a window of 2048 samples instead of 1024",
        False,
    ),
    "hop": (
        lambda: ln(mel(hop=275)),
        BUT + "a hop of 275 samples instead of 256",
        False,
    ),
    "a hop of no table": (
        lambda: ln(mel(hop=233)),
        BUT + "a hop of 233 samples instead of 256",
        False,
    ),
    "rate": (
        lambda: ln(mel(at(16000), 16000)),
        BUT + "samples of 16000 Hz instead of 22050",
        False,
    ),
    "rate mistaken": (
        lambda: ln(mel(at(16000), RATE)),
        BUT + "samples of 16000 Hz instead of 22050, "
        "filters made for samples of 22050 Hz, with others filtered",
        False,
    ),
    "two at once": (
        lambda: log10(mel(htk=True, fmax=7600)),
        "ParallelWaveGAN / ESPnet, but with bands from 0 Hz instead of 80, "
        "the htk mel scale instead of slaney",
        False,
    ),
}
"""By name: the mel, the name of its convention, and whether it can be converted."""

FINDINGS = {
    "transposed": (lambda: ln(mel()).T, "[frames, bands] instead of [bands, frames]", True),
    "reversed": (lambda: ln(mel())[::-1], "the bands run from high to low", True),
    "softer": (lambda: ln(mel(AUDIO / 4)), "12.0 dB softer than the recording", True),
    "16 bits": (lambda: ln(mel(AUDIO * 32768)), "16-bit samples that were not scaled", True),
    "late": (lambda: late(ln(mel()), 3), "3 frames late", True),
    "not centred": (
        lambda: ln(mel(center=False)),
        "2 frames early: neither centred nor padded",
        False,
    ),
    "high floor": (lambda: ln(mel(), 1e-2), "floored at 0.01", False),
    "low floor": (lambda: ln(mel(AUDIO / 3000), 1e-8), "floored at 1e-08 instead of 1e-05", True),
    "no floor": (
        lambda: np.where(ln(mel()) < -9, -np.inf, ln(mel())),
        "not finite: the logarithm of 0, without a floor",
        True,
    ),
    "not numbers": (lambda: np.where(ln(mel()) > 0, np.nan, ln(mel())), "are not finite", False),
    "another recording": (
        lambda: ln(mel(SPEECH[-3 * RATE :])),
        "not a mel of this recording",
        False,
    ),
}
"""Faults that belong to no convention: the mel, the finding, and whether it can be converted."""


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_conventions_are_named(name):
    found = diagnose(NAMED[name](), AUDIO, RATE, OWN)
    assert found.convention == name
    assert found.verdict == "compute it again" and found.refused and found.recipe is None


def test_every_convention_of_the_table_is_planted():
    assert {row.name for row in CONVENTIONS} == {OWN.name, *NAMED}


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_planted_mistakes_are_named(name):
    make, convention, convertible = MISTAKES[name]
    array = make()
    found = diagnose(array, AUDIO, RATE, OWN)
    assert found.convention == convention
    assert found.verdict == ("convertible" if convertible else "compute it again")
    if convertible:
        np.testing.assert_allclose(mended(array, found.recipe, OWN), ln(mel()).T, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", FINDINGS)
def test_mistakes_of_no_convention_are_found(name):
    make, finding, convertible = FINDINGS[name]
    found = diagnose(make(), AUDIO, RATE, OWN)
    assert any(finding in line for line in found.findings), found.findings
    assert found.verdict == ("convertible" if convertible else "compute it again")
    assert bool(found.steps) == convertible == (found.recipe is not None)


@pytest.mark.slow
def test_what_is_found_is_undone():
    for name in ("transposed", "reversed", "16 bits"):
        array = FINDINGS[name][0]()
        recipe = diagnose(array, AUDIO, RATE, OWN).recipe
        np.testing.assert_allclose(mended(array, recipe, OWN), ln(mel()).T, atol=1e-4)
    shifted = FINDINGS["late"][0]()
    recipe = diagnose(shifted, AUDIO, RATE, OWN).recipe
    np.testing.assert_allclose(mended(shifted, recipe, OWN), ln(mel()).T[:-3], atol=1e-4)


CHUNKS = [SPEECH[start : start + 2 * RATE] for start in np.linspace(0, 8 * RATE, 20).astype(int)]


@pytest.mark.parametrize("chunk", range(20))
def test_healthy_mels_are_fine(chunk):
    audio = CHUNKS[chunk]
    array = ln(mel(audio))
    for found in (diagnose(array, audio, RATE, OWN), diagnose_alone(array, OWN)):
        assert (found.verdict, found.findings) == ("fine", ()), found


@pytest.mark.slow
def test_a_healthy_mel_may_be_predicted_cut_or_of_half_precision():
    rng = np.random.default_rng(0)
    array = ln(mel())
    for changed in (
        array + 0.3 * rng.normal(size=array.shape),
        array[:, :150],
        array[:, :-1],
        array.astype(np.float16),
        wg.log_mel(AUDIO, Config()).T,
    ):
        found = diagnose(np.asarray(changed, np.float64), AUDIO, RATE, OWN)
        assert (found.verdict, found.findings) == ("fine", ())


def test_a_recording_of_another_rate_is_resampled():
    found = diagnose(ln(mel()), at(24000), 24000, OWN)
    assert (found.verdict, found.convention) == ("fine", OWN.name)


ALONE = {
    "log10": (lambda: log10(mel(), 1e-5), "log10 of a magnitude", True),
    "ESPnet": (NAMED["ParallelWaveGAN / ESPnet"], "log10 of a magnitude", True),
    "dB": (lambda: decibels(mel()), "dB, as librosa's default", True),
    "librosa": (NAMED["librosa's default, in dB"], "dB, as librosa's default", False),
    "linear": (mel, "no logarithm of a magnitude", True),
    "power": (lambda: ln(mel(power=2)), "natural logarithm of a power", False),
    "[0, 1]": (NAMED["WaveRNN (fatchord)"], "[0, 1]: (dB + 100) / 100, as WaveRNN", False),
    "[-4, 4]": (NAMED["Tacotron-2 (Rayhane-mamah)"], "[-4, 4]: 8 (dB + 80) / 100 - 4", False),
    "standardised": (MISTAKES["standardised"][0], "a normalised mel", False),
    "Vocos": (NAMED["Vocos, 24 kHz"], "100 bands or Vocos, 24 kHz", False),
    "transposed": (FINDINGS["transposed"][0], "natural logarithm of a magnitude", True),
    "reversed": (FINDINGS["reversed"][0], "natural logarithm of a magnitude", True),
    "16 bits": (FINDINGS["16 bits"][0], "natural logarithm of a magnitude", True),
    "noise": (lambda: np.random.default_rng(0).normal(size=(80, 300)) - 5, "unknown", False),
}


@pytest.mark.parametrize("name", ALONE)
def test_alone_a_mel_tells_its_values_and_axes(name):
    make, convention, convertible = ALONE[name]
    found = diagnose_alone(make(), OWN)
    assert convention in found.convention
    assert found.findings and found.recipe is None
    assert found.verdict == ("convertible" if convertible else "compute it again")


# ------------------------------------------------------------------------------ other voices

ROWS = {row.key: row for row in CONVENTIONS}
ESPNET = {"fmin": 80, "fmax": 7600}
LIBROSA = {"n_fft": 2048, "hop": 512, "n_mels": 128, "fmax": None, "power": 2}
WAVERNN = {"n_fft": 2048, "hop": 275, "win": 1100, "fmin": 40, "fmax": 11025}


def in_unit(magnitude):
    return np.clip((decibels(magnitude) + 100) / 100, 0, 1)


HEALTHY = {
    "hifigan": lambda: ln(mel(half_hop=True)),
    "vocos-24khz": NAMED["Vocos, 24 kHz"],
    "espnet": NAMED["ParallelWaveGAN / ESPnet"],
    "librosa": lambda: mel(**LIBROSA),
    "wavernn": lambda: in_unit(mel(8 * AUDIO, **WAVERNN)),
}
"""Mels that voices of other conventions take, by the voice's convention."""
REWRITTEN = {
    "espnet": (
        lambda: ln(mel(**ESPNET), 1e-10),
        "natural logarithm instead of log10",
        "multiply by 0.434294",
    ),
    "librosa": (
        lambda: 10 * np.log10(np.maximum(mel(**LIBROSA), 1e-12)),
        "dB instead of no logarithm",
        "divide by 4.34294, then take the exponential",
    ),
    "wavernn": (
        lambda: ln(mel(8 * AUDIO, **WAVERNN)),
        "natural logarithm instead of [0, 1]: (dB + 100) / 100",
        "multiply by 0.086859, then add 1",
    ),
    "hifigan": (
        lambda: log10(mel(half_hop=True), 1e-5),
        "log10 instead of the natural logarithm",
        "multiply by 2.302585",
    ),
}
"""Mels of a voice's spectrum, written otherwise: the finding and the step that undoes it."""


def heard_by(key: str) -> np.ndarray:
    return 8 * AUDIO if key == "wavernn" else AUDIO


@pytest.mark.parametrize("key", HEALTHY)
def test_a_healthy_mel_of_another_voice_is_fine(key):
    found = diagnose(HEALTHY[key](), heard_by(key), RATE, ROWS[key])
    assert (found.verdict, found.findings) == ("fine", ()), found


@pytest.mark.parametrize("key", REWRITTEN)
def test_values_become_those_of_the_voice(key):
    make, finding, step = REWRITTEN[key]
    array = make()
    found = diagnose(array, heard_by(key), RATE, ROWS[key])
    assert found.verdict == "convertible" and finding in found.findings
    assert step in found.steps
    fixed, wanted = mended(array, found.recipe, ROWS[key]), HEALTHY[key]().T
    np.testing.assert_allclose(fixed, wanted, atol=1e-4 * np.ptp(wanted))


@pytest.mark.parametrize(
    "fields", [{"n_fft": 8192, "win": 8192}, {"hop": 4096, "frames": HALF_HOP}]
)
def test_a_spectrum_without_a_frame_explains_nothing(fields):
    case = Case(np.random.default_rng(0).standard_normal((20, 80)), AUDIO[:6600], RATE)
    assert case.fit(replace(OWN.spectrum, **fields)).unexplained == 1


def test_mels_of_any_lengths_share_a_frame():
    rng = np.random.default_rng(0)
    for frames in rng.integers(1, 12, (100, 2)):
        x, log = (rng.standard_normal((n, 1)) for n in frames)
        assert len(overlap(x, log, _lag(x, log))[0]) > 0


def test_a_square_mel_is_read_as_synthesize_reads_it():
    for start in range(0, 160, 20):
        array = ln(mel())[:, start : start + 80]
        assert array.shape == (80, 80)
        assert "[frames, bands]" not in " ".join(diagnose_alone(array, OWN).findings)


@pytest.mark.slow
def test_a_magnitude_mel_is_no_power_mel():
    found = diagnose(mel(**{**LIBROSA, "power": 1}), AUDIO, RATE, ROWS["librosa"])
    assert any("twice its logarithm would be off" in line for line in found.refused)


@pytest.mark.slow
def test_a_floor_above_the_voices_own_is_refused():
    array = ln(mel(at(24000), 24000, n_mels=100, fmax=12000, **_HTK), 1e-2)
    found = diagnose(array, AUDIO, RATE, ROWS["vocos-24khz"])
    assert any("between that and 1e-07 is lost" in line for line in found.refused)


# ------------------------------------------------------------------------------ what is next

NEXT = [
    (lambda: ln(mel()), OWN, "synthesize m.npy -o DIR"),
    (
        lambda: log10(mel(), 1e-5),
        OWN,
        "doctor a.wav m.npy --fix OUT.npy, which converts it exactly",
    ),
    (
        NAMED["Vocos, 24 kHz"],
        OWN,
        "synthesize m.npy --mel-convention vocos-24khz -o DIR, or convert-mel m.npy --from "
        "vocos-24khz --to tacotron2 -o DIR; or train a voice for it: train vocos24k --data "
        "RECORDINGS -o RUN",
    ),
    (
        NAMED["DiffWave / WaveGrad"],
        replace(OWN, key="own"),
        "synthesize m.npy --mel-convention diffwave -o DIR; or train a voice for it: train "
        "nvidia256 --data.mel diffwave --data RECORDINGS -o RUN",
    ),
    (FINDINGS["high floor"][0], OWN, "mel a.wav -o DIR, which computes the voice's own mel"),
    (MISTAKES["HTK"][0], OWN, "mel a.wav -o DIR, which computes the voice's own mel"),
]


@pytest.mark.parametrize(("make", "own", "says"), NEXT)
def test_what_to_do_next(make, own, says):
    found = diagnose(make(), AUDIO, RATE, own)
    assert next_step(found, own, "m.npy", "a.wav", None) == says


def test_what_to_do_next_without_the_recording_or_after_the_fix():
    found = diagnose_alone(log10(mel(), 1e-5), OWN)
    assert next_step(found, OWN, "m.npy", None, None).startswith("doctor RECORDING m.npy")
    assert next_step(found, OWN, "m.npy", "a.wav", "b.npy") == "synthesize b.npy -o DIR"


def test_what_to_do_next_for_another_voice_and_names_with_spaces():
    other, names = replace(OWN, key="own"), ("my mel.npy", "my talk.wav")

    def following(make, own=OWN, fixed=None, rate=RATE) -> str:
        found = diagnose(make(), AUDIO, RATE, own)
        return next_step(found, own, *names, fixed, weights="a voice", rate=rate)

    assert following(lambda: ln(mel())) == "synthesize 'my mel.npy' -o DIR -w 'a voice'"
    assert following(lambda: log10(mel(), 1e-5)).startswith(
        "doctor 'my talk.wav' 'my mel.npy' -w 'a voice' --fix OUT.npy, "
    )
    assert "convert-mel 'my mel.npy' --from diffwave -w 'a voice' -o DIR; or" in following(
        NAMED["DiffWave / WaveGrad"], other
    )
    assert following(MISTAKES["HTK"][0], rate=48000).startswith(
        "prepare 'my talk.wav' -o PREPARED --rate 22050, then mel PREPARED -o DIR -w 'a voice', "
    )


# ------------------------------------------------------------------------------ the command


@pytest.fixture
def run(capsys):
    def run(*arguments) -> tuple[int, str, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return run


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array.astype(np.float32))
    return path


def test_the_command_tells_and_fixes(run, tmp_path):
    soundfile.write(tmp_path / "speech.wav", AUDIO, RATE, subtype="FLOAT")
    path = saved(tmp_path / "mel.npy", log10(mel(), 1e-5))
    fixed = tmp_path / "fixed.npy"
    code, out, err = run("doctor", tmp_path / "speech.wav", path, "--fix", fixed)
    assert (code, err) == (0, "")
    assert "convertible" in out and "multiply by 2.302585" in out and "unexplained" in out
    assert out.endswith(f"written: {fixed}\nnext: synthesize {fixed} -o DIR\n")
    np.testing.assert_allclose(read_mel(fixed, 80), ln(mel()).T, atol=1e-4)
    code, out, _ = run("doctor", path, "--json")
    told = json.loads(out)
    assert code == 0 and told["verdict"] == "convertible" and "log10" in told["convention"]
    assert told["next"].startswith("doctor RECORDING ")


def test_what_cannot_be_converted_is_not_written(run, tmp_path):
    soundfile.write(tmp_path / "speech.wav", AUDIO, RATE)
    path = saved(tmp_path / "mel.npy", ln(mel(htk=True)))
    fixed = tmp_path / "fixed.npy"
    code, out, err = run("doctor", tmp_path / "speech.wav", path, "--fix", fixed)
    assert (code, out) == (1, "") and not fixed.exists()
    assert (
        err.startswith(f"error: {path}: not converted: the bands are others")
        and err.count("\n") == 1
    )


def test_bad_input_is_one_line(run, tmp_path):
    soundfile.write(tmp_path / "speech.wav", AUDIO, RATE)
    soundfile.write(tmp_path / "stereo.wav", np.stack([AUDIO, AUDIO], axis=1), RATE)
    soundfile.write(tmp_path / "short.wav", AUDIO[:2000], RATE)
    good = saved(tmp_path / "good.npy", ln(mel()))
    (tmp_path / "broken.npy").write_bytes(b"nothing")
    np.save(tmp_path / "nan.npy", np.full((80, 100), np.nan))
    np.save(tmp_path / "flat.npy", np.zeros(100))
    np.save(tmp_path / "wide.npy", np.full((80, 100), 1e300))
    for arguments, words in (
        ((tmp_path / "none.npy",), "no such file"),
        ((tmp_path / "broken.npy",), "not a readable NumPy array"),
        ((tmp_path / "flat.npy",), "shape is 100"),
        ((tmp_path / "nan.npy",), "none of its values is a finite number"),
        ((tmp_path / "wide.npy",), "none of its values is a finite number"),
        ((tmp_path / "none.wav", good), "no such file"),
        ((tmp_path / "stereo.wav", good), "2 channels"),
        ((tmp_path / "short.wav", good), "too short to be compared"),
        ((good, tmp_path / "speech.wav"), "not a mel file"),
        ((tmp_path / "speech.wav", good, "--fix", good), "overwrite an input"),
    ):
        code, out, err = run("doctor", *arguments)
        assert (code, out) == (1, "") and err.count("\n") == 1 and words in err, err
    for arguments in ((), (good, "--fix", tmp_path / "a.npy"), (good, good, good)):
        assert run("doctor", *arguments)[0] == 2
