"""Whatever is given as a file, a stream or a number, the error is one line, never a traceback."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_failures import saved_run
from test_training import tiny_config

from waveglow_jax.audio.picture import literal, mel_figure
from waveglow_jax.audio.prepare import prepare
from waveglow_jax.cli import main
from waveglow_jax.config import DataConfig, load_config
from waveglow_jax.errors import UserError
from waveglow_jax.evaluation.listening_test.score import score
from waveglow_jax.files.atomic import write_text
from waveglow_jax.files.inputs import find_inputs
from waveglow_jax.files.mels import read_any_mel, read_mel
from waveglow_jax.training.checkpoints import Checkpoints
from waveglow_jax.training.watching.history import read_history
from waveglow_jax.training.watching.inspection import report_run, run_as_text
from waveglow_jax.weights.release import BUNDLED_VOICE, read_weights
from waveglow_jax.weights.run import load_run_moments

ROOT = Path(__file__).parent.parent
TINY = ROOT / "configs/tiny.json"
RATE = 22050
SENTENCE = "a sentence that somebody took for the name of a file " * 8


def one_line(capsys, *words) -> str:
    """The one line that a failing command prints."""
    try:
        code = main([str(word) for word in words])
    except SystemExit as stopped:  # argparse's own
        code = stopped.code
    assert code == 1
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == "" and line.startswith("error: ")
    return line


def recording(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(0).standard_normal(RATE)
    soundfile.write(path, samples, RATE)
    return path


# ------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    "words",
    [
        ["synthesize", "NAME", "-o", "out"],
        ["inspect", "NAME"],
        ["train", TINY, "--data", "NAME", "--output", "out"],
        ["train", TINY, "--data", "in", "--output", "NAME"],
        ["train", TINY, "--output", "out", "--data.training_files=NAME"],
        ["mel", "in", "-o", "out", "-w", "NAME"],
        ["doctor", "NAME"],
        ["listening-test", "make", "-o", "out", "--system", "a=NAME", "--system", "b=NAME"],
        ["evaluate", "--reference", "in", "-o", "out", "--system", "a=NAME"],
        ["preflight", "--config", "NAME"],
    ],
    ids=lambda words: " ".join(map(str, words))[-40:],
)
@pytest.mark.parametrize("name", [SENTENCE, "d/" * 2100, "a\0b", "a\ud800b"])
def test_names_that_no_file_can_have(tmp_path, monkeypatch, capsys, words, name):
    monkeypatch.chdir(tmp_path)
    recording(tmp_path / "in/a.wav")
    line = one_line(capsys, *(str(word).replace("NAME", name) for word in words))
    assert "no file can have" in line and len(line) < 250
    assert os.listdir(tmp_path) == ["in"]


def test_links_that_lead_in_a_circle(tmp_path, capsys):
    recording(tmp_path / "in/good.wav")
    (tmp_path / "in/loop.wav").symlink_to("loop.wav")
    (tmp_path / "in/below").symlink_to(".")
    (tmp_path / "in/there").symlink_to("back")
    (tmp_path / "in/back").symlink_to("there")
    assert main(["mel", str(tmp_path / "in"), "-o", str(tmp_path / "out")]) == 1
    first, last = capsys.readouterr().err.splitlines()
    assert "loop.wav: cannot be read: Too many levels" in first and "1 of 2" in last
    assert os.listdir(tmp_path / "out") == ["good.npy"]


def test_dollars_are_no_mathematics():
    mel = np.zeros((4, 80))
    for name in ("$", "a$b$c", r"$\frac$", r"\$x\$", "\udc80"):
        figure = mel_figure([(name, mel)], DataConfig())
        figure.savefig(io.BytesIO())
        assert figure.axes[0].get_title() == literal(name)


# ------------------------------------------------------------------------------ pipes, devices


@pytest.fixture
def pipe(tmp_path) -> Path:
    """A pipe that nobody writes to."""
    os.mkfifo(tmp_path / "pipe.wav")
    return tmp_path / "pipe.wav"


def test_pipes_and_devices_are_no_weights(pipe, capsys):
    for source in (pipe, "/dev/zero"):
        assert "a pipe, device or socket" in one_line(capsys, "inspect", source)
    folder = pipe.parent / "voice"
    shutil.copytree(BUNDLED_VOICE, folder)
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(UserError):
        read_weights(folder)


def test_pipes_and_devices_are_no_recordings_and_no_mels(pipe, tmp_path, capsys):
    recording(tmp_path / "good.wav")
    os.mkfifo(tmp_path / "pipe.npy")
    assert main(["mel", str(tmp_path), "-o", str(tmp_path / "out")]) == 1
    assert f"{pipe}: a pipe, device or socket" in capsys.readouterr().err
    assert (tmp_path / "out/good.npy").exists()
    with pytest.raises(UserError, match="a pipe, device or socket"):
        read_mel(tmp_path / "pipe.npy", 80)


def test_endless_text_and_pipes_without_a_writer(pipe):
    with pytest.raises(UserError, match="/dev/zero: holds more than a file can"):
        load_config("/dev/zero")
    with pytest.raises(UserError, match="is no valid JSON"):
        load_config(pipe)


def test_text_may_come_through_a_pipe():
    """The text comes through a pipe, as from a shell's <(...)."""
    reading, writing = os.pipe()
    os.write(writing, TINY.read_bytes())
    os.close(writing)
    assert load_config(f"/dev/fd/{reading}") == load_config(TINY)
    os.close(reading)


def test_a_device_is_not_replaced_by_a_file(pipe):
    with pytest.raises(UserError, match="a pipe, device or socket"):
        write_text(pipe, "text")
    assert pipe.is_fifo() and os.listdir(pipe.parent) == [pipe.name]


# ------------------------------------------------------------------------------ contents


@pytest.mark.parametrize(
    "header",
    [
        "'shape': (80, True)",
        "'shape': (80, 1",
        "'shape': (80, '''1)",
        "'shape': (80, 1), {}: 3",
        "'shape': (80, 1), 'more': " + "(" * 300 + ")" * 300,
    ],
)
def test_headers_of_arrays_are_parsed_with_suspicion(tmp_path, header):
    text = f"{{'descr': '<f4', 'fortran_order': False, {header}}}\n".encode()
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(320)
    (tmp_path / "a.npy").write_bytes(content)
    for read in (read_any_mel, lambda path: read_mel(path, 80)):
        with pytest.raises(UserError, match="not a readable NumPy array"):
            read(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key["clips"]["a.wav"].pop("utterance"),
        lambda key: key["clips"].update({"a.wav": ["x", "1"]}),
        lambda key: key["clips"]["a.wav"].update(system=3),
        lambda key: key.update(systems=[{}]),
    ],
)
def test_a_key_is_checked_as_a_whole(tmp_path, change):
    key = {"test": "t", "systems": ["x"], "check": {}, "check_needed": 0, "ratings_each": 1}
    key["clips"] = {"a.wav": {"system": "x", "utterance": "1"}}
    result = {"test": "t", "rater": "r", "check": {}, "ratings": {"a.wav": 5}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "key.json").write_text(json.dumps(key))
    assert score(tmp_path / "key.json", [tmp_path / "result.json"]).mos["x"].mean == 5
    change(key)
    (tmp_path / "key.json").write_text(json.dumps(key))
    with pytest.raises(UserError, match="is no key of a listening test"):
        score(tmp_path / "key.json", [tmp_path / "result.json"])


def test_lines_of_a_history_that_no_run_wrote(tmp_path):
    (tmp_path / "config.json").write_text(TINY.read_text())
    good = ['{"step": 1, "loss": 2.0}', '{"step": 1, "validation_loss": 1.5}']
    good += ['{"step": 0, "session": {}}', '{"step": 2, "loss": 1' + "0" * 400 + "}"]
    bad = [
        '{"step": 1, "validation_loss": "low"}',
        '{"step": true, "loss": 1}',
        '{"step": 1' + "0" * 400 + ', "loss": 1}',
        '{"step": 1, "session": {"total_steps": "many"}}',
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([*bad, *good]) + "\n")
    history = read_history(path)
    assert history.unreadable == len(bad) and len(history.validations) == 1
    assert "best" in run_as_text(report_run(tmp_path))


def overwritten(path: Path) -> None:
    path.write_text("[1]")


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.slow
@pytest.mark.parametrize("damage", [overwritten, emptied, Path.unlink])
def test_damaged_checkpoints_without_checksums(tmp_path, damage, capfd):
    """Every file is damaged, and every reader either works or prints one line."""
    saved_run(tmp_path / "run", steps=[3])
    checkpoint = tmp_path / "run/checkpoints/3"
    (checkpoint / "SHA256SUMS").unlink()
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    refused = 0
    for path in files:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        damage(tmp_path / "copy" / path.relative_to(tmp_path / "run"))

        def resume():
            with Checkpoints(tmp_path / "copy", tiny_config()) as checkpoints:
                if checkpoints.latest_step is not None:
                    checkpoints.restore(3)

        for read in (read_weights, load_run_moments, lambda _: resume()):
            try:
                read(tmp_path / "copy")
            except UserError as error:
                assert str(tmp_path) in str(error)
                refused += 1
    assert refused
    assert "Traceback" not in capfd.readouterr().err


# ------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"level_dbfs": float("nan")}, "level nan"),
        ({"level_dbfs": float("inf")}, "level inf"),
        ({"level_dbfs": -1e9}, "level -1e"),
        ({"sampling_rate": 10**9}, "rate 1000000000"),
        ({"sampling_rate": 0}, "rate 0"),
    ],
)
def test_prepare_is_given_what_a_recording_can_have(tmp_path, settings, words):
    recording(tmp_path / "a.wav")
    with pytest.raises(UserError, match=words):
        prepare([tmp_path / "a.wav"], tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------ streams


def started(words: str, redirections: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONUNBUFFERED", None)
    return subprocess.run(
        f"{sys.executable} -m waveglow_jax {words} {redirections}",
        shell=True,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "redirections", "code", "error"),
    [
        ("-h", "> /dev/full", 1, "stdout: cannot be written: No space left"),
        (f"inspect {BUNDLED_VOICE}", "> /dev/full", 1, "stdout: cannot be written: No space left"),
        (f"inspect {BUNDLED_VOICE}", ">&-", 0, ""),
        ("inspect nothing", "2>&-", 1, ""),
        ("inspect nothing", "2> /dev/full", 1, ""),
        ("mel in -o out", ">&-", 0, ""),
        ("mel in -o out", "<&- >&- 2>&-", 0, ""),
        ("mel in bad.wav -o out", "2> /dev/full", 1, ""),
        ("synthesize - -o out", "<&-", 1, "there is no stdin"),
        ("synthesize in --stream --consistency 0", ">&-", 1, "--stream writes samples to stdout"),
        ("synthesize in --stream --consistency 0", "> /dev/full", 1, "stdout: cannot be"),
    ],
)
def test_streams_that_are_closed_or_full(tmp_path, words, redirections, code, error):
    recording(tmp_path / "in/a.wav")
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    done = started(words, redirections, tmp_path)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("latency")]
    assert (done.returncode, len(errors)) == (code, bool(error)), done.stderr
    assert not any(word in done.stdout for word in ("error", "Traceback"))
    assert error in done.stderr
    if words.startswith("mel"):
        assert os.listdir(tmp_path / "out") == ["a.npy"]


def test_inputs_of_a_name_too_long_for_its_output(tmp_path, capsys):
    name = "x" * 252 + ".au"
    recording(tmp_path / name)
    assert [item.path.name for item in find_inputs([tmp_path], (".au",))] == [name]
    assert "too long" in one_line(capsys, "mel", tmp_path / name, "-o", tmp_path / "out")
