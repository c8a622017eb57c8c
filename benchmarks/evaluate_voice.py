"""Held-out figures of a voice: PESQ-wb, STOI and likelihood, beside Griffin-Lim from the same mels.

python benchmarks/evaluate_voice.py CORPUS/heldout [-w WEIGHTS] [--sigma 0.8] [--files N] [--json F]

Needs `pip install -e '.[eval]'`. Both scores are taken at 16 kHz, of the
synthesis against the recording, cut to their common length. The likelihood is that of the whole
recording with Gaussian noise of the voice's training added (seed 0), in nats per sample.
"""

import argparse
import json
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor

import librosa
import numpy as np
import soxr
from pesq import pesq
from pystoi import stoi

import waveglow_jax as wg
from waveglow_jax.audio.files import AUDIO_SUFFIXES, find_inputs, read_audio, write_text
from waveglow_jax.audio.mel import mel_filters

GRIFFIN_LIM_ITERATIONS = 32


def scores(pair: tuple[np.ndarray, np.ndarray, int]) -> tuple[float, float]:
    """PESQ-wb and STOI of (recording, synthesis, rate)."""
    recording, synthesis, rate = pair
    length = min(len(recording), len(synthesis))
    reference, degraded = (
        soxr.resample(x[:length].astype(np.float64), rate, 16000) for x in (recording, synthesis)
    )
    return pesq(16000, reference, degraded, "wb"), stoi(reference, degraded, 16000)


def griffin_lim(mel_and_config: tuple[np.ndarray, wg.Config]) -> np.ndarray:
    """librosa's, from the magnitudes that non-negative least squares finds behind the mel."""
    mel, config = mel_and_config
    data = config.data
    filters = mel_filters(data, config.waveglow.n_mel_channels)
    magnitude = librosa.util.nnls(filters, np.exp(mel.T))
    return librosa.griffinlim(
        magnitude,
        n_iter=GRIFFIN_LIM_ITERATIONS,
        hop_length=data.hop_length,
        win_length=data.win_length,
        n_fft=data.filter_length,
        random_state=0,
    )


def nats_per_sample(voice: wg.Voice, audio: np.ndarray, mel: np.ndarray) -> tuple[float, int]:
    """Log-likelihood of a recording, and the samples it was taken over (whole frames)."""
    hop = voice.config.data.hop_length
    frames = len(audio) // hop
    noise = np.random.default_rng(0).normal(size=frames * hop)
    noisy = audio[: frames * hop] + voice.config.train.noise_std * noise
    _, nats = voice.encode(noisy[None], mel[None, : frames + 1])
    return float(nats[0]), frames * hop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recordings")
    parser.add_argument("-w", "--weights")
    parser.add_argument("--sigma", type=float, nargs="+", default=[0.8])
    parser.add_argument("--files", type=int, help="only the first so many")
    parser.add_argument("--no-griffin-lim", action="store_true")
    parser.add_argument("--json", metavar="FILE", help="every figure of every file")
    arguments = parser.parse_args()

    voice = wg.load(arguments.weights)
    rate = voice.config.data.sampling_rate
    inputs = find_inputs([arguments.recordings], AUDIO_SUFFIXES)[: arguments.files]
    names = [each.path.stem for each in inputs]
    recordings = [read_audio(each.path, rate) for each in inputs]
    mels = [voice.mel(audio) for audio in recordings]

    report: dict = {"files": names, "systems": {}}
    print("| system | PESQ-wb | STOI |\n| --- | --- | --- |")
    # Fresh processes: a fork of one that runs JAX may hang.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:

        def tell(name: str, outputs: Iterable[np.ndarray]) -> None:
            trios = [(r, o, rate) for r, o in zip(recordings, outputs, strict=True)]
            figures = np.array(list(pool.map(scores, trios)))
            report["systems"][name] = figures.tolist()
            mean = figures.mean(axis=0)
            print(f"| {name} | {mean[0]:.3f} | {mean[1]:.3f} |", flush=True)

        if not arguments.no_griffin_lim:
            tell("Griffin-Lim", pool.map(griffin_lim, [(mel, voice.config) for mel in mels]))
        for sigma in arguments.sigma:
            tell(f"voice, sigma {sigma:g}", voice.synthesize(mels, sigma=sigma))
    nats = [nats_per_sample(voice, a, m) for a, m in zip(recordings, mels, strict=True)]
    report["nats"] = nats
    mean_nats = np.average([n for n, _ in nats], weights=[w for _, w in nats])
    print(f"\n{mean_nats:.4f} nats per sample over {len(nats)} recordings")
    if arguments.json:
        write_text(arguments.json, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
