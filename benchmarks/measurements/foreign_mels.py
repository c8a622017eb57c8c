"""Measures the loss when a mel of one convention becomes sound, or a mel of another convention.

python benchmarks/measurements/foreign_mels.py CORPUS/heldout [--files 5] [--seconds 4] [--rows K]

Each recording's mel is computed in every convention of the table. Noise corrected towards it gives
a signal, and that signal's mels in all conventions are compared with the recording's own. The
program writes waveglow_jax/synthesis/foreign_errors.json and the tables of
docs/measurements/foreign-mels.md between their marks. STOI needs pystoi.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import soxr

import waveglow_jax as wg
from waveglow_jax.audio.mel import bands_of
from waveglow_jax.config import Config
from waveglow_jax.conventions import CONVENTIONS
from waveglow_jax.evaluation.metrics import stoi
from waveglow_jax.files.atomic import write_text
from waveglow_jax.files.inputs import AUDIO_SUFFIXES, find_inputs
from waveglow_jax.files.sound import read_samples
from waveglow_jax.synthesis.foreign import (
    CORRECTIONS,
    ERRORS,
    config_of,
    converted,
    mel_of_sound,
    same_spectrum,
    sound_of,
)
from waveglow_jax.synthesis.mels import mel_of_samples

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "measurements" / "foreign-mels.md"
KEYS = [row.key for row in CONVENTIONS]
CONFIGS = {key: config_of(key) for key in KEYS}
TRIED = (8, CORRECTIONS, 128)
LEAST = 1e-10
"""The floor of the comparison where a convention has none."""


def at_rate(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Samples `[T]` of a rate -> float32 of the wanted rate."""
    changed = samples if rate == wanted else soxr.resample(samples, rate, wanted, quality="VHQ")
    return np.asarray(changed, np.float32)


def levels(mel: np.ndarray, config: Config) -> np.ndarray:
    """The mel's bands in units of ln of a magnitude."""
    bands = np.asarray(bands_of(mel, config.data), np.float64)
    return np.log(np.maximum(bands, LEAST)) / config.data.mel.power


def errors_of(mel: np.ndarray, source: str, truth: dict[str, np.ndarray]) -> dict[str, float]:
    """Per target: the mean absolute difference of the converted mel from the recording's own."""
    found, own = {}, CONFIGS[source]
    samples = sound_of(mel, own)
    for key, config in CONFIGS.items():
        exact = same_spectrum(own, config)
        made = converted(mel, own, config) if exact else mel_of_sound(samples, own, config)
        n = min(len(made), len(truth[key]))
        difference = levels(made[:n], config) - levels(truth[key][:n], config)
        found[key] = float(np.abs(difference).mean())
    return found


def stoi_of(recording: np.ndarray, made: np.ndarray, rate: int) -> float:
    n = min(len(recording), len(made))
    return stoi(recording[:n].astype(np.float64), made[:n].astype(np.float64), rate)


def measure(
    recording: np.ndarray, rate: int, voice: wg.Voice, rows: list[str]
) -> tuple[dict, dict]:
    """Of one recording, per convention: its errors by target, and its STOI by way of making."""
    signals = {k: at_rate(recording, rate, c.data.sampling_rate) for k, c in CONFIGS.items()}
    truth = {key: mel_of_samples(signals[key], config) for key, config in CONFIGS.items()}
    own = at_rate(recording, rate, voice.sampling_rate)
    errors, scores = {}, {}
    for key in rows:
        config = CONFIGS[key]
        errors[key] = errors_of(truth[key], key, truth)
        scores[key] = {
            n: stoi_of(signals[key], sound_of(truth[key], config, n), config.data.sampling_rate)
            for n in TRIED
        }
        by_voice = voice.synthesize(converted(truth[key], config, voice.config))
        scores[key]["voice"] = stoi_of(own, by_voice, voice.sampling_rate)
        print(key, {name: round(value, 3) for name, value in scores[key].items()}, flush=True)
    return errors, scores


def stoi_lines(scores: list[dict]) -> dict[str, str]:
    """The table's header, under "", and its line per key: mean and least STOI."""
    names = [f"noise, {n} corrections" for n in TRIED]
    lines = {"": f"| convention | {' | '.join(names)} | converted, bundled voice |"}
    for key in scores[0]:
        cells = []
        for name in (*TRIED, "voice"):
            values = [each[key][name] for each in scores]
            cells.append(f"{np.mean(values):.3f} ({min(values):.3f})")
        lines[key] = f"| {key} | {' | '.join(cells)} |"
    return lines


def error_lines(errors: dict[str, dict[str, float]]) -> dict[str, str]:
    lines = {"": f"| from, to | {' | '.join(KEYS)} |"}
    for source, row in errors.items():
        own = CONFIGS[source]
        cells = ["exact" if same_spectrum(own, CONFIGS[key]) else f"{row[key]:.2f}" for key in KEYS]
        lines[source] = f"| {source} | {' | '.join(cells)} |"
    return lines


def between(text: str, name: str, lines: dict[str, str]) -> str:
    """The page, with these lines as the table between the marks of this name."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = text.partition(begin)
    table, _, after = rest.partition(end)
    found = {line.split("|")[1].strip(): line for line in table.splitlines() if "|" in line}
    found |= lines
    rule = "| --- |" + " ---: |" * (lines[""].count("|") - 2)
    rows = "\n".join([lines[""], rule, *(found[key] for key in KEYS if key in found)])
    return f"{before}{begin}\n\n{rows}\n\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recordings")
    parser.add_argument("--files", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rows", nargs="+", choices=KEYS, default=KEYS, help="measured again")
    arguments = parser.parse_args()
    found = [item.path for item in find_inputs([arguments.recordings], AUDIO_SUFFIXES)]
    chosen = found[:: max(1, len(found) // arguments.files)][: arguments.files]
    voice, every, scores = wg.load(), [], []
    for path in chosen:
        samples, rate = read_samples(path)
        clip = samples[: int(arguments.seconds * rate), 0].astype(np.float64)
        print(path.name, flush=True)
        errors, of_file = measure(clip, rate, voice, arguments.rows)
        every.append(errors)
        scores.append(of_file)
    means = {
        s: {t: float(np.mean([each[s][t] for each in every])) for t in KEYS} for s in arguments.rows
    }
    kept = json.loads(ERRORS.read_text(encoding="utf-8")) if ERRORS.exists() else {}
    kept |= {s: {t: round(value, 3) for t, value in row.items()} for s, row in means.items()}
    write_text(ERRORS, json.dumps(kept, indent=1) + "\n")
    page = between(PAGE.read_text(encoding="utf-8"), "stoi", stoi_lines(scores))
    write_text(PAGE, between(page, "errors", error_lines(means)))


if __name__ == "__main__":
    main()
