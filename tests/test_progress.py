"""On a terminal, commands that take time show what they do; elsewhere they print nothing more."""

import io
import re
import sys
import warnings

import numpy as np
import pytest
import soundfile
from test_vocoder import lively_params, some_audio, some_mel, tiny_config

import waveglow_jax as wg
from waveglow_jax.cli import main, progress

HOP, RATE = 256, 22050


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a voice, two recordings, a mel and one that cannot be read."""
    folder = tmp_path_factory.mktemp("progress")
    wg.save(folder / "voice", tiny_config(), lively_params(tiny_config()))
    for name in ("a", "b"):
        soundfile.write(folder / f"{name}.wav", some_audio(20 * HOP), RATE)
    np.save(folder / "mel.npy", some_mel(20).T)
    (folder / "bad.wav").write_bytes(b"RIFF" + bytes(40))
    return folder


COMMANDS = {
    "synthesize": ("{a} {b} -o {out} -w {voice} -s 0.01", r"synthesising: +\d+%.*x real time"),
    "latent": ("{a} -o {out} -w {voice} -s 0.01 --consistency latent", r"a.wav: 0 of 1 files"),
    "stream": ("{mel} --stream -w {voice} -s 0.01", r"compiling \["),
    "likelihood": ("{a} {b} -w {voice}", r"b.wav: 1 of 2 files done"),
    "resynthesize": ("{a} {b} -o {out} -w {voice}", r"b.wav: 1 of 2 files done"),
    "sweep": ("{mel} -o {out} -w {voice} -s 0,0.01", r"mel.npy: 0 of 1 files done"),
    "interpolate": ("{a} {b} -o {out} -w {voice} --steps 2", r"decoding: 1 of 2 steps done"),
    "mel": ("{a} {b} -o {out} -w {voice}", r"b.wav: 1 of 2 files done"),
    "benchmark": (
        "{voice} --seconds 0.1 --dtype float32 --repeats 1",
        r"0.1 s, ours float32: round 1 of 1",
    ),
    "export": ("{voice} -o {out}/a.bin", r"exporting \["),
}


def command_of(name: str, files, out) -> list[str]:
    places = {"a": files / "a.wav", "b": files / "b.wav", "mel": files / "mel.npy"}
    line, _ = COMMANDS[name]
    command = {"latent": "synthesize", "stream": "synthesize"}.get(name, name)
    return [command, *(w.format(out=out, voice=files / "voice", **places) for w in line.split())]


def test_rounding_does_not_lead_beyond_the_total(monkeypatch):
    """tqdm would warn, on a terminal, of more audio than there is."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    parts = [0.1] * 3  # whose sum is above 0.3
    with warnings.catch_warnings(), progress.audio_seconds(0.3) as bar:
        warnings.simplefilter("error")
        for part in parts:
            progress.tell_speed(bar, part, computing=1.0)
        assert bar.n == bar.total


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_terminal_sees_what_is_under_way(name, files, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main(command_of(name, files, tmp_path / "out")) == 0
    seen = sys.stderr.getvalue()
    assert re.search(COMMANDS[name][1], seen), seen
    left = seen.rstrip(" ").split("\r")[-1]  # the bar is gone at the end
    assert left.strip() == "" or left.startswith("latency: ")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["synthesize", "likelihood", "resynthesize", "benchmark"])
def test_a_pipe_gets_none_of_it(name, files, tmp_path, capfd):
    assert main(command_of(name, files, tmp_path / "out")) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_lines_stand_by_themselves_on_a_terminal(files, tmp_path, monkeypatch):
    """Results on stdout and errors on stderr begin at the start of the line, after the bar is
    erased."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    inputs = [str(files / f"{name}.wav") for name in ("a", "bad", "b")]
    out = str(tmp_path / "out")
    for command in ("synthesize", "resynthesize"):
        terminal.truncate(0)
        assert main([command, *inputs, "-o", out, "-w", str(files / "voice")]) == 1
        written = [line for line in terminal.getvalue().split("\n") if "out/" in line]
        lines = [line.split("\r")[-1] for line in written]
        assert [line.startswith(out) for line in lines] == [True, True], written
        errors = [each for each in re.split(r"[\r\n]", terminal.getvalue()) if "bad.wav:" in each]
        assert any(line.startswith("error: ") for line in errors)


def test_the_clock_goes_on_by_itself(monkeypatch):
    """During one long operation, only the clock shows that the program is alive."""
    import time

    monkeypatch.setattr(progress, "TICK_SECONDS", 0.01)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.stages("waiting") as tell:
        time.sleep(0.2)
        assert terminal.getvalue().count("waiting") > 3
        tell("still")
        assert "still" in terminal.getvalue()
    assert terminal.getvalue().split("\r")[-2].strip() == ""
