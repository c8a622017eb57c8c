"""Computes the statistics of training speech with which `doctor MEL` compares a mel.

python benchmarks/assets/mel_statistics.py CORPUS/train [--every N]

It computes the log-mels of every Nth training recording in the voice's convention. It writes
mel_statistics.json beside the voice, with each band's mean, standard deviation and quantiles over
all frames, and the 0.5%, 50% and 99.5% quantiles of `doctor`'s features over the recordings.
"""

import argparse
import json

import numpy as np
from tqdm import tqdm

from waveglow_jax.config import load_config
from waveglow_jax.doctor.alone import STATISTICS, features
from waveglow_jax.doctor.librosa_mel import magnitudes, mel_of_magnitudes
from waveglow_jax.files.atomic import write_text
from waveglow_jax.files.inputs import AUDIO_SUFFIXES, find_inputs
from waveglow_jax.files.sound import read_audio
from waveglow_jax.weights.release import BUNDLED_VOICE

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SPREAD = (0.005, 0.5, 0.995)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train")
    parser.add_argument("--every", type=int, default=10)
    arguments = parser.parse_args()
    own = load_config(BUNDLED_VOICE / "config.json").convention
    paths = [each.path for each in find_inputs([arguments.train], AUDIO_SUFFIXES)]
    mels = []
    for path in tqdm(paths[:: arguments.every], disable=None):
        magnitude = magnitudes(read_audio(path, own.spectrum.rate), own.spectrum)
        mel = np.log(np.maximum(mel_of_magnitudes(magnitude, own.spectrum), own.values.floor))
        if len(mel) >= 40:
            mels.append(mel)
    frames = np.concatenate(mels)
    mean = frames.mean(axis=0)
    of_each = [features(mel, mean) for mel in mels]
    found = {
        "recordings": len(mels),
        "frames": len(frames),
        "mean": rounded(mean),
        "deviation": rounded(frames.std(axis=0)),
        "quantiles": {f"{q:g}": rounded(np.quantile(frames, q, axis=0)) for q in QUANTILES},
        "features": {
            name: rounded(np.quantile([each[name] for each in of_each], SPREAD))
            for name in of_each[0]
        },
    }
    write_text(STATISTICS, json.dumps(found, indent=1) + "\n")
    print(f"{STATISTICS}: {len(mels)} recordings, {len(frames)} frames; {found['features']}")


def rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]


if __name__ == "__main__":
    main()
