"""Commands as users see them: exit codes, one line per error, and the good files still done."""

import argparse
import io
import json
import os
import shlex
import shutil
import struct
import subprocess
import sys
import warnings
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from golden import CASES
from safetensors.numpy import save_file
from test_vocoder import lively_params, some_audio, some_mel, tiny_config

import waveglow_jax as wg
from waveglow_jax.cli import COMMANDS, main
from waveglow_jax.cli.outcome import ready_streams
from waveglow_jax.config import config_from_dict, config_to_dict
from waveglow_jax.errors import FileWarning
from waveglow_jax.files import wav
from waveglow_jax.files.sound import read_audio, read_samples
from waveglow_jax.synthesis import vocoder

pytestmark = pytest.mark.usefixtures("no_full_scale")

RATE, HOP = 22050, 256
ROOT = Path(__file__).parent.parent
TINY = ROOT / "configs" / "tiny.json"
FRAMES = 20


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("weights") / "voice"
    wg.save(folder, tiny_config(), lively_params(tiny_config()))
    return str(folder)


@pytest.fixture(scope="module")
def voice(weights):
    return vocoder.load(weights)


@pytest.fixture(autouse=True)
def load_once(request, monkeypatch):
    """Loads each folder's voice once, so that the tests share its compiled programs."""
    monkeypatch.setattr(vocoder, "load", once_loaded)


load = vocoder.load


@cache
def once_loaded(source, keep_programs=True):
    return load(source)


@pytest.fixture
def run(capsys):
    """A command -> (exit code, lines on stdout, lines on stderr)."""

    def run(*arguments) -> tuple[int, list[str], list[str]]:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stopped:  # argparse's own
            code = stopped.code
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out.splitlines(), err.splitlines()

    return run


@pytest.fixture
def run_binary(capsysbinary):
    """As `run`, with stdout as bytes."""

    def run(*arguments) -> tuple[int, bytes, list[str]]:
        capsysbinary.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        return code, out, err.decode().splitlines()

    return run


def errors(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("error: ")]


def one_error(lines: list[str], *words) -> str:
    (error,) = errors(lines)
    assert all(str(word) in error for word in words), error
    return error


def recording(path: Path, samples: int = FRAMES * HOP - 1, rate: int = RATE, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, some_audio(samples), rate, **options)
    return path


# ------------------------------------------------------------------------------ terminals

EVIL = "a\x1b]0;owned\x07\x1b[2J\r\x9b1A\u202egpj\nerror: b"
HARMLESS = r"a\x1b]0;owned\x07\x1b[2J\r\x9b1A\u202egpj\nerror: b"


def obeyed(lines: list[str]) -> str:
    """The control characters in these lines that `splitlines` has not removed."""
    return "".join(c for c in "".join(lines) if not c.isprintable())


@pytest.mark.parametrize("suffix", [".wav", ".aac"])
def test_names_do_not_command_the_terminal(run, tmp_path, weights, suffix):
    source = tmp_path / "in"
    source.mkdir()
    shutil.copy(recording(source / "b.wav", 13000), source / f"{EVIL}{suffix}")
    for command in (["mel", "-w", weights], ["prepare"]):
        code, out, err = run(*command, source, "-o", tmp_path / f"{EVIL}{command[0]}")
        assert code == 0 and not obeyed(out + err), out + err
        assert any(HARMLESS in line for line in out + err), out + err
        assert not errors(out + err)


def test_nor_do_descriptions_and_what_argparse_repeats(run, tmp_path):
    config = config_from_dict({**config_to_dict(tiny_config()), "description": EVIL})
    wg.save(tmp_path, config, lively_params(config))
    code, out, err = run("inspect", tmp_path)
    assert code == 0 and HARMLESS in out and not obeyed(out + err)
    code, out, err = run("inspect", tmp_path, f"--{EVIL}")
    assert code == 2 and not obeyed(out + err)


def test_bars_still_move_the_cursor(capsys):
    ready_streams()
    ready_streams()
    for text in ("\r 50%|\u2588\x1b[1A", "\x1b[A\x1b[A", "\n", "\r"):
        sys.stderr.write(text)
    assert capsys.readouterr().err == "\r 50%|\u2588\\x1b[1A\x1b[A\x1b[A\n\r"


def test_notes_of_strange_names_are_one_line(tmp_path):
    content = (CASES / "07-ogg-cut/opus_noeos.opus").read_bytes()
    path = tmp_path / f"{EVIL}.opus"
    path.write_bytes(content)
    with pytest.warns(FileWarning) as caught:
        read_samples(path)
    assert HARMLESS in str(caught[0].message)


def mel_file(path: Path, mel: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, some_mel(FRAMES).T if mel is None else mel)
    return path


def below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def is_speech_file(path: Path, frames: int = FRAMES) -> np.ndarray:
    """int16, mono, 22,050 Hz, as long as its mel, not silent: its samples."""
    with soundfile.SoundFile(path) as file:
        assert (file.format, file.subtype) == ("WAV", "PCM_16")
        assert (file.channels, file.samplerate) == (1, RATE)
        samples = file.read(dtype="int16")
    assert samples.shape == (frames * HOP,)
    assert path.stat().st_size == 44 + 2 * frames * HOP
    assert np.abs(samples).max() > 100
    return samples


# ------------------------------------------------------------------------------ synthesize: good


@pytest.mark.slow
def test_mels_of_every_kind_give_what_the_voice_gives(run, tmp_path, weights, voice):
    mel = some_mel(FRAMES)
    mel_file(tmp_path / "in/plain.npy")
    mel_file(tmp_path / "in/batched.npy", mel.T[None])
    mel_file(tmp_path / "in/deep/er/turned.npy", mel)
    mel_file(tmp_path / "in/double.npy", mel.T.astype(np.float64))
    np.savez(tmp_path / "in/zipped.npz", other=np.zeros(3), mel=mel.T)
    save_file({"anything": np.ascontiguousarray(mel.T)}, tmp_path / "in/deep/safe.safetensors")
    code, out, err = run("synthesize", tmp_path / "in", "-o", tmp_path / "out", "-w", weights)
    assert (code, err) == (0, []) and len(out) == 6
    names = ["batched.wav", "deep/er/turned.wav", "deep/safe.wav", "double.wav", "plain.wav"]
    assert below(tmp_path / "out") == [*names, "zipped.wav"]
    expected = wav.to_int16(voice.synthesize(mel, sigma=0.6, seed=0))
    for name in below(tmp_path / "out"):
        assert np.array_equal(is_speech_file(tmp_path / "out" / name), expected)


@pytest.mark.slow
def test_recordings_by_way_of_their_mel(run, tmp_path, weights, voice):
    recording(tmp_path / "a.wav")
    recording(tmp_path / "sub/b.flac", 7777)
    code, out, err = run("synthesize", tmp_path, "-o", tmp_path / "out", "-w", weights)
    assert (code, err, len(out)) == (0, [], 2)
    is_speech_file(tmp_path / "out/sub/b.wav", 1 + 7777 // HOP)
    mel = voice.mel(read_audio(tmp_path / "a.wav", RATE))
    expected = wav.to_int16(voice.synthesize(mel))
    assert np.array_equal(is_speech_file(tmp_path / "out/a.wav"), expected)


def test_glob_list_and_stdin(run, tmp_path, weights, monkeypatch):
    for name in ("in/x/a.npy", "in/y/a.npy", "in/y/b.npy"):
        mel_file(tmp_path / name)
    (tmp_path / "in/list.txt").write_text("y/b.npy|what is said\n\nx/a.npy\n")
    out = tmp_path / "out"
    for number, source in enumerate([tmp_path / "in/*/a.npy", tmp_path / "in/list.txt", "-"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("in/y/b.npy\n"))
        monkeypatch.chdir(tmp_path)
        code, _, err = run("synthesize", source, "-o", out / str(number), "-w", weights)
        assert (code, err) == (0, [])
    assert below(out) == ["0/x/a.wav", "0/y/a.wav", "1/x/a.wav", "1/y/b.wav", "2/in/y/b.wav"]
    assert {is_speech_file(out / name).tobytes() for name in below(out)} == {
        is_speech_file(out / "0/x/a.wav").tobytes()
    }


@pytest.mark.slow
def test_the_originals_own_mels_become_recordings_of_that_name(run, tmp_path):
    """mel2samp.py calls the mel of u00.wav u00.wav.pt."""
    code, _, err = run("synthesize", CASES / "10-mel-names/nv", "-o", tmp_path, "--consistency", 0)
    assert (code, err) == (0, [])
    assert below(tmp_path) == ["u00.wav"]
    is_speech_file(tmp_path / "u00.wav", 173)


def test_json_lines(run, tmp_path, weights, voice):
    mels = [mel_file(tmp_path / "a.npy"), mel_file(tmp_path / "b.npy", some_mel(30).T)]
    bad = mel_file(tmp_path / "bad.npy", np.zeros((100, 9), np.float32))
    code, out, err = run(
        "synthesize", mels[0], bad, mels[1], "-o", tmp_path / "out", "-w", weights, "--json"
    )
    assert code == 1
    one_error(err, bad)
    facts = [json.loads(line) for line in out]
    assert [fact["input"] for fact in facts] == [str(mel) for mel in mels]
    for fact, frames in zip(facts, (FRAMES, 30), strict=True):
        is_speech_file(Path(fact["output"]), frames)
        assert fact["seconds"] == pytest.approx(frames * HOP / RATE, abs=1e-3)
        assert fact["times_real_time"] > 0 and fact["run_seconds"] >= 0
        assert fact["compile_seconds"] >= 0
        assert (fact["sigma"], fact["consistency"]) == (voice.config.synthesis.sigma, 0)


def test_the_settings_are_in_each_files_line(run, tmp_path, weights):
    mels = [mel_file(tmp_path / name) for name in ("a.npy", "b.npy")]
    common = [*mels, "-o", tmp_path / "out", "-w", weights]
    _, out, _ = run("synthesize", *common, "-s", "0.75", "--consistency", "3")
    assert len(out) == 2 and all("sigma 0.75, 3 corrections" in line for line in out)
    _, out, _ = run("synthesize", *common)
    assert len(out) == 2 and all("sigma 0.6, 0 corrections" in line for line in out)


def test_sigma_and_seed_reach_the_voice(run, tmp_path, weights, voice):
    mel = mel_file(tmp_path / "a.npy")
    arguments = ["synthesize", mel, "-o", tmp_path / "out", "-w", weights]
    assert run(*arguments, "-s", "0.9", "--seed", str(2**32 - 1))[0] == 0
    expected = wav.to_int16(voice.synthesize(some_mel(FRAMES), sigma=0.9, seed=2**32 - 1))
    assert np.array_equal(is_speech_file(tmp_path / "out/a.wav"), expected)
    assert run(*arguments, "--sigma", "0")[0] == 0
    expected = wav.to_int16(voice.synthesize(some_mel(FRAMES), sigma=0))
    assert np.array_equal(is_speech_file(tmp_path / "out/a.wav"), expected)


@pytest.mark.slow
def test_dtype_reaches_the_voice(run, tmp_path, weights, voice):
    mel = mel_file(tmp_path / "a.npy")
    to = tmp_path / "out"
    assert run("synthesize", mel, "-o", to, "-w", weights, "--dtype", "bfloat16")[0] == 0
    samples = is_speech_file(to / "a.wav")
    expected = voice.synthesize(some_mel(FRAMES), dtype="bfloat16")
    assert np.array_equal(samples, wav.to_int16(expected))
    assert not np.array_equal(samples, wav.to_int16(voice.synthesize(some_mel(FRAMES))))


@pytest.mark.slow
def test_plot(run, tmp_path, weights):
    mel = mel_file(tmp_path / "in/a.npy")
    code, _, err = run("synthesize", mel, "-o", tmp_path / "out", "-w", weights, "--plot")
    assert (code, err) == (0, [])
    assert below(tmp_path / "out") == ["a.png", "a.wav"]
    content = (tmp_path / "out/a.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and content[12:16] == b"IHDR"
    width, height = struct.unpack(">II", content[16:24])
    assert width >= 600 and height >= 400 and len(content) > 10_000


def test_denoise_reaches_the_voice(run, tmp_path, weights, voice):
    mel = mel_file(tmp_path / "a.npy")
    assert run("synthesize", mel, "-o", tmp_path / "out", "-w", weights, "-d", "0.2")[0] == 0
    expected = wav.to_int16(voice.synthesize(some_mel(FRAMES), denoise=0.2))
    samples = is_speech_file(tmp_path / "out/a.wav")
    assert np.array_equal(samples, expected)
    assert not np.array_equal(samples, wav.to_int16(voice.synthesize(some_mel(FRAMES))))


def test_consistency_reaches_the_voice(run, tmp_path, weights, voice):
    mel = mel_file(tmp_path / "a.npy")
    assert run("synthesize", mel, "-o", tmp_path / "out", "-w", weights, "--consistency", 3)[0] == 0
    expected = wav.to_int16(voice.synthesize(some_mel(FRAMES), consistency=3))
    assert np.array_equal(is_speech_file(tmp_path / "out/a.wav"), expected)
    assert not np.array_equal(expected, wav.to_int16(voice.synthesize(some_mel(FRAMES))))


@pytest.mark.slow
def test_latent_search_goes_on_after_a_bad_file(run, tmp_path, weights, voice):
    mel, too_long = (
        mel_file(tmp_path / "a.npy"),
        mel_file(tmp_path / "long.npy", np.zeros((80, 5000))),
    )
    arguments = ["-w", weights, "-o", tmp_path / "out", "--consistency", "latent"]
    code, out, err = run("synthesize", too_long, mel, *arguments, "--json", "--plot")
    assert code == 1
    one_error(err, too_long, "5000 frames", "cut it")
    found = voice.typical_sample(some_mel(FRAMES))
    assert json.loads(out[0])["nats"] == pytest.approx(found.nats, abs=1e-6)
    assert np.array_equal(is_speech_file(tmp_path / "out/a.wav"), wav.to_int16(found.audio))
    assert below(tmp_path / "out") == ["a.png", "a.wav"]


@pytest.mark.parametrize("option", ["--stream", "--window", "--batch"])
def test_latent_search_does_without_windows(run, tmp_path, weights, option):
    mel, to = mel_file(tmp_path / "a.npy"), tmp_path / "out"
    where = ["--stream"] if option == "--stream" else ["-o", to, option, "9"]
    code, out, err = run("synthesize", mel, *where, "-w", weights, "--consistency", "latent")
    assert code == 2 and out == [] and option in err[-1] and "latent" in err[-1]
    assert not to.exists()


@pytest.mark.slow
def test_without_options_the_command_and_python_agree(run, tmp_path):
    """The bundled voice, with its own sigma and corrections."""
    voice = once_loaded(None)
    mel = voice.mel(some_audio(RATE))[:FRAMES]
    path = mel_file(tmp_path / "a.npy", mel.T)
    assert run("synthesize", path, "-o", tmp_path / "out")[0] == 0
    expected = wav.to_int16(voice.synthesize(mel))
    assert np.array_equal(is_speech_file(tmp_path / "out/a.wav"), expected)


@pytest.mark.slow
def test_verbose_tells_the_windows(run, tmp_path, weights, voice):
    mels = [mel_file(tmp_path / "a.npy"), mel_file(tmp_path / "b.npy", some_mel(70).T)]
    arguments = ["synthesize", *mels, "-o", tmp_path / "out", "-w", weights, "--verbose"]
    code, out, err = run(*arguments, "--window", "40", "--batch", "1")
    assert code == 0 and len(out) == 2
    (line,) = err
    for told in ("40 frames", "context 2 + 1", "batch 1", "1 device", "overhead 2"):
        assert told in line
    for path, frames in (("a.wav", FRAMES), ("b.wav", 70)):
        samples = is_speech_file(tmp_path / "out" / path, frames).astype(int)
        expected = wav.to_int16(voice.synthesize(some_mel(frames))).astype(int)
        assert np.abs(samples - expected).max() <= 1
    code, out, err = run(*arguments)
    assert code == 0 and len(err) == 1 and "windows of" in err[0]


# ------------------------------------------------------------------------------ synthesize: stream


@pytest.mark.slow
def test_stream_is_the_samples_and_nothing_else(run_binary, tmp_path, weights, voice):
    mels = [mel_file(tmp_path / "a.npy"), mel_file(tmp_path / "b.npy", some_mel(70).T)]
    for options, said in (
        ([], {}),
        (["-d", "0.2", "-s", "0.9"], {"denoise": 0.2, "sigma": 0.9}),
        (["--consistency", "2"], {"consistency": 2}),
    ):
        arguments = ["synthesize", *mels, "--stream", "--chunk", "9", "-w", weights, *options]
        code, out, err = run_binary(*arguments)
        assert code == 0
        expected = [voice.synthesize(some_mel(n), **said) for n in (FRAMES, 70)]
        samples = np.frombuffer(out, "<i2").astype(int)
        assert samples.shape == ((FRAMES + 70) * HOP,)
        assert np.abs(samples - wav.to_int16(np.concatenate(expected))).max() <= 1
        frames = voice.latency_frames(9, said.get("denoise", 0), said.get("consistency"))
        (line,) = err
        assert line.startswith(f"latency: {frames} frames ({frames * HOP / RATE:.2f} s)")


@pytest.mark.slow
def test_stream_goes_on_after_a_bad_file(run_binary, tmp_path, weights):
    bad = mel_file(tmp_path / "bad.npy", np.zeros((100, 9), np.float32))
    wild = mel_file(tmp_path / "wild.npy", np.full((80, FRAMES), 300, np.float32))
    good = mel_file(tmp_path / "good.npy")
    code, out, err = run_binary("synthesize", bad, wild, good, "--stream", "-w", weights)
    assert code == 1 and len(out) == 2 * FRAMES * HOP
    assert [str(path) in line for path, line in zip((bad, wild), errors(err), strict=True)]
    assert "2 of 3" in err[-1]


def test_stream_into_a_terminal_is_refused(run, tmp_path, weights, monkeypatch):
    mel = mel_file(tmp_path / "a.npy")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    code, out, err = run("synthesize", mel, "--stream", "-w", weights)
    assert code == 1 and out == []
    one_error(err, "--stream", "pipe")


# ------------------------------------------------------------------------------ synthesize: bad


def spoil(folder: Path) -> list[Path]:
    """Writes files of every kind that proves bad only when it is opened."""
    mel = some_mel(FRAMES).T
    long = recording(folder / "long.wav", 9000).read_bytes()
    (folder / "long.wav").unlink()
    truncated, empty = folder / "truncated.wav", folder / "empty.wav"
    truncated.write_bytes(long[: len(long) // 2])
    empty.write_bytes(b"")
    (folder / "text.wav").write_text("no sound at all")
    not_finite = np.full(6000, np.nan, np.float32)
    soundfile.write(folder / "not_finite.wav", not_finite, RATE, subtype="FLOAT")
    soundfile.write(folder / "silent.wav", np.zeros(6000), RATE)
    half = np.load(mel_file(folder / "half.npy"))
    cut = (folder / "half.npy").read_bytes()
    (folder / "half.npy").write_bytes(cut[: len(cut) // 2])
    assert half.shape == (80, FRAMES)
    holed = mel.copy()
    holed[3, 4] = np.nan
    (folder / "zip.npz").write_bytes(b"PK no zip")
    (folder / "torch.pt").write_bytes(b"PK no zip")
    return [
        recording(folder / "short.wav", 512),
        truncated,
        empty,
        folder / "text.wav",
        folder / "not_finite.wav",
        folder / "silent.wav",
        folder / "half.npy",
        folder / "zip.npz",
        folder / "torch.pt",
        mel_file(folder / "hundred.npy", np.zeros((100, 7), np.float32)),
        mel_file(folder / "flat.npy", np.zeros(80, np.float32)),
        mel_file(folder / "two.npy", np.zeros((2, 80, 7), np.float32)),
        mel_file(folder / "integers.npy", np.zeros((80, 7), np.int16)),
        mel_file(folder / "nothing.npy", np.zeros((80, 0), np.float32)),
        mel_file(folder / "holed.npy", holed),
    ]


def test_bad_files_are_told_of_and_the_good_ones_done(run, tmp_path, weights):
    (tmp_path / "in").mkdir()
    bad = spoil(tmp_path / "in")
    recording(tmp_path / "in/aa_good.wav")
    mel_file(tmp_path / "in/zz_good.npy")
    code, out, err = run("synthesize", tmp_path / "in", "-o", tmp_path / "out", "-w", weights)
    assert code == 1
    told = errors(err)
    assert len(told) == len(bad) and len(err) == len(bad) + 1  # and a line that counts them
    for path in bad:
        (line,) = [line for line in told if f"{path}:" in line]
        assert len(line) > len(f"error: {path}: ") + 5
    assert f"{len(bad)} of {len(bad) + 2}" in err[-1]
    assert len(out) == 2
    assert below(tmp_path / "out") == ["aa_good.wav", "zz_good.wav"]
    for name in below(tmp_path / "out"):
        is_speech_file(tmp_path / "out" / name)


def test_mel_beyond_all_numbers_leaves_no_file(run, tmp_path, weights):
    """The mel is finite, so that only its samples reveal the fault."""
    bad = mel_file(tmp_path / "wild.npy", np.full((80, FRAMES), 300, np.float32))
    good = mel_file(tmp_path / "good.npy")
    code, _, err = run("synthesize", bad, good, "-o", tmp_path / "out", "-w", weights)
    assert code == 1
    one_error(err, "wild")
    assert below(tmp_path / "out") == ["good.wav"]


@pytest.mark.parametrize("missing", ["nothing.wav", "nothing", "no*thing.npy", "nothing.txt"])
def test_missing_input(run, tmp_path, weights, missing):
    good = mel_file(tmp_path / "a.npy")
    path = tmp_path / missing
    code, _, err = run("synthesize", good, path, "-o", tmp_path / "out", "-w", weights)
    assert code == 1 and len(err) == 1
    one_error(err, path)


def test_folder_and_list_with_nothing_in_them(run, tmp_path, weights):
    (tmp_path / "in").mkdir()
    (tmp_path / "list.txt").write_text("gone.npy\n")
    for source in ("in", "list.txt"):
        code, _, err = run("synthesize", tmp_path / source, "-o", tmp_path / "out", "-w", weights)
        assert code == 1 and len(err) == 1
        one_error(err, tmp_path / source)


def test_unknown_weights(run, tmp_path):
    mel = mel_file(tmp_path / "a.npy")
    code, _, err = run("synthesize", mel, "-o", tmp_path / "out", "-w", tmp_path / "gone")
    assert code == 1 and len(err) == 1
    one_error(err, tmp_path / "gone")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--sigma", "-1"],
        ["--sigma", "nan"],
        ["--sigma", "much"],
        ["--dtype", "float8"],
        ["--seed", "-1"],
        ["--seed", str(2**32)],
        ["--seed", "1.5"],
        ["--denoise", "-0.1"],
        ["--denoise", "nan"],
        ["--consistency", "-1"],
        ["--consistency", "10001"],
        ["--consistency", "some"],
        ["--window", "0"],
        ["--batch", "no"],
        ["--chunk", "9"],
        ["--stream"],
        ["--no-such-option"],
    ],
    ids=" ".join,
)
def test_wrong_arguments(run, tmp_path, weights, arguments):
    mel = mel_file(tmp_path / "a.npy")
    to = tmp_path / "out"
    code, out, err = run("synthesize", mel, "-o", to, "-w", weights, *arguments)
    assert code == 2
    assert out == [] and arguments[0] in err[-1] and "error: " in err[-1]
    assert not to.exists()


def test_no_arguments_and_unknown_command(run):
    assert run()[0] == 2
    assert run("synthesise")[0] == 2
    assert run("synthesize", "a.npy")[0] == 2  # no -o
    for option in ("--json", "--plot", "--window=9", "--batch=1"):
        assert run("synthesize", "a.npy", "--stream", option)[0] == 2


def test_output_folder_that_cannot_be(run, tmp_path, weights):
    mel = mel_file(tmp_path / "a.npy")
    (tmp_path / "out").write_text("a file in the way")
    code, _, err = run("synthesize", mel, "-o", tmp_path / "out", "-w", weights)
    assert code == 1 and len(err) == 1
    one_error(err, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "a file in the way"


def test_folder_in_the_place_of_one_output(run, tmp_path, weights):
    mels = [mel_file(tmp_path / "in/a.npy"), mel_file(tmp_path / "in/b.npy")]
    (tmp_path / "out/a.wav").mkdir(parents=True)
    code, _, err = run("synthesize", *mels, "-o", tmp_path / "out", "-w", weights)
    assert code == 1
    one_error(err, tmp_path / "out/a.wav")
    assert below(tmp_path / "out") == ["b.wav"]


def test_own_input_is_not_overwritten(run, tmp_path, weights):
    mel_file(tmp_path / "in/b.npy")
    path = recording(tmp_path / "in/a.wav")
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    code, _, err = run("synthesize", tmp_path / "in", "-o", tmp_path / "link", "-w", weights)
    assert code == 1
    one_error(err, path, "overwrit")
    assert path.read_bytes() == before
    is_speech_file(tmp_path / "in/b.wav")


def test_another_input_is_not_overwritten(run, tmp_path, weights):
    """a.wav's output would take the place of out/a.wav, an input too."""
    recording(tmp_path / "in/a.wav")
    other = recording(tmp_path / "in/out/a.wav", 6000)
    before = other.read_bytes()
    code, _, err = run("synthesize", tmp_path / "in", "-o", tmp_path / "in/out", "-w", weights)
    assert code == 1
    assert errors(err)
    assert other.read_bytes() == before


def test_full_disk(run, tmp_path, weights, monkeypatch):
    """A file that does not fit is reported and leaves nothing; a smaller one still fits."""
    out = tmp_path / "out"
    out.mkdir()
    mel_file(tmp_path / "in/a_long.npy", some_mel(60).T)
    mel_file(tmp_path / "in/b_short.npy")
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(out)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    if not mounted:
        monkeypatch.setattr(wav, "open", open_on_a_full_disk(out, 16384), raising=False)
    try:
        code, lines, err = run("synthesize", tmp_path / "in", "-o", out, "-w", weights)
        assert code == 1
        one_error(err, out / "a_long.wav", "space")
        assert len(lines) == 1
        assert below(out) == ["b_short.wav"]
        is_speech_file(out / "b_short.wav")
    finally:
        if mounted:
            subprocess.run(["umount", str(out)], check=True)


def open_on_a_full_disk(folder: Path, size: int):
    class Limited(io.FileIO):
        def write(self, content):
            if self.tell() + len(content) > size:
                super().write(bytes(content)[: size - self.tell()])
                raise OSError(28, "No space left on device")
            return super().write(content)

    def opened(path, mode="r", **options):
        if "w" in mode and Path(path).is_relative_to(folder):
            return Limited(path, mode)
        return open(path, mode, **options)

    return opened


@pytest.mark.slow
def test_interrupt_and_full_disk_leave_whole_files_only(run, tmp_path, weights, monkeypatch):
    """The interrupt comes in the middle of the second file, whose first blocks are written."""
    mels = [mel_file(tmp_path / f"{name}.npy", some_mel(70).T) for name in "abc"]
    arguments = ["-o", tmp_path / "out", "-w", weights, "--window", "24", "--batch", "1"]
    real = wav.to_int16
    for raised, left in ((KeyboardInterrupt, ["a.wav"]), (OSError(28, "full"), ["a.wav", "c.wav"])):
        written = []

        def stops(samples, raised=raised, written=written):
            written.append(len(samples))
            if sum(written) > 100 * HOP:
                assert len(below(tmp_path / "out")) == 2  # the complete one, and the one begun
                monkeypatch.setattr(wav, "to_int16", real)
                raise raised
            return real(samples)

        monkeypatch.setattr(wav, "to_int16", stops)
        code, _, err = run("synthesize", *mels, *arguments)
        assert code == (130 if raised is KeyboardInterrupt else 1) and errors(err)
        assert below(tmp_path / "out") == left
        is_speech_file(tmp_path / "out/a.wav", 70)
        shutil.rmtree(tmp_path / "out")


def test_window_too_small_for_its_context(run, tmp_path, weights):
    mel = mel_file(tmp_path / "a.npy")
    to = tmp_path / "out"
    code, _, err = run("synthesize", mel, "-o", to, "-w", weights, "--window", "3")
    assert code == 1 and not to.exists()
    one_error(err, "--window", "3", "4")


def test_what_no_machine_has_the_memory_for(run, tmp_path, weights, monkeypatch):
    mel_file(tmp_path / "a.npy")
    command = ("synthesize", tmp_path / "a.npy", "-w", weights)
    for option, number in (("--window", 10**11), ("--batch", 10**30), ("--chunk", 10**11)):
        where = ["--stream"] if option == "--chunk" else ["-o", tmp_path / "out"]
        code, lines, err = run(*command, *where, option, number)
        assert code == 1 and not lines
        one_error(err, option, str(number), "4194304")
    import jax

    for error in (MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GiB")):

        def full(*_, error=error, **__):
            raise error

        monkeypatch.setattr(vocoder.Voice, "compile", full)
        code, _, err = run(*command, "-o", tmp_path / "out")
        assert code == 1
        one_error(err, "memory", "--window")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", [0, 2, 4])
def test_an_empty_name_is_a_wrong_argument(run, tmp_path, weights, place):
    mel_file(tmp_path / "a.npy")
    arguments = [str(tmp_path / "a.npy"), "-o", str(tmp_path / "out"), "-w", weights]
    arguments[place] = ""
    code, _, err = run("synthesize", *arguments)
    assert code == 2 and "an empty name" in err[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["synthesize", "A", "-o", "gs://bucket/out"],
        ["synthesize", "A", "-o", "out", "--weights=gs://bucket/voice"],
        ["synthesize", "gs://bucket/a.npy", "-o", "out"],
        ["train", "gs://bucket/c.json", "--data", "A", "--output", "out"],
        ["train", TINY, "--data", "gs://bucket/wavs", "--output", "out"],
        ["train", TINY, "--data", "A", "--output=gs://bucket/out"],
        ["train", TINY, "--data", "A", "--output", "out", "--mels", "gs://bucket/mels"],
        ["train", TINY, "--data", "A", "--output", "out", "--init-from", "gs://bucket/voice"],
        ["train", TINY, "--output", "out", "--data.training_files=gs://bucket/wavs"],
        ["train", TINY, "--data", "A", "--output", "out", "--train.validation_files=gs://bucket/v"],
        ["prepare", "A", "-o", "gs://bucket/out"],
        ["mel", "A", "-o", "gs://bucket/out"],
        ["convert", "gs://bucket/a.pt", "-o", "out"],
        ["inspect", "gs://bucket/run"],
        ["export", "A", "-o", "gs://bucket/a.onnx"],
        ["evaluate", "--reference", "gs://bucket/wavs", "-o", "out"],
        ["evaluate", "--reference", "A", "-o", "out", "--system", "a=gs://bucket/wavs:sigma=1"],
        ["listening-test", "make", "-o", "out", "--system", "a=gs://bucket/wavs"],
        ["listening-test", "score", "gs://bucket/key.json", "A"],
        ["doctor", "A", "gs://bucket/a.npy"],
        ["likelihood", "gs://bucket/a.wav"],
        ["invertibility", "--random", "gs://bucket/c.json"],
        ["resynthesize", "A", "-o", "gs://bucket/out"],
        ["interpolate", "A", "gs://bucket/b.wav", "-o", "out"],
        ["sweep", "A", "-o", "gs://bucket/out"],
        ["preflight", "--config", "gs://bucket/c.json"],
        ["benchmark", "gs://bucket/voice"],
        ["demo", "-o", "gs://bucket/out"],
    ],
    ids=lambda arguments: " ".join(map(str, arguments[:2])),
)
def test_an_address_is_refused_up_front(run, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    mel_file(tmp_path / "A.npy")
    code, out, err = run(*("A.npy" if each == "A" else each for each in arguments))
    assert (code, out, len(err)) == (1, [], 1)
    one_error(err, "gs://bucket/", "gcloud storage cp")
    assert below(tmp_path) == ["A.npy"]


def test_the_home_folder_in_arguments(run, tmp_path, weights, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    recording(tmp_path / "in/a.wav", RATE)
    assert run("mel", "~/in", "--output=~/mels", f"--weights=file://{weights}")[0] == 0
    assert run("synthesize", "~/mels/*.npy", "-o~/out", "-w", weights)[0] == 0
    assert below(tmp_path) == ["in/a.wav", "mels/a.npy", "out/a.wav"]
    listing = tmp_path / "list.txt"
    listing.write_text("~/in/a.wav\n")
    assert run("prepare", "~/list.txt", "--output", f"file://{tmp_path}/prepared")[0] == 0
    assert "prepared/a.wav" in below(tmp_path)


def test_every_path_is_read_as_one():
    """An argument without a type is a name or an address, not a path."""

    def untyped(parser: argparse.ArgumentParser) -> set[str]:
        found = set()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                found |= {each for child in action.choices.values() for each in untyped(child)}
            elif action.type is None and action.nargs != 0 and action.choices is None:
                found.add(str(action.metavar or action.dest))
        return found

    names = set()
    for add_arguments, _ in COMMANDS.values():
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        names |= untyped(parser)
    assert names == {"HOST:PORT", "NAME", "URL", "title"}


def test_interrupt_is_one_line(run, tmp_path, weights, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(vocoder, "load", interrupt)
    code, _, err = run("synthesize", mel_file(tmp_path / "a.npy"), "-o", tmp_path, "-w", weights)
    assert (code, err) == (130, ["error: interrupted"])


# ------------------------------------------------------------------------------ mel


def test_mel_files(run, tmp_path, weights, voice):
    path = recording(tmp_path / "in/sub/a.wav", 6000)
    bad = recording(tmp_path / "in/b.wav", rate=16000)
    mel_file(tmp_path / "in/ignored.npy")
    out = tmp_path / "out"
    code, lines, err = run("mel", tmp_path / "in", "-o", out, "-w", weights, "--json")
    assert code == 1
    one_error(err, bad)
    (line,) = lines
    assert json.loads(line) == {
        "input": str(path),
        "output": str(out / "sub/a.npy"),
        "frames": 24,
    }
    assert below(out) == ["sub/a.npy"]
    mel = np.load(out / "sub/a.npy", allow_pickle=False)
    assert mel.shape == (80, 24) and mel.dtype == np.float32
    assert np.array_equal(mel.T, voice.mel(read_audio(path, RATE)))
    # And from there to the same sound as straight from the recording.
    assert run("synthesize", path, "-o", tmp_path / "one", "-w", weights)[0] == 0
    assert run("synthesize", out, "-o", tmp_path / "two", "-w", weights)[0] == 0
    straight = is_speech_file(tmp_path / "one/a.wav", 24)
    assert np.array_equal(straight, is_speech_file(tmp_path / "two/sub/a.wav", 24))


def test_mel_refuses_mels(run, tmp_path, weights):
    path = mel_file(tmp_path / "a.npy")
    code, _, err = run("mel", path, "-o", tmp_path / "out", "-w", weights)
    assert code == 1
    one_error(err, path)


# ------------------------------------------------------------------------------ prepare


def test_prepare(run, tmp_path):
    stereo = np.tile(0.1 * np.sin(np.arange(66150) / 20)[:, None], 2)
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in/a.wav", stereo, 44100)
    recording(tmp_path / "in/sub/b.flac", 30000, 16000)
    (tmp_path / "in/bad.wav").write_bytes(b"no sound")
    out = tmp_path / "out"
    arguments = ["prepare", tmp_path / "in", "-o", out, "--level", "-26", "--workers", "2"]
    code, lines, err = run(*arguments)
    assert (code, err) == (0, [])
    assert len(lines) == 2 and str(tmp_path / "in/bad.wav") in lines[0]
    assert lines[1].startswith("2 written, 0 kept, 1 left out;")
    assert [name for name in below(out) if name.endswith(".wav")] == ["a.wav", "sub/b.wav"]
    samples = read_audio(out / "a.wav", RATE)
    assert len(samples) == 33075
    level = 20 * np.log10(np.sqrt(np.mean(samples**2)))
    assert abs(level + 26) < 0.2
    code, lines, _ = run(*arguments)
    assert code == 0 and lines[-1].startswith("0 written, 2 kept, 1 left out;")
    code, _, err = run(*arguments, "--rate", "16000")
    assert code == 1 and len(err) == 1
    one_error(err, out, "22050")


def test_prepare_with_nothing_usable(run, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/bad.wav").write_bytes(b"no sound")
    code, lines, _ = run("prepare", tmp_path / "in", "-o", tmp_path / "out")
    assert code == 1 and "0 written" in lines[-1]
    code, _, err = run("prepare", tmp_path / "gone", "-o", tmp_path / "out")
    assert code == 1
    one_error(err, tmp_path / "gone")


# ------------------------------------------------------------------------------ train


@pytest.fixture
def trained(monkeypatch):
    """Records the arguments of training instead of training."""
    from waveglow_jax.training import loop

    calls = []

    def train(*arguments, **keywords):
        calls.append(arguments)
        return loop.Outcome(1)

    monkeypatch.setattr(loop, "train", train)
    return calls


def test_overrides(run, tmp_path, trained):
    folder = tmp_path / "rate=22050"
    code, _, err = run(
        *("train", TINY, "--data", "somewhere", "--train.batch_size", "16"),
        *("--train.learning_rate=3e-4", "--waveglow.WN_config.n_channels", "12"),
        *("--waveglow.mel_whitening", "null", "--train.wn_dtype", "bfloat16"),
        *("--output", tmp_path / "run", "--train_config.checkpoint_flows", "true"),
    )
    assert (code, err) == (0, [])
    ((config, data, output, params),) = trained
    assert (data, output, params) == ("somewhere", tmp_path / "run", None)
    assert config.train.batch_size == 16 and config.train.learning_rate == 3e-4
    assert config.train.wn_dtype == "bfloat16" and config.train.checkpoint_flows is True
    assert config.waveglow.WN.n_channels == 12 and config.waveglow.mel_whitening is None
    before = wg.load_config(TINY)
    assert config.data == before.data and config.train.steps == before.train.steps
    # A value may hold an = itself.
    code, _, err = run("train", TINY, "--output", tmp_path / "run", "--data.training_files", folder)
    assert (code, err) == (0, [])
    assert trained[1][1] == str(folder)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            ["--train.bath_size", "8"],
            ["--train.bath_size is no", "mean --train.batch_size?"],
        ),
        (["--trian.batch_size", "8"], ["--trian.batch_size is", "mean --train.batch_size"]),
        (["--train_config.bath_size=8"], ["--train_config.bath_size is", "--train.batch_size?"]),
        (["--train.batch_size", "0"], ["--train.batch_size 0"]),
        (["--train.seed", "-3"], ["--train.seed -3"]),
        (["--train.batch_size", "many"], ['--train.batch_size is "many"']),
        (["--train.learning_rate", "NaN"], ["--train.learning_rate"]),
        (["--waveglow.n_group", "7"], ["--waveglow.n_group 7"]),
        (["--waveglow.WN_config.kernel_size=4"], ["--waveglow.WN_config.kernel_size 4 is even"]),
        (["--train.batch_size.more", "8"], ["--train.batch_size.more: batch_size has no fields"]),
        (["--waveglow.n_early_size=32"], [TINY, "with --waveglow.n_early_size: waveglow_config"]),
    ],
    ids=lambda value: value[0] if str(value[0]).startswith("--") else "",
)
def test_impossible_overrides_are_named_as_they_were_typed(run, tmp_path, trained, override, words):
    code, _, err = run("train", TINY, "--data", "x", "--output", tmp_path / "run", *override)
    assert code == 1 and len(err) == 1
    assert (str(TINY) in one_error(err, *words)) == (TINY in words)
    assert trained == [] and not (tmp_path / "run").exists()


def test_a_fault_of_the_file_is_not_blamed_on_overrides(run, tmp_path, trained):
    raw = json.loads(TINY.read_text())
    raw["train_config"]["seed"] = -3
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(raw))
    train = "train", path, "--data", "x", "-o", tmp_path / "run"
    one_error(run(*train, "--train.steps=5")[2], f"{path}: train_config.seed -3")
    assert run(*train, "--train.seed=5")[0] == 0


@pytest.mark.parametrize("rest", [["--train.seed"], ["--seed", "3"], ["stray"], ["a.b", "3"]])
def test_what_is_no_override_is_a_wrong_argument(run, tmp_path, trained, rest):
    code, _, err = run("train", TINY, "--data", "x", "--output", tmp_path / "run", *rest)
    assert code == 2 and rest[0] in err[-1]
    assert trained == []


def test_config_with_a_typo(run, tmp_path, trained):
    raw = json.loads(TINY.read_text())
    raw["train_config"]["iters_per_chekpoint"] = raw["train_config"].pop("iters_per_checkpoint")
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(raw))
    code, _, err = run("train", path, "--data", "x", "--output", tmp_path / "run")
    assert code == 1 and len(err) == 1
    one_error(err, path, "train_config.iters_per_chekpoint", "train_config.iters_per_checkpoint?")
    code, _, err = run("train", tmp_path / "gone.json", "--data", "x", "--output", tmp_path)
    assert code == 1
    one_error(err, tmp_path / "gone.json")
    assert trained == []


def test_no_data_named(run, tmp_path, trained):
    code, _, err = run("train", TINY, "--output", tmp_path / "run")
    assert code == 1 and len(err) == 1
    one_error(err, "--data")
    assert trained == []


def test_init_from(run, tmp_path, weights, trained):
    config = Path(weights) / "config.json"
    start = ["train", config, "--data", "x", "--output", tmp_path / "run", "--init-from"]
    assert run(*start, weights)[0] == 0
    assert trained[0][3]["flows"][0]["conv"].shape == (16, 16)
    code, _, err = run(*start, tmp_path / "gone")
    assert code == 1
    one_error(err, tmp_path / "gone")
    assert len(trained) == 1


@pytest.mark.devices(8)
def test_batch_that_the_devices_do_not_divide(run, tmp_path):
    recording(tmp_path / "in/a.wav")
    code, _, err = run(
        *("train", TINY, "--data", tmp_path / "in", "--output", tmp_path / "run"),
        *("--train.batch_size", "12"),
    )
    assert code == 1 and len(err) == 1
    one_error(err, "batch_size 12", "8 devices", "16")
    assert not (tmp_path / "run").exists()


def test_data_without_recordings(run, tmp_path):
    (tmp_path / "in").mkdir()
    mel_file(tmp_path / "in/a.npy")
    for data in (tmp_path / "in", tmp_path / "gone"):
        code, _, err = run("train", TINY, "--data", data, "--output", tmp_path / "run")
        assert code == 1 and len(err) == 1
        one_error(err, data)
    recording(tmp_path / "in/a.wav", rate=16000)
    code, _, err = run("train", TINY, "--data", tmp_path / "in", "--output", tmp_path / "run")
    assert code == 1 and len(err) == 1
    one_error(err, tmp_path / "in", "16000")


# ------------------------------------------------------------------------------ as programs


def program(*arguments, folder: Path = ROOT, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def test_help_does_not_wait_for_jax(tmp_path):
    done = program("-X", "importtime", "-m", "waveglow_jax", "--help", folder=tmp_path)
    assert done.returncode == 0
    for command in ("synthesize", "train", "prepare", "mel"):
        assert command in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "waveglow_jax.cli" in imported
    assert not imported & {"jax", "jaxlib", "flax", "librosa", "orbax.checkpoint", "matplotlib"}


def test_synthesize_py(tmp_path, weights, voice):
    """From another folder, a list on stdin, a good mel and a bad one; nothing but our lines."""
    shutil.copy(mel_file(tmp_path / "good.npy"), tmp_path / "bad.npy")
    (tmp_path / "bad.npy").write_bytes((tmp_path / "bad.npy").read_bytes()[:-9])
    done = program(
        *(ROOT / "synthesize.py", "-", "-o", "out", "-w", weights, "--json", "-s", "0.1"),
        folder=tmp_path,
        input="bad.npy\ngood.npy\n",
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    one_error(done.stderr.splitlines(), "bad.npy")
    assert len(done.stderr.splitlines()) == 2
    (fact,) = map(json.loads, done.stdout.splitlines())
    assert fact["input"] == "good.npy" and fact["compile_seconds"] > 0
    samples = is_speech_file(tmp_path / "out/good.wav").astype(int)
    expected = wav.to_int16(voice.synthesize(some_mel(FRAMES), 0.1)).astype(int)
    assert np.abs(samples - expected).max() <= 1


@pytest.mark.slow
def test_stream_into_a_pipe_that_closes(tmp_path, weights):
    mel = mel_file(tmp_path / "a.npy", np.tile(some_mel(FRAMES), (40, 1)).T)
    stream = [sys.executable, str(ROOT / "synthesize.py"), str(mel), "--stream", "--chunk", "9"]
    line = f"{shlex.join([*stream, '-w', weights])} | head -c 100 | wc -c"
    done = program("-c", "import os, sys; os.execvp('sh', ['sh', '-c', sys.argv[1]])", line)
    assert done.stdout.split() == ["100"]
    (told,) = done.stderr.splitlines()
    assert told.startswith("latency: ")


def test_train_py_wrong_arguments(tmp_path):
    done = program(ROOT / "train.py", TINY, folder=tmp_path)
    assert done.returncode == 2
    assert "--output" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["", *COMMANDS, "listening-test make", "listening-test score"])
def test_every_help_is_printed(run, command):
    code, out, err = run(*command.split(), "--help")
    assert (code, err) == (0, []) and out[0].startswith("usage: ")


def test_a_command_that_is_not_there(run):
    code, out, err = run("synth", "a.wav")
    assert (code, out) == (2, []) and err[-1].endswith("did you mean synthesize?")
    code, out, err = run()
    assert (code, out) == (2, []) and any("demo" in line for line in err)


@pytest.mark.slow
def test_the_demo_speaks_the_bundled_recordings(run, tmp_path):
    code, out, err = run("demo", "-o", tmp_path / "out")
    assert (code, err, len(out)) == (0, [], 4)
    for name in ("ru_0773", "ru_0806"):
        made, recorded = (
            soundfile.read(tmp_path / "out" / f"{name}{end}.wav")[0] for end in ("", "_recording")
        )
        assert 0 <= len(made) - len(recorded) <= HOP and 0.5 < made.std() / recorded.std() < 2
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 10_000


@pytest.mark.parametrize("command", ["mel", "likelihood"])
def test_what_looks_like_sound_and_is_not_read_is_named(run, tmp_path, weights, command):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in/a.wav", some_audio(FRAMES * HOP), RATE)
    (tmp_path / "in/talk.m4a").write_bytes(b"any")
    options = ["-o", tmp_path / "out"] if command == "mel" else []
    code, _, err = run(command, tmp_path / "in", "-w", weights, *options)
    assert code == 0
    (line,) = err
    assert "talk.m4a: .m4a is not read here; convert it with: ffmpeg" in line


def test_prepare_says_so_if_nothing_can_be_used(run, tmp_path):
    recording(tmp_path / "in/short.wav", 100, RATE)
    for as_json in ((), ("--json",)):
        code, _, err = run("prepare", tmp_path / "in", "-o", tmp_path / "out", *as_json)
        assert code == 1
        one_error(err, tmp_path / "out", "none of the recordings")


def test_commands_that_follow_each_other_show_a_warning_once(run):
    for _ in range(3):
        run("nothing")
    assert not isinstance(getattr(warnings.showwarning, "args", (None,))[0], partial)
