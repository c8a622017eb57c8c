"""Measures the memory of a long stream: `python benchmarks/stress/long_stream.py [--minutes 60]`.

It streams the bundled voice from a mel that arrives a few frames at a time and repeats the voice's
own recordings. It reports the seconds of computing until the first block, and the process's peak
memory so far after 1, 2, 5, 10 minutes and so on of audio.
"""

import argparse
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import waveglow_jax as wg  # noqa: E402
from waveglow_jax.files.sound import read_audio  # noqa: E402

RECORDINGS = ROOT / "waveglow_jax/assets/voice/recordings"
TOLD_AT = (1, 2, 5, 10, 20, 30, 60, 120, 240)


def arriving(mel: np.ndarray, frames: int) -> Iterator[np.ndarray]:
    """Yields `frames` frames of the mel, repeated as often as needed, 10 at a time."""
    for start in range(0, frames, 10):
        yield mel[np.arange(start, min(start + 10, frames)) % len(mel)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    minutes = parser.parse_args().minutes
    voice = wg.load()
    rate, hop = voice.config.data.sampling_rate, voice.config.data.hop_length
    spoken = [voice.mel(read_audio(path, rate)) for path in sorted(RECORDINGS.glob("*.wav"))]
    frames = int(minutes * 60 * rate / hop)
    told = [each for each in TOLD_AT if each < minutes] + [minutes]
    began = time.monotonic()
    voice.compile_stream()
    print(f"compiled in {time.monotonic() - began:.1f} s")
    began, samples = time.monotonic(), 0
    for block in voice.stream(arriving(np.concatenate(spoken), frames)):
        if not samples:
            print(f"first block of {len(block)} samples after {time.monotonic() - began:.2f} s\n")
            print("| minutes of audio | peak memory, MiB | times real time |\n| --- | --- | --- |")
        samples += len(block)
        assert np.isfinite(block).all()
        done = samples / rate / 60
        if done >= told[0] or samples == frames * hop:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            speed = samples / rate / (time.monotonic() - began)
            print(f"| {done:.1f} | {peak:.1f} | {speed:.1f} |", flush=True)
            told = [each for each in told if each > done] or [float("inf")]


if __name__ == "__main__":
    main()
