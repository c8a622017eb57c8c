"""Measures how soon a command makes sound: whole processes, imports and reading the voice included.

    python benchmarks/measurements/startup.py [--rounds 5] [--against CHECKOUT]

It takes 3 s of a bundled recording as a mel and times, after one run that compiles: `synthesize` of
that mel to a file, and `synthesize --stream` until the first samples are on stdout, with the
defaults and with settings for low latency. With --against, the same commands of another checkout
of the project run in turns with these, and the ratio of the medians is printed. Each checkout has
a cache folder of its own. Modules are compiled to bytecode beforehand, as pip does it.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import waveglow_jax as wg

ROOT = Path(__file__).resolve().parents[2]
RECORDING = ROOT / "waveglow_jax" / "assets" / "voice" / "recordings" / "ru_0773.wav"
SECONDS = 3
COMMANDS = {
    "one file": ("-o", "sounds"),
    "stream, defaults": ("--stream",),
    "stream, --chunk 16 --consistency 4": ("--stream", "--chunk", "16", "--consistency", "4"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", type=Path, help="another checkout of the project")
    arguments = parser.parse_args()
    checkouts = [ROOT] + [arguments.against.resolve()] * bool(arguments.against)
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    print(
        f"{processor[1] if processor else '?'}, {os.cpu_count()} cores, seconds: median (least)\n"
    )
    heads = ["here", "there", "here / there"] if arguments.against else ["here"]
    print(f"| command | {' | '.join(heads)} |\n| --- |{' ---: |' * len(heads)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        voice = wg.load()
        samples = wg.read_audio(RECORDING, voice.sampling_rate)
        np.save(work / "mel.npy", voice.mel(samples[: SECONDS * voice.sampling_rate]).T)
        for name, options in COMMANDS.items():
            times: list[list[float]] = [[] for _ in checkouts]
            for number in range(arguments.rounds + 1):
                for checkout, of_checkout in zip(checkouts, times, strict=True):
                    seconds = timed(checkout, work, options)
                    of_checkout += [seconds] * (number > 0)  # the first run compiles
            cells = [f"{statistics.median(each):.2f} ({min(each):.2f})" for each in times]
            if arguments.against:
                cells.append(f"{statistics.median(times[0]) / statistics.median(times[1]):.2f}")
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


def timed(checkout: Path, work: Path, options: Sequence[str]) -> float:
    """The seconds until the process ends or, for a stream, until its first sample."""
    cache = work / f"cache{abs(hash(checkout))}"
    cache.mkdir(mode=0o700, exist_ok=True)
    environment = os.environ | {
        "PYTHONPATH": str(checkout),
        "XDG_CACHE_HOME": str(cache),
        "PYTHONPYCACHEPREFIX": str(work / "bytecode"),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", "waveglow_jax", "synthesize", str(work / "mel.npy"), *options]
    began = time.perf_counter()
    with subprocess.Popen(
        command, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        if "--stream" in options:
            assert len(process.stdout.read(2)) == 2
            seconds = time.perf_counter() - began
            process.stdout.read()
        else:
            process.stdout.read()
            process.wait()
            seconds = time.perf_counter() - began
    assert process.returncode == 0, f"{checkout}: {command} failed"
    return seconds


if __name__ == "__main__":
    main()
