"""Ctrl-C, as a terminal sends it, at any moment of a program's life."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_tracebacks import recording

ROOT = Path(__file__).parent.parent
AT_ONCE = 1.0
"""The limit in seconds; the check below allows for other work on the machine."""

COMMANDS = {
    "synthesize": "synthesize in -o out --no-cache",
    "stream": "synthesize in --stream --no-cache",
    "inspect": "inspect {voice} --json",
    "prepare": "prepare in -o out --rate 8000",
    "likelihood": "likelihood in",
    "evaluate": "evaluate --reference in -o out --workers 2",
    "train": "train {config} --data in --output run",
}


def interrupted(words: str, after: float, folder: Path, number: int) -> tuple[float, str, int]:
    """Starts the command and signals its process group: the seconds to its end, stderr, exit
    code."""
    voice, config = ROOT / "waveglow_jax/assets/voice", ROOT / "configs/tiny.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "waveglow_jax", *words.format(voice=voice, config=config).split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    time.sleep(after)
    began = time.monotonic()
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    return time.monotonic() - began, err, process.returncode


def check(name: str, after: float, folder: Path, number: int = signal.SIGINT) -> None:
    seconds, err, code = interrupted(COMMANDS[name], after, folder, number)
    told = f"{name} after {after:.3f} s: {seconds:.2f} s, code {code}\n{err}"
    assert "Traceback" not in err and "Exception ignored" not in err, told
    # 0: it had already ended. A training run ends after its step, and saves its state.
    assert code in (0, 128 + number, -number), told
    assert seconds < (20 if name == "train" else AT_ONCE + 1), told
    if code == 130 and name != "train":
        assert err.count("error: interrupted") == 1, told
    left = [path for path in folder.rglob(".*.*") if path.is_file()]
    assert not left, (told, left)


@pytest.fixture(autouse=True)
def as_from_a_terminal():
    """The programs obey Ctrl-C, also if these tests run in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in "abc":
        recording(tmp_path / f"in/{name}.wav")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_at_three_moments(folder, name):
    for after in (0.2, 0.5, 4.0):
        check(name, after, folder)


def test_nothing_is_raised_into_an_import(tmp_path):
    """An extension module that is being initialised would crash because of it."""
    (tmp_path / "slow.py").write_text("""
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    print("went on")
except BaseException:
    print("raised")
""")
    code = "from waveglow_jax import interrupts; interrupts.listen(); import slow"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr == "error: interrupted\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["synthesize", "prepare"])
def test_sigterm_clears_away_too(folder, name):
    check(name, 3.0, folder, signal.SIGTERM)


@pytest.mark.stress
@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_at_random_moments(folder, name):
    moments = random.Random(0)
    for _ in range(40):
        check(name, moments.uniform(0.15, 12), folder)


def ran(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
    )


LOST = """
import gc, os, signal, sys, time
from waveglow_jax.interrupts import program

def run():
    class Lost:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
    Lost()
    while True:
        try:
            time.sleep(1)
        except BaseException:
            pass

program(run)
"""


def test_an_interrupt_that_is_lost_ends_the_program_all_the_same():
    began = time.monotonic()
    done = ran(LOST)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")
    assert time.monotonic() - began < 5


HALF_IMPORTED = """
import os, signal, sys, types
from waveglow_jax.interrupts import program

sys.modules["multiprocessing"] = types.ModuleType("multiprocessing")
program(lambda: os.kill(os.getpid(), signal.SIGINT))
"""


def test_a_module_that_is_only_half_imported_does_not_hold_the_end_up():
    done = ran(HALF_IMPORTED)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def test_importing_the_package_leaves_signals_alone():
    program = (
        "import signal, sys, threading, waveglow_jax, waveglow_jax.cli\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "assert sys.unraisablehook is sys.__unraisablehook__ and threading.active_count() == 1\n"
        "assert signal.set_wakeup_fd(-1) == -1\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_who_ignores_the_signal_is_not_ended(tmp_path):
    """Shells make their background jobs ignore Ctrl-C in this way."""
    program = (
        "import os, signal\n"
        "from waveglow_jax.interrupts import program\n"
        "program(lambda: os.kill(os.getpid(), signal.SIGINT) or 7)\n"
    )
    done = subprocess.run(
        ["sh", "-c", 'trap \'\' INT; exec "$0" -c "$1"', sys.executable, program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (7, "")
