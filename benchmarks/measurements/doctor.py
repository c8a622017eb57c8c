"""Measures how often `doctor` is right on healthy mels and on mels of every convention.

python benchmarks/measurements/doctor.py CORPUS/heldout [--files 20]

Healthy mels come from `waveglow_jax.log_mel`; the others follow the rows of the conventions' table
in every value. Each mel is diagnosed with its recording and without it. (tests/test_doctor.py has
mels that are independent of the doctor's own code, and mistakes that no convention has.)
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import soxr

import waveglow_jax as wg
from waveglow_jax.config import Config
from waveglow_jax.conventions import CONVENTIONS, Convention
from waveglow_jax.doctor.alone import diagnose_alone
from waveglow_jax.doctor.diagnose import diagnose
from waveglow_jax.doctor.librosa_mel import magnitudes, mel_of_magnitudes
from waveglow_jax.files.inputs import AUDIO_SUFFIXES, find_inputs
from waveglow_jax.files.sound import read_audio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=20)
    arguments = parser.parse_args()
    config = Config()
    own, rate = config.convention, config.data.sampling_rate
    paths = [each.path for each in find_inputs([arguments.folder], AUDIO_SUFFIXES)]
    with_it, alone, worst = Counter(), Counter(), -np.inf
    for path in paths[: arguments.files]:
        audio = read_audio(path, rate)
        healthy = np.asarray(wg.log_mel(audio, config), np.float64).T
        with_it["healthy"] += diagnose(healthy, audio, rate, own).verdict == "fine"
        found = diagnose_alone(healthy, own)
        alone["healthy"] += found.verdict == "fine"
        worst = max(worst, found.evidence["implausibility"])
        for row in CONVENTIONS:
            mel = written(audio, rate, row)
            with_it[row.name] += diagnose(mel, audio, rate, own).convention == row.name
            found = diagnose_alone(mel, own)
            alone[row.name] += found.evidence["values"] == row.values.name
    n = min(arguments.files, len(paths))
    print(f"{n} recordings; healthy ones' implausibility alone is at most {worst:.1f}\n")
    print("| mel | with its recording: named | alone: values named |\n| --- | --- | --- |")
    for name in ("healthy", *(row.name for row in CONVENTIONS)):
        print(f"| {name} | {with_it[name]} of {n} | {alone[name]} of {n} |")


def written(audio: np.ndarray, rate: int, row: Convention) -> np.ndarray:
    """The mel `[M, F]` as the row's software would have saved it."""
    samples = audio
    if row.spectrum.rate != rate:
        samples = soxr.resample(audio, rate, row.spectrum.rate)
    mel = mel_of_magnitudes(magnitudes(samples, row.spectrum), row.spectrum).T.astype(np.float64)
    if row.values.slope == 0:
        return mel
    floor = mel.max() * 1e-8 if row.values.floor is None else row.values.floor
    x = row.values.slope * np.log(np.maximum(mel, floor)) + row.values.offset
    if row.values.name.startswith("["):
        low, high = map(float, row.values.name[1 : row.values.name.index("]")].split(","))
        x = np.clip(x, low, high)
    return x.astype(np.float32)


if __name__ == "__main__":
    main()
