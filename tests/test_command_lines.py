"""Every option of every command with invalid values: commands end with an exit code and lines,
never with a foreign exception, and never take long.

`PYTHONFAULTHANDLER=1` tells where a crash of compiled code was.
"""

import argparse
import contextlib
import io
import os
import random
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from test_tracebacks import SENTENCE, recording
from test_vocoder import lively_params, some_mel, tiny_config

import waveglow_jax as wg
from waveglow_jax.cli import COMMANDS, main
from waveglow_jax.cli.outcome import INTERRUPTED

TINY = Path(__file__).parent.parent / "configs/tiny.json"
MOST_SECONDS = 30

NAMES = [
    *("", " ", ".", "..", "/", "~", "~nobody", "-", "--", "*", "[", "?*[", "nothing", "a\nb"),
    *("a\0b", "\ud800", "\udcff", "\x1b[31m", "$HOME", "a$b$.wav", SENTENCE, "d/" * 2100),
    *("gs://a/b", "file://", "file:///", "file://x/y", "http://x", "OWNER/NAME", "a@b/c"),
    *("/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem", "/proc/self/environ", "/proc/.x/y"),
    *("in", "in/a.wav", "in/short.wav", "in/cut.wav", "in/bad.npy", "mel.npy", "mel.pt", "pipe"),
    *("loop.wav", "list.txt", "empty", "empty/none.wav", "voice", "voice/model.safetensors"),
    *("voice/config.json", "config.json", "bad.json", "key.json", "x.png", "x.npy", "x.onnx"),
]
NUMBERS = [
    *("", "0", "-0", "-1", "1", "2", "0.5", "1e400", "-1e400", "nan", "inf", "-inf", "1e-320"),
    *("9" * 400, "9" * 5000, "1e9", "2147483648", "4294967296", "18446744073709551616", "0x10"),
    *("1_0", "\N{ARABIC-INDIC DIGIT THREE}", "\N{SUPERSCRIPT TWO}", " 3", "3 ", "1,2", ",", "1,,2"),
    *("true", "null", "latent", "a", "\0", "\ud800", "NAME", "--", "-"),
]
TEXTS = ["", "=", "a=", "=a", "a=b=c", "a:b", "a=in", "b=in", "a=voice:sigma=nan", "a=:sigma=9e9"]
TEXTS += ["a=voice:dtype=float8", "a=in:x", "float32", "v5e:2x4", "v5e:0x0", "h100:-1", "h100:9e9"]
TEXTS += ["localhost:0", "localhost", "griffin-lim", "noise,noise", "z", "mel", "<b>", "x" * 3000]
GOOD_NAMES = ["in", "in/a.wav", "mel.npy", "voice", "voice", "out"]
OVERRIDES = ["--train.batch_size", "--train.steps", "--waveglow.n_flows", "--a.b", "--.", "--x."]
OVERRIDES += ["--data.training_files", "--train.learning_rate", "--data.segment_length"]
TAKE_LONG = {"benchmark", "preflight", "evaluate", "demo", "train", "export"}
"""Commands that take longer than a test may if all arguments are good: they are then
interrupted."""
SOON = 3  # seconds


@pytest.fixture
def there(tmp_path, monkeypatch) -> Path:
    """A folder with good and bad files, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "")
    recording(tmp_path / "in/a.wav")
    content = (tmp_path / "in/a.wav").read_bytes()
    (tmp_path / "in/short.wav").write_bytes(content[:44])
    (tmp_path / "in/cut.wav").write_bytes(content[:999])
    (tmp_path / "in/bad.npy").write_bytes(b"\x93NUMPY" + bytes(99))
    np.save(tmp_path / "mel.npy", some_mel(20).T)
    (tmp_path / "mel.pt").write_bytes(b"PK\x03\x04" + bytes(99))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    (tmp_path / "list.txt").write_text(f"in/a.wav\nnothing\n{SENTENCE}\n")
    (tmp_path / "empty").mkdir()
    wg.save(tmp_path / "voice", tiny_config(), lively_params(tiny_config()))
    (tmp_path / "config.json").write_text(TINY.read_text())
    (tmp_path / "bad.json").write_text('{"train_config": {"batch_size": 1e300}}')
    (tmp_path / "key.json").write_text('{"test": "t", "systems": []}')
    return tmp_path


def actions_of(command: str) -> list[argparse.Action]:
    parser = argparse.ArgumentParser()
    COMMANDS[command][0](parser)
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [each for part in action.choices.values() for each in part._actions]
        else:
            found.append(action)
    return found


def value_of(action: argparse.Action, rng: random.Random) -> str:
    """A random value, mostly of the kind that the option takes."""
    kind = getattr(action.type, "__name__", "")
    if action.choices and rng.random() < 0.8:
        return rng.choice([*map(str, action.choices)])
    own = NAMES if kind == "given" else TEXTS if action.type is None else NUMBERS
    if rng.random() < 0.5:  # a good one, so that others have their turn
        return rng.choice(GOOD_NAMES if own is NAMES else ["1", "2"] if own is NUMBERS else TEXTS)
    return rng.choice(own if rng.random() < 0.9 else [*NAMES, *NUMBERS, *TEXTS])


def command_line(rng: random.Random) -> list[str]:
    command = rng.choice([*COMMANDS])
    words = [command]
    if command == "listening-test":
        words.append(rng.choice(["make", "score", "score", "-"]))
    for action in actions_of(command):
        if isinstance(action, argparse._HelpAction):
            continue
        # The bundled voice, which commands take without, is slow to compile.
        of_weights = action.dest in ("weights", "source")
        if not (action.required or of_weights or rng.random() < 0.25):
            continue
        if action.option_strings:
            words.append(rng.choice(action.option_strings))
        if action.nargs != 0:
            words += [value_of(action, rng) for _ in range(rng.choice([1, 1, 1, 2]))]
    if rng.random() < 0.2:
        words += [rng.choice(OVERRIDES), rng.choice(NUMBERS + NAMES)]
    return words


class TooLong(BaseException):
    """The command took too long; a BaseException, which no code of the command catches."""


class Foreign(Exception):  # noqa: N818
    """A command line, and how it ended."""


def tried(words: list[str], monkeypatch) -> float:
    """The seconds that the command took; raises Foreign if it ended in a way that is not
    allowed."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO("in/a.wav\nnothing\n"))

    takes_long = words[0] in TAKE_LONG

    fired = []

    def too_long(*_):
        fired.append(True)
        raise KeyboardInterrupt if takes_long else TooLong

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SOON if takes_long else MOST_SECONDS)
    began = time.monotonic()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
    except SystemExit as stopped:
        code = stopped.code
    except BaseException as error:
        if takes_long and fired:  # a library may make another exception of an interrupt
            code = INTERRUPTED
        else:
            raise Foreign(f"{words!r}: {type(error).__name__}: {error}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        jax.config.update("jax_enable_x64", False)  # some commands turn it on
    seconds = time.monotonic() - began
    said = err.getvalue()
    expected = (0, 1, 2, INTERRUPTED) if takes_long else (0, 1, 2)
    if fired and takes_long:
        return seconds
    if code not in expected or "Traceback" in said or (code and not said):
        raise Foreign(f"{words!r}: code {code!r}: {said}")
    return seconds


@pytest.mark.slow
@pytest.mark.parametrize("runs", [300, pytest.param(2000, marks=pytest.mark.stress)])
def test_command_lines_that_nobody_should_give(there, monkeypatch, runs):
    seed = int(os.environ.get("WAVEGLOW_JAX_FUZZ_SEED", "0"))
    rng = random.Random(seed)
    found = []
    for _ in range(runs):
        words = command_line(rng)
        try:
            tried(words, monkeypatch)
        except Foreign as foreign:
            found.append(str(foreign)[:1500])
    assert not found, f"{len(found)} of {runs} (seed {seed}):\n" + "\n\n".join(found)
