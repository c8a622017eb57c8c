"""Measures what a wrong mel costs in likelihood: every common mistake on held-out recordings.

python benchmarks/measurements/wrong_mels.py CORPUS/heldout [--files 12] [--seconds 4]

Each recording's mel is computed with librosa in the voice's own convention and in wrong ones. The
recordings stay the same, so all rows refer to the same samples. The program rewrites the table of
docs/measurements/wrong-mels.md between its two marks.
"""

import argparse
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import librosa
import numpy as np

import waveglow_jax as wg
from waveglow_jax.analysis.likelihoods import Likelihood, likelihood_of, noisy
from waveglow_jax.evaluation.statistics import bootstrap_mean
from waveglow_jax.files.atomic import write_text
from waveglow_jax.files.inputs import AUDIO_SUFFIXES, find_inputs
from waveglow_jax.files.sound import read_audio

ROOT = Path(__file__).resolve().parents[2]
RATE, FFT, HOP, BINS = 22050, 1024, 256, 80
BEGIN, END = "<!-- wrong mels -->", "<!-- end of wrong mels -->"
RIGHT = "right"


def mel_magnitudes(
    audio: np.ndarray,
    *,
    rate: float = RATE,
    low: float = 0.0,
    high: float | None = 8000.0,
    htk: bool = False,
    norm: str | None = "slaney",
    window: int = FFT,
    power: float = 1.0,
    late: int = 0,
) -> np.ndarray:
    """`[T] -> [1 + T // hop, 80]`: mel before the logarithm; the defaults are the voice's own.

    late: frame f is centred on sample f * hop + late.
    """
    padded = np.pad(audio, FFT // 2 + abs(late), mode="reflect")
    start = abs(late) + late
    frames = librosa.util.frame(
        padded[start : start + len(audio) + FFT], frame_length=FFT, hop_length=HOP
    )
    shape = librosa.filters.get_window("hann", window, fftbins=True)
    shape = librosa.util.pad_center(shape, size=FFT)
    spectrum = np.abs(np.fft.rfft(frames * shape[:, None], axis=0))
    filters = librosa.filters.mel(
        sr=rate, n_fft=FFT, n_mels=BINS, fmin=low, fmax=high, htk=htk, norm=norm
    )
    return (filters @ spectrum**power).T


def log_mel_with(audio: np.ndarray, floor: float = 1e-5, **how: Any) -> np.ndarray:
    """`[T] -> [F, M]`: ln of `mel_magnitudes`, whose keywords `how` set the convention."""
    return np.log(np.maximum(mel_magnitudes(audio, **how), floor))


def decibels(audio: np.ndarray) -> np.ndarray:
    return 20 * np.log10(np.maximum(mel_magnitudes(audio), 1e-5))


def normalised(audio: np.ndarray) -> np.ndarray:
    """A mel in [0, 1] as descendants of Tacotron 1 write it: 20 dB lower, with 100 dB of range."""
    return np.clip((decibels(audio) - 20 + 100) / 100, 0, 1)


def resampled(audio: np.ndarray, rate: int) -> np.ndarray:
    """The mel of the recording resampled to another rate, with the voice's number of frames."""
    other = librosa.resample(audio, orig_sr=RATE, target_sr=rate)
    mel = log_mel_with(other, rate=rate)
    wanted = 1 + len(audio) // HOP
    return np.pad(mel, ((0, max(0, wanted - len(mel))), (0, 0)), mode="edge")[:wanted]


def emphasised(audio: np.ndarray) -> np.ndarray:
    return log_mel_with(np.append(audio[0], audio[1:] - 0.97 * audio[:-1]))


CONVENTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    RIGHT: log_mel_with,
    "log10 in place of ln": lambda audio: log_mel_with(audio) / np.log(10),
    "decibels": decibels,
    "normalised to [0, 1]": normalised,
    "power in place of magnitude": partial(log_mel_with, power=2.0),
    "floor 1e-10 in place of 1e-5": partial(log_mel_with, floor=1e-10),
    "fmax 11,025 Hz": partial(log_mel_with, high=None),
    "fmin 80, fmax 7,600 Hz": partial(log_mel_with, low=80.0, high=7600.0),
    "HTK scale": partial(log_mel_with, htk=True),
    "filters not normalised in area": partial(log_mel_with, norm=None),
    "filters of 16,000 Hz": partial(log_mel_with, rate=16000),
    "recording resampled to 24,000 Hz": partial(resampled, rate=24000),
    "half a hop late (HiFi-GAN's frames)": partial(log_mel_with, late=HOP // 2),
    "half a hop early": partial(log_mel_with, late=-HOP // 2),
    "a whole hop late": partial(log_mel_with, late=HOP),
    "window of 800 samples": partial(log_mel_with, window=800),
    "recording 6 dB softer": lambda audio: log_mel_with(audio / 2),
    "recording pre-emphasised by 0.97": emphasised,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("heldout", type=Path)
    parser.add_argument("--files", type=int, default=12, help="spread over the folder")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each, from its start")
    parser.add_argument(
        "--docs", type=Path, default=ROOT / "docs" / "measurements" / "wrong-mels.md"
    )
    parser.add_argument("--weights", help="(default: the bundled voice)")
    arguments = parser.parse_args()
    voice = wg.load(arguments.weights)
    length = int(arguments.seconds * RATE) // HOP * HOP
    paths = [item.path for item in find_inputs([arguments.heldout], AUDIO_SUFFIXES)]
    audios = [audio[:length] for audio in (read_audio(path, RATE) for path in paths)]
    audios = [audio for audio in audios if len(audio) == length]
    if len(audios) < 2:
        raise SystemExit(f"{arguments.heldout}: too few recordings of {arguments.seconds:g} s")
    chosen = np.unique(np.linspace(0, len(audios) - 1, arguments.files).astype(int))
    found = measure(voice, [audios[i] for i in chosen])
    lines = table(found)
    print("\n".join(lines))
    if arguments.docs.exists():
        rewrite(arguments.docs, lines)


def measure(voice: wg.Voice, audios: list[np.ndarray]) -> dict[str, list[Likelihood]]:
    """The likelihood of each recording, by convention."""
    found: dict[str, list[Likelihood]] = {name: [] for name in CONVENTIONS}
    for audio in audios:
        off = np.abs(log_mel_with(audio) - voice.mel(audio)).max()
        if off > 1e-2:
            raise SystemExit(f"the right mel is {off:.1e} off the voice's own")
        heard = noisy(audio, voice.config.train.noise_std, HOP)
        for name, convention in CONVENTIONS.items():
            mel = np.float32(convention(audio))
            found[name].append(likelihood_of(voice.params, voice.config, heard, mel))
    return found


def table(found: dict[str, list[Likelihood]]) -> list[str]:
    """A table with one row per convention: its likelihood, its loss, and whether they reveal it."""
    right = np.array([each.nats for each in found[RIGHT]])
    spread = [each.z.std for each in found[RIGHT]]
    lines = [
        f"{len(right)} held-out recordings, "
        f"{sum(each.frames for each in found[RIGHT]) * HOP / RATE:.0f} s. Right mels: "
        f"{right.min():.2f} to {right.max():.2f} nats per sample, standard deviation of z "
        f"{min(spread):.3f} to {max(spread):.3f}.",
        "",
        "| mel | nats per sample | lost to the right one (95%) | lower, files "
        "| z: standard deviation | outside the right ones' range, files |",
        "| --- " * 6 + "|",
    ]
    for name, each in found.items():
        nats = np.array([one.nats for one in each])
        std = np.array([one.z.std for one in each])
        outside = ~((std >= min(spread)) & (std <= max(spread)))
        if not np.isfinite(nats).all():
            lost, mean = "beyond float32", "\N{EN DASH}"
        else:
            of = bootstrap_mean(right - nats)
            lost = f"{of.mean:.3f} [{of.low:.3f}, {of.high:.3f}]"
            mean = f"{nats.mean():.3f}" if abs(nats.mean()) < 1e4 else f"{nats.mean():.1e}"
            if of.mean >= 1e4:
                lost = f"{of.mean:.1e} [{of.low:.1e}, {of.high:.1e}]"
        lower = int(np.sum(~(nats >= right)))
        width = f"{std.mean():.3f}" if std.mean() < 1e4 else f"{std.mean():.1e}"
        width = width if np.isfinite(std).all() else "\N{EN DASH}"
        if name == RIGHT:
            lines.append(f"| **{name}** | **{mean}** | | | **{width}** | |")
            continue
        lines.append(
            f"| {name} | {mean} | {lost} | {lower} of {len(nats)} | {width} "
            f"| {int(outside.sum())} of {len(nats)} |"
        )
    return lines


def rewrite(path: Path, lines: list[str]) -> None:
    text = path.read_text(encoding="utf-8")
    section = f"{BEGIN}\n" + "\n".join(lines) + f"\n{END}"
    changed, count = re.subn(f"{BEGIN}.*{END}", lambda _: section, text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{path} has {count} places for the table, 1 expected")
    write_text(path, changed)


if __name__ == "__main__":
    main()
