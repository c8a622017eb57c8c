"""Speed of the reverse pass by precision, and how far its samples are from float32's.

python benchmarks/precision.py [WEIGHTS] [--recordings DIR] [--repeats N]

Each recording's mel is synthesised whole, the precisions in turn, N times over; seconds are the
median's, compiling apart. SNR is the float32 samples' power over that of the difference.
"""

import argparse
import time

import numpy as np

import waveglow_jax as wg
from waveglow_jax.audio.files import AUDIO_SUFFIXES, find_inputs, read_audio
from waveglow_jax.config import DTYPES
from waveglow_jax.weights.release import BUNDLED_VOICE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", nargs="?")
    parser.add_argument("--recordings", default=str(BUNDLED_VOICE / "recordings"))
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()

    voice = wg.load(arguments.weights)
    data, sigma = voice.config.data, voice.config.train.synthesis_sigma
    inputs = find_inputs([arguments.recordings], AUDIO_SUFFIXES)
    mels = [voice.mel(read_audio(each.path, data.sampling_rate)) for each in inputs]
    audio_seconds = sum(map(len, mels)) * data.hop_length / data.sampling_rate
    compiling, seconds, audio = {}, {dtype: [] for dtype in DTYPES}, {}
    for dtype in DTYPES:
        began = time.monotonic()
        voice.synthesize(mels, sigma=sigma, dtype=dtype)
        compiling[dtype] = time.monotonic() - began
    for _ in range(arguments.repeats):
        for dtype in DTYPES:
            began = time.monotonic()
            audio[dtype] = np.concatenate(voice.synthesize(mels, sigma=sigma, dtype=dtype))
            seconds[dtype].append(time.monotonic() - began)
    print(f"{len(mels)} recordings, {audio_seconds:.2f} s of audio\n")
    print("| dtype | first call, s | times real time (lowest to highest) | SNR to float32, dB |")
    print("| --- | --- | --- | --- |")
    exact = audio["float32"].astype(np.float64)
    for dtype in DTYPES:
        median, low, high = (f(seconds[dtype]) for f in (np.median, np.min, np.max))
        off = np.sum((audio[dtype] - exact) ** 2)
        snr = f"{10 * np.log10(np.sum(exact**2) / off):.1f}" if off else "exact"
        print(
            f"| {dtype} | {compiling[dtype]:.1f} | {audio_seconds / median:.1f} "
            f"({audio_seconds / high:.1f} to {audio_seconds / low:.1f}) | {snr} |"
        )


if __name__ == "__main__":
    main()
